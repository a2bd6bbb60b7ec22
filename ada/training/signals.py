"""What training logs beside its losses: signs that it learns, stalls or runs away."""

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ada.rewards.damage import bounded_damage
from ada.training.ladder import LadderTraining
from ada.training.outcome import choose_rungs

STATIC_PERIODS = (1, 2, 3, 4)
"""Of the static schedules that sampled ones are held against: every N-th decided step computes (BlockDance-N; 1 reuses nothing)."""


def update_signals(log_probs: Tensor, old_log_probs: Tensor, clip_range: float | None) -> dict[str, Tensor]:
    """How far an update is from the policy that its schedules were drawn from.

    Args:
        log_probs, old_log_probs: `(prompts, group)`.
        clip_range: ε; None for none.

    Returns:
        `ratio_mean`, 1 at a rollout's first update; `approximate_kl`, Schulman's (r − 1) − log r, which is never negative; and
        `clip_fraction`, the share of the schedules outside of 1 ± ε.
    """
    log_ratio = (log_probs - old_log_probs).detach()
    ratio = log_ratio.exp()
    outside = torch.zeros_like(ratio) if clip_range is None else ((ratio - 1).abs() > clip_range).float()
    return {"ratio_mean": ratio.mean(), "approximate_kl": (ratio - 1 - log_ratio).mean(), "clip_fraction": outside.mean()}


def group_signals(decisions: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """How different the schedules of a rollout are.

    Args:
        decisions: int64 `(prompts, group, decisions)`.
        rewards: `(prompts, group)`.

    Returns:
        `distinct_schedules` among all, and `zero_spread`, the share of the groups whose rewards are all the same: they teach nothing.
    """
    distinct = torch.unique(decisions.flatten(0, 1), dim=0).shape[0]
    spread = rewards.max(1).values - rewards.min(1).values
    return {"distinct_schedules": torch.tensor(float(distinct)), "zero_spread": (spread == 0).float().mean()}


def static_decisions(num_decisions: int) -> Tensor:
    """The static schedules of `STATIC_PERIODS` in the first kind of reuse: int64 `(schedules, decisions)`."""
    places = torch.arange(num_decisions)
    return torch.stack([(places % period != 0).long() for period in STATIC_PERIODS])


def greedy_signals(rungs: Tensor, cost: Tensor, saved: Tensor, quality_weights: Tensor) -> dict[str, float]:
    """What a ladder's policy decides, beside the best that every image could be given alike.

    Args:
        rungs: what it takes at each λ, int64 `(weights, cases)`.
        cost: bounded damage `(cases, rungs)`.
        saved: C of every rung, `(rungs,)`.
        quality_weights: λ, `(weights,)`.

    Returns:
        `distinct_schedules` among all that it takes, and `regret_to_static`: what the best single rung earns more at the same λ, mean over
        λ; negative where the policy earns more.
    """
    rewards = saved - quality_weights[:, None, None] * cost
    earned = rewards.gather(2, rungs[..., None]).mean((1, 2))
    regret = (rewards.mean(1).max(1).values - earned).mean()
    return {"distinct_schedules": float(len(rungs.unique())), "regret_to_static": float(regret)}


class GreedySignals(Callback):
    """Logs, every `check_val_every_n_epoch` epochs and after the last, what a ladder's policies decide on the cases that each of them is
    not trained on, at the smallest, middle and largest λ. Nothing is chosen by it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LadderTraining)
        done = trainer.current_epoch + 1
        if trainer.logger is None or not trainer.is_global_zero:
            return
        if done % (trainer.check_val_every_n_epoch or 1) and done != trainer.max_epochs:
            return
        low, high = pl_module.quality_weight_range
        weights, parts = [low, math.sqrt(low * high), high], pl_module.judged()
        rungs = torch.cat([choose_rungs(part.policy, pl_module.tree, part.sights, weights) for part in parts], 1)
        cost = bounded_damage(torch.cat([part.damage for part in parts]), pl_module.data.visible_damage)
        saved = parts[0].policy.ladder.saved(parts[0].policy.reuse_costs).to(cost)
        found = greedy_signals(rungs, cost, saved, cost.new_tensor(weights))
        trainer.logger.log_metrics({f"validation/{name}": value for name, value in found.items()}, trainer.global_step)
