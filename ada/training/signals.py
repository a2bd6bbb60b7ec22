"""What training with sampled schedules logs beside its losses: signs that it learns, stalls or runs away."""

import torch
from torch import Tensor

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
