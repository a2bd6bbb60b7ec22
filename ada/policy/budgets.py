"""Exact budgets: how much each image of a batch may save, and which schedule saves just that. Pure tensor functions.

Shares are of the denoising compute of one image. Everything stays on its device and in its shapes, so that
deciding needs no synchronisation.
"""

import torch
from torch import Tensor

ROUNDING = 1e-6


def share_budget(damage: Tensor, saved: Tensor, is_open: Tensor, done: Tensor, wanted: float) -> Tensor:
    """What each image should save, so that the images save `wanted` on average and are damaged least: `(images,)`.

    Each image goes along the lower convex hull of its schedules, saving ever more, and every move costs damage for what it saves. The
    cheapest moves of all images are taken until the budget is met; the last one as far as it is needed. Where even the schedules that
    save least save too much, the images that are expected to be damaged most leave them and compute, down to what they have saved.

    Args:
        damage: expected of every schedule, `(images, schedules)`.
        saved: share that each saves, the same shape.
        is_open: which of them an image can still take, bool of the same shape.
        done: share that each image has saved already, `(images,)`; one that can take no schedule saves no more.
        wanted: mean share to save; where neither open schedules nor computing can, what comes nearest.
    """
    place = torch.where(is_open, saved, torch.inf).argmin(1, keepdim=True)
    start, prices, gains = torch.where(is_open.any(1), saved.gather(1, place)[:, 0], done), [], []
    surplus = start.sum() - wanted * len(saved)
    most_damaged = damage.gather(1, place)[:, 0].argsort(descending=True, stable=True)
    start = start - _first(start - done, most_damaged, surplus)
    for _ in range(saved.shape[1] - 1):
        more, cost = saved - saved.gather(1, place), damage - damage.gather(1, place)
        price = torch.where(is_open & (more > ROUNDING), cost / more.clamp(min=ROUNDING), torch.inf)
        lowest, following = price.min(1, keepdim=True)
        following = torch.where(lowest.isfinite(), following, place)
        prices.append(lowest[:, 0])
        gains.append(saved.gather(1, following)[:, 0] - saved.gather(1, place)[:, 0])
        place = following
    gain, cheapest = torch.stack(gains, 1), torch.stack(prices, 1).flatten().argsort(stable=True)
    return start + _first(gain.flatten(), cheapest, -surplus).view_as(gain).sum(1)


def _first(amounts: Tensor, order: Tensor, wanted: Tensor) -> Tensor:
    """How much of each amount is taken, in that order, until they are `wanted` in all; none where that is negative."""
    ordered = amounts[order]
    left = (wanted - ordered.cumsum(0) + ordered).clamp(min=0)
    taken = torch.zeros_like(amounts)
    taken[order] = ordered.minimum(left)
    return taken


def trim(actions: Tensor, step_saves: Tensor, step: int, target: Tensor) -> Tensor:
    """Computes the last steps that reuse, as many as bring a schedule nearest to its target: int64 `(images, schedules, num_steps)`.

    Args:
        actions: int64 `(images, schedules, num_steps)`.
        step_saves: share that a step of each action saves, `(actions,)`; nothing, of the first, which computes.
        step: the first step that is still open.
        target: share that each image should save, `(images,)`.
    """
    saves = step_saves[actions]
    saved_before = saves.cumsum(-1) - saves
    is_spare = saved_before + saves / 2 >= target[:, None, None] - ROUNDING
    is_open = torch.arange(actions.shape[-1], device=actions.device) >= step
    return actions.masked_fill(is_spare & is_open, 0)


def nearest(
    trimmed: Tensor, actions: Tensor, step_saves: Tensor, target: Tensor, is_open: Tensor, tolerance: float | Tensor
) -> Tensor:
    """Which schedules come nearest to the target, and of them those from which least was trimmed: bool `(images, schedules)`.

    Args:
        trimmed: what `trim` made of `actions`.
        actions, step_saves, target: as there.
        is_open: which of them an image can still take, bool `(images, schedules)`.
        tolerance: share by which one may be farther off, so that what was searched for as a whole is not cut.
    """
    reached = step_saves[trimmed].sum(-1)
    distance = (reached - target[:, None]).abs().masked_fill(~is_open, torch.inf)
    is_near = is_open & (distance <= distance.min(1, keepdim=True).values + tolerance)
    cut = (step_saves[actions].sum(-1) - reached).masked_fill(~is_near, torch.inf)
    return is_near & (cut <= cut.min(1, keepdim=True).values + ROUNDING)
