"""The policy network, its decisions as a `ReuseSchedule`, and its life on the Hugging Face Hub."""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ada.types import BaseModel, PolicyState
from blockdance import BlockDanceError, Reuse, ReuseSchedule

NUM_IMAGE_TOKENS = 64
NUM_WAVES = 10
NUM_QUERY_FEATURES = NUM_WAVES + 3


class IncompatiblePolicyError(BlockDanceError):
    """A policy and a model that do not belong together."""


class AdaPolicy(nn.Module, PyTorchModelHubMixin, library_name="blockdance-ada", tags=["blockdance-ada", "diffusers"]):
    """Decides, image by image, which of the remaining denoising steps reuse, and how.

    Three transformer blocks over tokens of the early features, the latents and the prompt, and one query token per step to
    decide, which carries that step's place and noise level and the quality weight λ. So one policy serves any number of steps
    and the whole curve between speed and quality (BlockDance-Ada, arXiv 2503.15927, has one output per step and a fixed λ).

    Args:
        base_model: fingerprint of the model it is trained on, as in `BaseModel`.
        feature_width: channels of the boundary block's output.
        kinds: the kinds of reuse on offer, as the arguments of `Reuse`.
        action_costs: cost of one denoising step under every action, relative to compute; the first is 1.
        prefix: ρ, the share of the steps that always compute (0.4 in the paper).
        forced_tail: share of the steps at the end that always compute (0.05 in the paper).
        quality_weight: λ at which `decide` works unless told otherwise.
        quality_weight_range: the λ it was trained on.
        hidden_size, num_layers, num_heads: of its transformer blocks.
    """

    def __init__(
        self,
        *,
        base_model: dict[str, Any],
        feature_width: int,
        kinds: list[dict[str, Any]],
        action_costs: list[float],
        prefix: float = 0.4,
        forced_tail: float = 0.05,
        quality_weight: float = 2.0,
        quality_weight_range: Sequence[float] = (2.0, 2.0),
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if len(action_costs) != len(kinds) + 1:
            raise ValueError(
                f"`action_costs` must have one entry per kind and one for compute: {len(kinds) + 1}; got {len(action_costs)}."
            )
        self.base_model = BaseModel(**base_model)
        self.kinds = tuple(Reuse(**kind) for kind in kinds)
        self.prefix, self.forced_tail = prefix, forced_tail
        self.quality_weight = quality_weight
        self.quality_weight_range = (float(quality_weight_range[0]), float(quality_weight_range[1]))
        self.compute: float | None = None
        self.action_costs: Tensor
        self.register_buffer("action_costs", torch.tensor(action_costs, dtype=torch.float32), persistent=False)

        self.embed_features = nn.Linear(feature_width + 1, hidden_size)
        self.embed_change = nn.Linear(feature_width + 1, hidden_size)
        self.embed_latents = nn.Linear(self.base_model.latent_channels, hidden_size)
        self.embed_prompt = nn.Linear(self.base_model.prompt_width, hidden_size)
        self.embed_query = nn.Sequential(
            nn.Linear(NUM_QUERY_FEATURES, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.positions = nn.Parameter(torch.randn(2, NUM_IMAGE_TOKENS, hidden_size) * 0.02)
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 4 * hidden_size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        output = nn.Linear(hidden_size, 1 + len(kinds))
        # starts undecided: every action equally likely at every step
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.head = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, hidden_size), nn.GELU(), output)

    # --- which steps ---

    def decision_step(self, num_steps: int) -> int:
        """ρ as a step: computed itself, and the last one before the decisions; 1 or more."""
        return max(1, round(self.prefix * num_steps))

    def decided_steps(self, num_steps: int) -> range:
        """The steps that it decides about: after ρ, before the forced tail."""
        first = self.decision_step(num_steps) + 1
        return range(first, max(first, round((1 - self.forced_tail) * num_steps)))

    # --- the network ---

    def forward(self, state: PolicyState, quality_weight: Tensor) -> Tensor:
        """Logits of every action at every decided step.

        Args:
            state: what it sees of `images` images.
            quality_weight: λ, `(images,)`.

        Returns:
            `(images, decisions, actions)`, float32.
        """
        dtype = self.positions.dtype
        features = _pool(_with_magnitude(state.features.to(dtype)))
        change = _pool(_with_magnitude(state.feature_change.to(dtype)))
        side = round(NUM_IMAGE_TOKENS**0.5)
        latents = F.adaptive_avg_pool2d(state.latents.to(dtype).flatten(2, -2), side).flatten(2).transpose(1, 2)
        image = self.embed_features(features) + self.embed_change(change) + self.positions[0]
        noisy = self.embed_latents(latents) + self.positions[1]
        prompt = self.embed_prompt(F.layer_norm(state.prompt_embeds.to(dtype), state.prompt_embeds.shape[-1:]))
        queries = self.embed_query(self._describe_steps(state, quality_weight).to(dtype))
        tokens = torch.cat([image, noisy, prompt, queries], dim=1)
        ignored = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        start = 2 * NUM_IMAGE_TOKENS
        ignored[:, start : start + prompt.shape[1]] = state.prompt_mask < 0.5
        hidden = self.blocks(tokens, src_key_padding_mask=ignored)
        logits: Tensor = self.head(hidden[:, -queries.shape[1] :])
        return logits.float()

    def _describe_steps(self, state: PolicyState, quality_weight: Tensor) -> Tensor:
        """Each decided step's place and noise level, and λ: `(images, decisions, NUM_QUERY_FEATURES)`.

        The place inside the decided range is given as cosines, so that neighbouring steps are easy to tell apart.
        """
        decided = self.decided_steps(state.num_steps)
        steps = torch.tensor(list(decided), device=quality_weight.device)
        sigmas = state.sigmas.to(quality_weight).clamp(min=1e-6)
        place = (steps - decided.start + 0.5) / len(decided)
        waves = torch.cos(torch.pi * place[:, None] * torch.arange(1, NUM_WAVES + 1, device=place.device))
        level = torch.stack([sigmas[steps] / sigmas.max(), (sigmas[steps - 1] / sigmas[steps]).log()], dim=-1)
        per_step = torch.cat([waves, level], dim=-1)
        weight = quality_weight.clamp(min=1e-6).log()
        return torch.cat([per_step.expand(len(weight), -1, -1), weight[:, None, None].expand(-1, len(steps), 1)], dim=-1)

    # --- decisions ---

    def with_options(self, *, quality_weight: float | None = None, compute: float | None = None) -> "AdaPolicy":
        """The same network, deciding at another λ or within a compute budget.

        Args:
            quality_weight: λ: larger computes more. It should lie in `quality_weight_range`.
            compute: share of the denoising compute to spend per image, in (0, 1]; steps are ranked by how much the policy wants
                to reuse them, and as many reuse as the budget asks for.

        Raises:
            ValueError: a value out of its bounds.
        """
        if quality_weight is not None and quality_weight <= 0:
            raise ValueError(f"`quality_weight` must be positive; got {quality_weight}.")
        if compute is not None and not 0 < compute <= 1:
            raise ValueError(f"`compute` must lie in (0, 1]; got {compute}.")
        other = copy.copy(self)
        if quality_weight is not None:
            other.quality_weight = quality_weight
        other.compute = compute
        return other

    @torch.no_grad()
    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Greedy decisions, or those that meet the compute budget. Steps up to ρ and the tail compute."""
        policy = self.to(state.latents.device)
        weight = torch.full((len(state.latents),), policy.quality_weight, device=state.latents.device)
        logits = policy(state, weight)
        decisions = logits.argmax(-1) if self.compute is None else self._meet_budget(logits, state.num_steps)
        return self.schedule(decisions, state.num_steps)

    def schedule(self, decisions: Tensor, num_steps: int) -> ReuseSchedule:
        """Decisions int64 `(images, decisions)` as a schedule over all steps."""
        actions = torch.zeros(len(decisions), num_steps, dtype=torch.int64, device=decisions.device)
        actions[:, list(self.decided_steps(num_steps))] = decisions
        return ReuseSchedule(actions, self.kinds)

    def _meet_budget(self, logits: Tensor, num_steps: int) -> Tensor:
        """Turns the most wanted steps to reuse, as long as more than the budget would be spent."""
        best, kind = logits[..., 1:].max(-1)
        savings = 1 - self.action_costs[kind + 1].to(logits.device)
        order = (best - logits[..., 0]).argsort(-1, descending=True)
        spent_before = num_steps - (savings.gather(-1, order).cumsum(-1) - savings.gather(-1, order))
        assert self.compute is not None
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, spent_before > self.compute * num_steps + 1e-6)
        return torch.where(chosen, kind + 1, 0)

    # --- belonging to a model ---

    def check(self, transformer: nn.Module) -> None:
        """Checks that a transformer is like the one it was trained on.

        Raises:
            IncompatiblePolicyError: lists what differs.
        """
        differences = self.base_model.differences(BaseModel.of(transformer))
        if differences:
            raise IncompatiblePolicyError(
                "This policy was trained on another architecture (policy here, your model there): "
                + "; ".join(differences)
                + ". Load a policy made for your model, or train one with train.py."
            )

    @classmethod
    def for_transformer(
        cls, transformer: nn.Module, feature_width: int, kinds: Sequence[Reuse], action_costs: Sequence[float], **options: Any
    ) -> "AdaPolicy":
        """A fresh policy for a transformer; `options` are those of the constructor."""
        return cls(
            base_model=asdict(BaseModel.of(transformer)),
            feature_width=feature_width,
            kinds=[asdict(kind) for kind in kinds],
            action_costs=[float(cost) for cost in action_costs],
            **options,
        )


def _with_magnitude(tokens: Tensor) -> Tensor:
    """Normalises tokens `(images, positions, channels)` and adds their log-magnitude as a channel."""
    magnitude = tokens.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.cat([tokens / magnitude * tokens.shape[-1] ** 0.5, magnitude.log()], dim=-1)


def _pool(tokens: Tensor) -> Tensor:
    """Averages neighbouring positions down (or up) to `NUM_IMAGE_TOKENS`."""
    if tokens.shape[1] == NUM_IMAGE_TOKENS:
        return tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), NUM_IMAGE_TOKENS).transpose(1, 2)
