"""Training of a `StepPolicy`, the paper's way: sampled schedules, REINFORCE, one decision after ρ; wired for Lightning."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ada import reinforce
from ada.data import PromptDataModule, check_counts
from ada.noise import VALIDATION, noise_seed
from ada.policy import BaseModel, StepPolicy
from ada.policy.steps import decided_steps, decision_step
from ada.reinforce import AdvantageKind
from ada.rewards import WeightedReward
from ada.rollouts import FrozenPipeline, probe
from ada.training.errors import agree, together
from ada.training.pictures import RolloutPictures
from ada.training.sampling import Draw, SampledRollout, Sampler
from ada.training.signals import STATIC_PERIODS, group_signals, static_decisions, update_signals
from blockdance import Reuse

WEIGHT_NAMES = ("smallest", "middle", "largest")
"""Of the λ that validation decides at."""


class StepTraining(LightningModule):
    """Trains a `StepPolicy` by policy gradient over a frozen pipeline, with new rollouts at every step (the paper's algorithm).

    Args:
        pipeline: the frozen pipeline. It is no part of `state_dict`.
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
        seed: of the network, the noise, λ and the sampled schedules; None for that of the command line (`seed_everything`), or 0.
        tape: folder of the tape, which keeps the references and the outputs of the steps before ρ for later epochs and runs; None
            keeps them in memory alone.
        tape_memory, tape_disk: most that it takes in memory and on disk, in GiB and by process.
        table: folder of the tables, which keep what came of every schedule of every prompt: it is not run again, in this run or another of
            the same settings. None runs every schedule that is drawn, as a reward needs that depends on other images (`normalisation`).
    """

    def __init__(
        self,
        pipeline: FrozenPipeline,
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
        seed: int | None = None,
        tape: Path | None = None,
        tape_memory: float = 1.0,
        tape_disk: float = 16.0,
        table: Path | None = None,
    ) -> None:
        super().__init__()
        low, high = reinforce.check_quality_weights(quality_weight_range)
        check_counts(group_size=group_size, updates_per_rollout=updates_per_rollout)
        reinforce.check_group(advantage, group_size)
        if updates_per_rollout > 1 and clip_range is None:
            raise ValueError("`updates_per_rollout` above 1 reuses a rollout off policy: set `clip_range`, such as 0.2.")
        self.automatic_optimization = False
        self.pipeline, self.reward = pipeline, reward
        reward.before_sharing = agree
        self.quality_weight_range = (low, high)
        self.group_size, self.advantage, self.entropy_weight = group_size, advantage, entropy_weight
        self.updates_per_rollout, self.clip_range = updates_per_rollout, clip_range
        self.learning_rate, self.warmup_rollouts, self.gradient_clip = learning_rate, warmup_rollouts, gradient_clip
        self.seed = seed or 0
        steps = pipeline.num_inference_steps
        if not decided_steps(prefix, forced_tail, steps):
            raise ValueError(
                f"With {steps} steps, `prefix` {prefix} and `forced_tail` {forced_tail}, no step is left to decide."
            )
        self.kinds = tuple(kinds)
        self._network: dict[str, Any] = {
            "prefix": prefix, "forced_tail": forced_tail, "hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads,
        }  # fmt: skip
        first = decision_step(prefix, steps)
        self.sampler = Sampler(pipeline, reward, tape, tape_memory, tape_disk, kinds, first, table)
        self.policy: StepPolicy
        self.reward_mean: Tensor
        self.register_buffer("reward_mean", torch.zeros(()))  # running mean, the baseline of the `ema` advantage
        self.validation_history: list[dict[str, float]] = []
        self._static_rewards: dict[str, float] = {}
        self._pictures: RolloutPictures | None = None

    def setup(self, stage: str) -> None:
        """Moves what is frozen to the device of the run, and makes the policy for what is found there."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PromptDataModule)
        device = self.trainer.strategy.root_device
        self.pipeline.to(device)
        self.reward.to(device)
        if "policy" not in self._modules:  # else it was validated before, or trained
            self.prepare(data.train_prompts[0]["prompt"])

    def prepare(self, prompt: Any) -> None:
        """Makes a fresh policy; one generation of any prompt tells what it will see, and what reuse costs."""
        found = probe(self.pipeline, self.kinds, prompt)
        low, high = self.quality_weight_range
        prompt = found.state.prompt_embeds
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.policy = StepPolicy(
                base_model=asdict(BaseModel.of(self.pipeline.transformer, self.pipeline.model)),
                feature_width=found.state.features.shape[-1],
                prompt_width=0 if prompt is None else prompt.shape[-1],
                kinds=[asdict(kind) for kind in self.kinds],
                action_costs=[1.0, *found.reuse_costs],
                quality_weight=math.sqrt(low * high),
                quality_weight_range=[low, high],
                **self._network,
            )

    # --- training ---

    def training_step(self, batch: dict[str, Any]) -> None:
        prompts, indices = list(batch["prompt"]), batch["index"].tolist()
        generators = [self._generator(index) for index in indices]
        weights = self._draw_quality_weights(generators).to(self.device)

        with_greedy = self.advantage == "self_critical"
        group = self.group_size + with_greedy

        def draw(logits: Tensor) -> Tensor:
            pairs = zip(logits, generators, strict=True)
            drawn = torch.cat([reinforce.sample_actions(row[None], self.group_size, generator) for row, generator in pairs])
            return torch.cat([drawn, logits.argmax(-1)[:, None]], 1) if with_greedy else drawn

        started = monotonic()
        noise = [noise_seed(self.seed, index) for index in indices]
        rollout = together(lambda: self._roll_out(prompts, noise, weights, draw, group))
        self.log("train/images_per_second", len(prompts) * group / (monotonic() - started))
        state, decisions = _outside_inference(rollout.state), rollout.decisions[:, : self.group_size].clone()
        rewards = reinforce.reward(rollout.compute_saved, rollout.quality, weights)
        greedy = rewards[:, -1] if self.advantage == "self_critical" else None
        rewards = rewards[:, : self.group_size]
        advantages = reinforce.advantages(rewards, self.advantage, greedy, float(self.reward_mean))
        advantages = advantages * rollout.kept[:, : self.group_size]
        self._update_reward_mean(rewards)
        old_log_probs = reinforce.log_prob(rollout.logits.clone(), decisions)
        signals = group_signals(decisions, rewards)
        for _ in range(self.updates_per_rollout):
            signals |= self._update(state, weights, decisions, advantages, old_log_probs)
        self._advance_learning_rate()
        self._log_training(rollout, rewards, advantages, signals)

    def _update(
        self, state: Any, weights: Tensor, decisions: Tensor, advantages: Tensor, old_log_probs: Tensor
    ) -> dict[str, Tensor]:
        """One gradient step; returns the gradient's norm before clipping, and how far the update is from the rollout's policy."""
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
        return {"gradient_norm": norm} | update_signals(log_probs, old_log_probs, self.clip_range)

    def _roll_out(
        self, prompts: Sequence[Any], seeds: Sequence[int], weights: Tensor, draw: Draw, group: int, with_images: bool = False
    ) -> SampledRollout:
        """A group of schedules of every prompt; the reward learns its statistics from those of training."""
        return self.sampler.roll_out(self.policy, prompts, seeds, weights, draw, group, self.training, with_images)

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

    def _log_training(self, rollout: SampledRollout, rewards: Tensor, advantages: Tensor, signals: dict[str, Tensor]) -> None:
        self.log_dict(
            {
                "train/reward": rewards.mean(),
                "train/quality": rollout.quality.mean(),
                "train/compute_saved": rollout.compute_saved.mean(),
                "train/entropy": reinforce.entropy(rollout.logits).mean(),
                "train/advantage_spread": advantages.std(),
                **{f"train/{name}": value for name, value in signals.items()},
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
        self._pictures = None

    def validation_step(self, batch: dict[str, Any]) -> None:
        low, high = self.quality_weight_range
        weights = torch.tensor([low, math.sqrt(low * high), high], device=self.device)
        prompts = [prompt for prompt in batch["prompt"] for _ in weights]
        seeds = [noise_seed(self.seed, index, VALIDATION) for index in batch["index"].tolist() for _ in weights]
        is_pictured = self._pictures is None and self.trainer.is_global_zero
        rollout = self._roll_out(prompts, seeds, weights.repeat(len(batch["prompt"])), _greedy, 1, with_images=is_pictured)
        rewards = reinforce.reward(rollout.compute_saved, rollout.quality, weights.repeat(len(batch["prompt"])))
        at_weights = dict(zip(WEIGHT_NAMES, rewards.view(-1, len(weights)).mean(0), strict=True))
        self.log_dict(
            {
                "validation/reward": rewards.mean(),
                "validation/quality": rollout.quality.mean(),
                "validation/compute_saved": rollout.compute_saved.mean(),
                **{f"validation/quality/{name}": part.mean() for name, part in rollout.parts.items()},
                **{f"validation/reward/{name}": value for name, value in at_weights.items()},
            },
            batch_size=self._weight_of(batch["prompt"]),
            sync_dist=True,
        )
        if not self._static_rewards:
            self._log_static(list(batch["prompt"]), seeds[:: len(weights)], weights)
        if is_pictured:
            self._pictures = RolloutPictures.of(rollout, self.policy, self.pipeline.num_inference_steps)

    def _log_static(self, prompts: list[str], seeds: Sequence[int], weights: Tensor) -> None:
        """Static schedules on the validation prompts; they stay the same, so they are run once."""
        decisions = static_decisions(len(self.policy.decided_steps(self.pipeline.num_inference_steps))).to(self.device)
        ones = torch.ones(len(prompts), device=self.device)
        rollout = self._roll_out(prompts, seeds, ones, lambda logits: decisions.expand(len(logits), -1, -1), len(decisions))
        for name, weight in zip(WEIGHT_NAMES, weights, strict=True):
            means = reinforce.reward(rollout.compute_saved, rollout.quality, ones * weight).mean(0)
            logged = {f"static/{name}/{period}": mean for period, mean in zip(STATIC_PERIODS, means, strict=True)}
            self.log_dict(logged, batch_size=self._weight_of(prompts), sync_dist=True)

    def _weight_of(self, prompts: Sequence[str]) -> int:
        """How much a batch counts in a mean over all processes. Lightning divides the sum of these by the number of processes in whole
        numbers, so that unequal shares of prompts would give another mean."""
        return len(prompts) * self.trainer.world_size

    def _regret(self) -> float:
        """What the best static schedule earns more than the policy at the same λ; negative where the policy earns more."""
        found = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        static = self._static_rewards or {
            name: max(found[f"static/{name}/{period}"] for period in STATIC_PERIODS) for name in WEIGHT_NAMES
        }
        if not self.trainer.sanity_checking:  # which sees a few prompts only
            self._static_rewards = static
        return sum(best - found[f"validation/reward/{name}"] for name, best in static.items()) / len(static)

    def on_validation_epoch_end(self) -> None:
        self.log("validation/regret_to_static", self._regret())
        metrics = {
            name.removeprefix("validation/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        if not self.trainer.sanity_checking:
            self.validation_history.append({"rollouts": self.rollouts, **metrics})
        if self._pictures is not None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._pictures.write(Path(self.trainer.default_root_dir) / "pictures")
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    self._pictures.show(logger.experiment, self.global_step)
        self._pictures = None

    @property
    def rollouts(self) -> int:
        """Rollouts so far; Lightning's `global_step` counts gradient steps."""
        return self.global_step // self.updates_per_rollout

    # --- checkpoints hold what a resumed run needs, and nothing frozen ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validation_history"] = json.dumps(self.validation_history)
        checkpoint["reward_statistics"] = json.dumps(self.reward.state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validation_history = json.loads(checkpoint["validation_history"])
        self.reward.load_state(json.loads(checkpoint.get("reward_statistics", "{}")))  # older checkpoints have none


def _greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)[:, None]


def _outside_inference(state: Any) -> Any:
    """Clones tensors made in inference mode, so that the policy's backward may keep them."""
    return type(state)(**{name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(state).items()})
