"""The paper's policy: one decision about every step by itself, after ρ."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from ada.policy.base import AdaPolicy, BaseModel
from ada.policy.tokens import NUM_IMAGE_TOKENS, image_tokens, places_of, raster_tokens
from ada.policy.wishes import WishError, number
from blockdance import PolicyState, Reuse, ReuseSchedule, StepUnknownError

NUM_WAVES = 10
NUM_QUERY_FEATURES = NUM_WAVES + 3


def decision_step(prefix: float, num_steps: int) -> int:
    """ρ, a share of the steps, as a step, 2 or more: the last one before the decisions."""
    return max(2, round(prefix * num_steps))


def decided_steps(prefix: float, forced_tail: float, num_steps: int) -> range:
    """The steps that are decided about: after ρ, before the forced tail."""
    first = decision_step(prefix, num_steps) + 1
    return range(first, max(first, round((1 - forced_tail) * num_steps)))


class StepPolicy(AdaPolicy):
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
        compute: share of the denoising compute to spend per image; None where λ decides.
        pooling: how features and latents become tokens: averaged on their `grid` of two or three dimensions, or in `raster` order, as
            policies of older folders were trained.
        prompt_width: width of the prompt embeddings that it sees, 0 for none; by default what `base_model` says.

    Raises:
        ValueError: an argument that is out of its bounds, or of the wrong length.
    """

    form: ClassVar[str] = "steps"

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
        compute: float | None = None,
        pooling: Literal["grid", "raster"] = "grid",
        prompt_width: int | None = None,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(config, BaseModel(**base_model), [Reuse(**kind) for kind in kinds])
        if len(action_costs) != len(kinds) + 1 or not all(0 <= cost <= 1 for cost in action_costs):
            raise ValueError(
                f"`action_costs` must lie between 0 and 1, one for compute and one per kind: {len(kinds) + 1}; got {action_costs}."
            )
        if not 0 <= prefix < 1 - forced_tail <= 1:
            raise ValueError(
                f"`prefix` and `forced_tail` must be shares of the steps, less than 1 together; got {prefix} and {forced_tail}."
            )
        if pooling not in ("grid", "raster"):
            raise ValueError(f"`pooling` must be grid or raster; got {pooling}.")
        self.prefix, self.forced_tail, self.pooling = prefix, forced_tail, pooling
        self.compute = compute
        self.check_budget()
        self.action_costs: Tensor
        self.register_buffer("action_costs", torch.tensor(action_costs, dtype=torch.float32), persistent=False)

        self.embed_features = nn.Linear(feature_width + 1, hidden_size)
        self.embed_change = nn.Linear(feature_width + 1, hidden_size)
        self.embed_latents = nn.Linear(self.base_model.latent_channels, hidden_size)
        self.prompt_width = self.base_model.prompt_width if prompt_width is None else prompt_width
        self.embed_prompt = nn.Linear(self.prompt_width, hidden_size)
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

    def decision_steps(self, num_steps: int) -> tuple[int]:
        """ρ as a step: computed itself, and the last one before the decisions; 2 or more."""
        return (decision_step(self.prefix, num_steps),)

    def decided_steps(self, num_steps: int) -> range:
        """The steps that it decides about: after ρ, before the forced tail."""
        return decided_steps(self.prefix, self.forced_tail, num_steps)

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
        prompt_embeds, prompt_mask = state.prompt_embeds, state.prompt_mask
        if prompt_embeds is None or prompt_mask is None:
            prompt_embeds = state.latents.new_zeros(state.num_images, 0, self.prompt_width)
            prompt_mask = state.latents.new_zeros(state.num_images, 0)
        # the change of one step, as it was when the first policies were trained
        last_step = state.sigmas[state.step - 1] - state.sigmas[state.step - 2]
        seen = _with_magnitude(state.features.to(dtype)), _with_magnitude((state.feature_change * last_step).to(dtype))
        if self.pooling == "grid":
            places = places_of(state.latents.to(dtype), self.base_model.latent_channels, state.grid)
            features, change, latents = image_tokens(*seen, places)
        else:
            features, change, latents = raster_tokens(*seen, state.latents.to(dtype))
        image = self.embed_features(features) + self.embed_change(change) + self.positions[0]
        noisy = self.embed_latents(latents) + self.positions[1]
        prompt = self.embed_prompt(F.layer_norm(prompt_embeds.to(dtype), prompt_embeds.shape[-1:]))
        queries = self.embed_query(self._describe_steps(state, quality_weight).to(dtype))
        tokens = torch.cat([image, noisy, prompt, queries], dim=1)
        ignored = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        start = 2 * NUM_IMAGE_TOKENS
        ignored[:, start : start + prompt.shape[1]] = prompt_mask < 0.5
        hidden = self.blocks(tokens, src_key_padding_mask=ignored)
        logits: Tensor = self.head(hidden[:, -queries.shape[1] :])
        return logits.float()

    def _describe_steps(self, state: PolicyState, quality_weight: Tensor) -> Tensor:
        """Each decided step's place and noise level, and λ: `(images, decisions, NUM_QUERY_FEATURES)`.

        The place inside the decided range is given as cosines, so that neighbouring steps are easy to tell apart.
        """
        if not state.sigmas.isfinite().all():
            raise StepUnknownError(
                "A policy of single steps looks at the noise levels of the steps to come, which only a scheduler tells. Apply it to the "
                "pipeline rather than to the transformer, or give the loop its scheduler: `SamplingLoop(…, scheduler=…)`."
            )
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

    def with_options(  # type: ignore[override]  # each form has wishes of its own
        self, *, quality_weight: float | None = None, compute: float | None = None
    ) -> Self:
        """The same network, deciding at another λ or within a compute budget; without either, as it does.

        Args:
            quality_weight: λ, in `quality_weight_range`: larger computes more.
            compute: share of the denoising compute to spend per image; steps are ranked by how much the policy wants to reuse
                them, and the number of reuses that comes nearest to the budget is taken.

        Raises:
            WishError: no number, or one that is out of its bounds; it says which.
        """
        if quality_weight is None and compute is None:
            return self._copy()
        low, high = self.quality_weight_range
        weight = self.quality_weight if quality_weight is None else number("quality_weight", quality_weight)
        if quality_weight is not None and not low <= weight <= high:
            raise WishError(f"`quality_weight` must lie in the trained range, {low:g} to {high:g}; got {weight}.")
        wished = self._copy(quality_weight=weight, compute=None if compute is None else number("compute", compute))
        wished.check_budget()
        return wished

    def check_budget(self, num_steps: int | None = None) -> None:
        """Checks that its budget, if it has one, can be met with so many steps; by default, with any number of them.

        Raises:
            WishError: prefix and forced tail alone spend more.
        """
        if self.compute is None:
            return
        saving = 1 - min(self.config["action_costs"])
        least = 1 - (1 - self.prefix - self.forced_tail) * saving
        if num_steps is not None:
            least = 1 - (len(self.decided_steps(num_steps)) + 0.5) / num_steps * saving
        if not least - 1e-6 <= self.compute <= 1:
            raise WishError(
                f"`compute` must lie between {least:.2f}, with every step that may reuse reused, and 1; got {self.compute}."
            )

    @torch.no_grad()
    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Greedy decisions, or those that meet the compute budget. Steps up to ρ and the tail compute."""
        weight = torch.full((state.num_images,), self.quality_weight, device=state.latents.device)
        logits = self(state, weight)
        decisions = logits.argmax(-1) if self.compute is None else self._meet_budget(logits, state)
        return self.schedule(decisions, state.num_steps)

    def schedule(self, decisions: Tensor, num_steps: int) -> ReuseSchedule:
        """Decisions int64 `(images, decisions)` as a schedule over all steps."""
        actions = torch.zeros(len(decisions), num_steps, dtype=torch.int64, device=decisions.device)
        actions[:, list(self.decided_steps(num_steps))] = decisions
        return ReuseSchedule(actions, self.kinds)

    def _meet_budget(self, logits: Tensor, state: PolicyState) -> Tensor:
        """Turns the most wanted of the open steps to reuse, as many as come nearest to the budget of the steps that run.

        Raises:
            WishError: the budget is below what the policy can reach.
        """
        assert self.compute is not None
        is_open = torch.tensor(list(self.decided_steps(state.num_steps)), device=logits.device) >= state.step
        best, kind = logits[..., 1:].max(-1)
        costs = torch.tensor(self.config["action_costs"], device=logits.device)  # the buffer is rounded with the weights
        savings = (1 - costs[kind + 1]) * is_open
        order = (best - logits[..., 0]).masked_fill(~is_open, -torch.inf).argsort(-1, descending=True)
        num_run = state.num_steps - int((state.actions[0, : state.step] < 0).sum())
        spent = num_run - savings.gather(-1, order).cumsum(-1)
        wanted = self.compute * num_run
        half = savings.gather(-1, order) / 2
        if bool((spent[:, -1] > wanted + savings.amax(-1) / 2 + 1e-6).any()):
            raise WishError(
                f"With {num_run} steps this policy spends {float(spent[:, -1].max()) / num_run:.2f} of the compute at least; "
                f"`compute` {self.compute} cannot be met."
            )
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, spent + half > wanted + 1e-6)
        return torch.where(chosen & is_open, kind + 1, 0)


def _with_magnitude(tokens: Tensor) -> Tensor:
    """Normalises tokens `(images, positions, channels)` and adds their log-magnitude as a channel."""
    magnitude = tokens.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.cat([tokens / magnitude * tokens.shape[-1] ** 0.5, magnitude.log()], dim=-1)
