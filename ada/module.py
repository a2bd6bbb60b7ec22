"""The Lightning module: wires policy, backbone, rollout and reward together, and logs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ada import figures, reinforce
from ada.backbone import Backbone
from ada.hub import save_policy
from ada.policy import AdaPolicy
from ada.reinforce import AdvantageKind
from ada.rewards import WeightedReward
from ada.rollout import Denoiser, Prefix
from ada.types import Rollout
from blockdance import Reuse


class AdaModule(LightningModule):
    """Trains an `AdaPolicy` by policy gradient over a frozen pipeline.

    Args:
        backbone: the frozen pipeline. It is no part of `state_dict`.
        reward: the quality Q, a weighted sum of named rewards.
        kinds: the kinds of reuse on offer; the first one's boundary is where the policy sees features.
        prefix: ρ, share of the steps that always compute.
        forced_tail: share of the steps at the end that always compute.
        quality_weight_range: λ is drawn log-uniformly from here, per prompt; equal ends fix it (the paper: 2).
        group_size: schedules per prompt and rollout.
        advantage: how rewards become advantages, see `reinforce.advantages`.
        entropy_weight: weight of the entropy bonus.
        updates_per_rollout: gradient steps per rollout; more than one needs a `clip_range`.
        clip_range: ε of PPO's clipped surrogate; None for plain REINFORCE.
        learning_rate: of Adam.
        warmup_rollouts: rollouts over which the learning rate rises linearly.
        gradient_clip: largest norm of the gradient.
        hidden_size, num_layers, num_heads: of the policy's transformer blocks.
        seed: seed of the noise, of λ and of the sampled schedules.
        max_cached_gib: prefixes and references kept between epochs, in GiB.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: WeightedReward,
        kinds: Sequence[Reuse],
        prefix: float = 0.4,
        forced_tail: float = 0.05,
        quality_weight_range: tuple[float, float] = (2.0, 2.0),
        group_size: int = 8,
        advantage: AdvantageKind = "leave_one_out",
        entropy_weight: float = 0.01,
        updates_per_rollout: int = 1,
        clip_range: float | None = None,
        learning_rate: float = 1e-3,
        warmup_rollouts: int = 5,
        gradient_clip: float = 1.0,
        hidden_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        seed: int = 0,
        max_cached_gib: float = 2.0,
    ) -> None:
        super().__init__()
        low, high = quality_weight_range
        if not 0 < low <= high:
            raise ValueError(
                f"`quality_weight_range` must be two positive numbers, the smaller first; got {quality_weight_range}."
            )
        if updates_per_rollout > 1 and clip_range is None:
            raise ValueError("`updates_per_rollout` above 1 reuses a rollout off policy: set `clip_range`, such as 0.2.")
        self.automatic_optimization = False
        self.backbone, self.reward = backbone, reward
        self.quality_weight_range = (low, high)
        self.group_size, self.advantage, self.entropy_weight = group_size, advantage, entropy_weight
        self.updates_per_rollout, self.clip_range = updates_per_rollout, clip_range
        self.learning_rate, self.warmup_rollouts, self.gradient_clip = learning_rate, warmup_rollouts, gradient_clip
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = AdaPolicy.for_transformer(
                backbone.transformer,
                backbone.feature_width(),
                kinds,
                backbone.action_costs(kinds),
                prefix=prefix,
                forced_tail=forced_tail,
                quality_weight=math.sqrt(low * high),
                quality_weight_range=[low, high],
                hidden_size=hidden_size,
                num_layers=num_layers,
                num_heads=num_heads,
            )
        if not self.policy.decided_steps(backbone.num_inference_steps):
            raise ValueError(
                f"With {backbone.num_inference_steps} steps, `prefix` {prefix} and `forced_tail` {forced_tail}, no step is left to decide."
            )
        self.denoiser = Denoiser(backbone, self.policy, seed, int(max_cached_gib * 2**30))
        self.reward_mean: Tensor
        self.register_buffer("reward_mean", torch.zeros(()))  # running mean, the baseline of the `ema` advantage
        self.validation_history: list[dict[str, float]] = []
        self._validation: list[tuple[Prefix, Rollout, Tensor]] = []

    # --- training ---

    def on_fit_start(self) -> None:
        self.backbone.to(self.device)
        self.reward.to(self.device)

    def training_step(self, batch: dict[str, Any]) -> None:
        prompts, indices = list(batch["prompt"]), batch["index"].tolist()
        prefix = self.denoiser.prefix(prompts, indices)
        state = _outside_inference(prefix.state)
        generators = [self._generator(index) for index in indices]
        weights = self._draw_quality_weights(generators).to(self.device)
        with torch.no_grad():
            logits = self.policy(state, weights)
        decisions = torch.cat(
            [
                reinforce.sample_actions(row[None], self.group_size, generator)
                for row, generator in zip(logits, generators, strict=True)
            ]
        )
        with_greedy = (
            torch.cat([decisions, logits.argmax(-1)[:, None]], dim=1) if self.advantage == "self_critical" else decisions
        )
        rollout = self._roll_out(prefix, prompts, with_greedy)
        rewards = reinforce.reward(rollout.compute_saved, rollout.quality, weights)
        greedy = rewards[:, -1] if self.advantage == "self_critical" else None
        rewards = rewards[:, : self.group_size]
        advantages = reinforce.advantages(rewards, self.advantage, greedy, float(self.reward_mean))
        advantages = advantages * rollout.kept[:, : self.group_size]
        self._update_reward_mean(rewards)
        old_log_probs = reinforce.log_prob(logits, decisions)
        norm = torch.zeros(())
        for _ in range(self.updates_per_rollout):
            norm = self._update(state, weights, decisions, advantages, old_log_probs)
        self._advance_learning_rate()
        self._log_training(rollout, rewards, advantages, logits, norm)

    def _update(self, state: Any, weights: Tensor, decisions: Tensor, advantages: Tensor, old_log_probs: Tensor) -> Tensor:
        """One gradient step; returns the gradient's norm before clipping."""
        logits = self.policy(state, weights)
        log_probs = reinforce.log_prob(logits, decisions)
        if self.clip_range is None:
            loss = reinforce.policy_gradient_loss(log_probs, advantages)
        else:
            loss = reinforce.clipped_loss(log_probs, old_log_probs, advantages, self.clip_range)
        loss = loss - self.entropy_weight * reinforce.entropy(logits).mean()
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.gradient_clip)
        optimizer.step()
        return norm

    def _roll_out(self, prefix: Prefix, prompts: list[str], decisions: Tensor) -> Rollout:
        """Runs a group of decisions `(prompts, group, decisions)` to the end and scores them."""
        count, group = decisions.shape[:2]
        num_steps = self.backbone.num_inference_steps
        actions = self.policy.schedule(decisions.flatten(0, 1), num_steps).actions.unflatten(0, (count, group))
        latents, denoised = self.denoiser.suffixes(prefix.snapshot, actions)
        with torch.inference_mode():
            images = self.backbone.decode(latents.flatten(0, 1))
            repeated = [prompt for prompt in prompts for _ in range(group)]
            reference = prefix.reference.repeat_interleave(group, 0)
            scored = self.reward(images, repeated, reference, update_statistics=self.training)
        saved = self.compute_saved(decisions)
        return Rollout(
            actions=actions,
            images=images.unflatten(0, (count, group)).clone(),
            quality=scored.total.unflatten(0, (count, group)).clone(),
            compute_saved=saved,
            parts={name: part.unflatten(0, (count, group)).clone() for name, part in scored.parts.items()},
            kept=scored.kept.unflatten(0, (count, group)).clone(),
            denoised=denoised,
        )

    def compute_saved(self, decisions: Tensor) -> Tensor:
        """C(u): share of the MACs of the steps after ρ that a schedule saves (the paper's 1 − Σu/(s − ρ), in MACs).

        Args:
            decisions: int64 `(…, decisions)`.

        Returns:
            `(…)` in [0, 1].
        """
        num_steps = self.backbone.num_inference_steps
        after_prefix = num_steps - self.policy.decision_step(num_steps)
        return (1 - self.policy.action_costs.to(decisions.device)[decisions]).sum(-1) / after_prefix

    def _generator(self, index: int) -> torch.Generator:
        """Randomness of one prompt in one epoch, whatever its batch or process."""
        return torch.Generator().manual_seed((self.seed * 7919 + self.current_epoch * 104_729 + index * 15_485_863) % 2**63)

    def _draw_quality_weights(self, generators: Sequence[torch.Generator]) -> Tensor:
        low, high = (math.log(bound) for bound in self.quality_weight_range)
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        return (low + (high - low) * uniform).exp()

    def _update_reward_mean(self, rewards: Tensor, decay: float = 0.9) -> None:
        gathered = self.all_gather(rewards.mean())
        assert isinstance(gathered, Tensor)
        mean = gathered.mean()
        self.reward_mean = mean if self.reward_mean == 0 else torch.lerp(mean, self.reward_mean, decay)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.learning_rate)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda rollout: min(1.0, (rollout + 1) / (self.warmup_rollouts + 1))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup}}

    def _advance_learning_rate(self) -> None:
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def _log_training(self, rollout: Rollout, rewards: Tensor, advantages: Tensor, logits: Tensor, norm: Tensor) -> None:
        self.log_dict(
            {
                "train/reward": rewards.mean(),
                "train/quality": rollout.quality.mean(),
                "train/compute_saved": rollout.compute_saved.mean(),
                "train/entropy": reinforce.entropy(logits).mean(),
                "train/advantage_spread": advantages.std(),
                "train/gradient_norm": norm,
                "train/denoised_image_steps": float(rollout.denoised),
                "train/dropped_images": (~rollout.kept).sum().float(),
                **{f"train/quality/{name}": part.mean() for name, part in rollout.parts.items()},
            },
            batch_size=len(rewards),
        )
        self.log_dict(
            {"reward": rewards.mean(), "saved": rollout.compute_saved.mean()},
            prog_bar=True,
            logger=False,
            batch_size=len(rewards),
        )

    # --- validation: greedy decisions on held-out prompts ---

    def on_validation_start(self) -> None:
        self.on_fit_start()
        self._validation.clear()

    def validation_step(self, batch: dict[str, Any]) -> None:
        prompts = list(batch["prompt"])
        prefix = self.denoiser.prefix(prompts, (batch["index"] + 1_000_000).tolist())  # other noise than in training
        state = _outside_inference(prefix.state)
        low, high = self.quality_weight_range
        weights = torch.tensor([low, math.sqrt(low * high), high], device=self.device)
        logits = torch.stack([self.policy(state, weight.expand(len(prompts))) for weight in weights], dim=1)
        rollout = self._roll_out(prefix, prompts, logits.argmax(-1))
        rewards = reinforce.reward(rollout.compute_saved.T, rollout.quality.T, weights).T
        self.log_dict(
            {
                "validation/reward": rewards.mean(),
                "validation/quality": rollout.quality.mean(),
                "validation/compute_saved": rollout.compute_saved.mean(),
                **{f"validation/quality/{name}": part.mean() for name, part in rollout.parts.items()},
            },
            batch_size=len(prompts),
            sync_dist=True,
        )
        self._validation.append((prefix, rollout, logits))

    def on_validation_epoch_end(self) -> None:
        metrics = {
            name.removeprefix("validation/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        self.validation_history.append({"rollouts": self.rollouts, **metrics})
        self._log_pictures()
        self._validation.clear()

    @property
    def rollouts(self) -> int:
        """Rollouts so far; Lightning's `global_step` counts gradient steps."""
        return self.global_step // self.updates_per_rollout

    @rank_zero_only
    def _log_pictures(self) -> None:
        if self.logger is None or not self._validation:
            return
        prefix, rollout, _ = self._validation[0]
        board = self.logger.experiment  # type: ignore[attr-defined]
        folder = Path(self.trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        logits = torch.cat([logits for _, _, logits in self._validation])
        steps = list(self.policy.decided_steps(self.backbone.num_inference_steps))
        probabilities = figures.reuse_probability(logits, steps, self.policy.kinds)
        probabilities.savefig(folder / "reuse_probability.png", dpi=120)
        board.add_figure("validation/reuse_probability", probabilities, self.global_step)
        middle = rollout.images[:, rollout.images.shape[1] // 2]
        grid = figures.compare_grid(prefix.reference[:8], middle[:8])
        figures.save_image(grid, folder / "reference_and_reuse.png")
        board.add_image("validation/reference_and_reuse", grid, self.global_step)

    # --- checkpoints hold what a resumed run needs, and nothing frozen ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validation_history"] = json.dumps(self.validation_history)
        checkpoint["reward_statistics"] = json.dumps(self.reward.state())
        checkpoint["base_model"] = json.dumps(asdict(self.policy.base_model))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validation_history = json.loads(checkpoint["validation_history"])
        self.reward.load_state(json.loads(checkpoint.get("reward_statistics", "{}")))  # older checkpoints have none

    def export(self, folder: Path) -> None:
        """Writes the policy folder: `config.json`, `model.safetensors`, `README.md`."""
        save_policy(self.policy, folder, base_model_name=self.backbone.model, validation=self.validation_history)


def _outside_inference(state: Any) -> Any:
    """Clones tensors made in inference mode, so that the policy's backward may keep them."""
    return type(state)(**{name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(state).items()})
