"""What choosing schedules can win: the best static one, the best one per image, and the best split of compute among images.

All functions take errors `(images, schedules)`, lower is better, and what each schedule saves, `(schedules,)`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ada.evaluation.measure.statistics import Estimate, mean
from ada.evaluation.search import best_static

NUM_SPLITS = 20


@dataclass(frozen=True)
class Level:
    """What can be had at one level of compute; errors are means over images.

    Args:
        saved: the share of the compute that is saved, or more.
        static: the best static schedule, chosen on the images that it is measured on: optimistic.
        mixed: two static schedules, each for a random part of the images, that save as much on average: no adaptivity either.
        held_out: chosen on one half of the images and measured on the other: what a search really gives.
        steps: every image has its own best schedule of those that save as much: which steps, not how many.
        oracle: the images share the compute as serves them best: which steps, and how many.
        gap: held out minus oracle, paired over images: the most that any policy can win.
        blockdance: the best of the given schedules of BlockDance-N; None where none saves as much.
    """

    saved: float
    static: float
    mixed: float
    held_out: Estimate
    steps: float
    oracle: Estimate
    gap: Estimate
    blockdance: float | None


def measure_level(errors: Tensor, saved: Tensor, level: float, periodic: Tensor) -> Level | None:
    """All of a level; None where no schedule saves that much.

    Args:
        errors: `(images, schedules)`.
        saved: `(schedules,)`.
        level: share of the compute to save.
        periodic: places of the schedules of BlockDance-N among all.
    """
    best = best_static(saved, errors, level)
    if best is None:
        return None
    held_out = held_out_errors(errors, saved, level)
    oracle = oracle_errors(errors, saved, level)
    dance = best_static(saved[periodic], errors[:, periodic], level)
    return Level(
        saved=level,
        static=float(errors[:, best].double().mean()),
        mixed=float(oracle_errors(errors.double().mean(0, keepdim=True), saved, level)),
        held_out=mean(held_out.tolist()),
        steps=float(best_steps(errors, saved, level).mean()),
        oracle=mean(oracle.tolist()),
        gap=mean((held_out - oracle).tolist()),
        blockdance=None if dance is None else float(errors[:, periodic[dance]].double().mean()),
    )


def held_out_errors(errors: Tensor, saved: Tensor, level: float, num_splits: int = NUM_SPLITS, seed: int = 0) -> Tensor:
    """Every image's error under the static schedule that was chosen without it: `(images,)`, the mean over random halvings."""
    generator = torch.Generator().manual_seed(seed)
    images = len(errors)
    total = torch.zeros(images, dtype=torch.float64)
    for _ in range(num_splits):
        order = torch.randperm(images, generator=generator)
        halves = (order[: images // 2], order[images // 2 :])
        for chosen_on, measured_on in (halves, halves[::-1]):
            best = best_static(saved, errors[chosen_on], level)
            assert best is not None, "the level was checked before"
            total[measured_on] += errors[measured_on, best].double()
    return total / num_splits


def best_steps(errors: Tensor, saved: Tensor, level: float) -> Tensor:
    """Every image's smallest error among the schedules that save `level` or more: `(images,)`."""
    return errors[:, saved >= level - 1e-9].double().min(1).values


def oracle_errors(errors: Tensor, saved: Tensor, level: float) -> Tensor:
    """Errors `(images,)` when the images share the compute as serves their mean error best, saving `level` on average.

    Each image takes the schedule of smallest `error − price · saved`; the price is the one at which the mean saving meets the
    level (Lagrange). Between the two solutions on either side of the level, their mixture is taken, which is exact for the convex
    hull and never too optimistic.
    """
    errors, saved = errors.double(), saved.double()
    low, high = 0.0, 1.0

    def choose(price: float) -> Tensor:
        # of equal choices, the one that saves more
        return (errors - price * saved - 1e-12 * saved).argmin(1)

    def mean_saved(price: float) -> float:
        return float(saved[choose(price)].mean())

    if mean_saved(low) >= level:
        return errors.gather(1, choose(low)[:, None])[:, 0]
    while mean_saved(high) < level:
        high *= 4
        assert high < 1e12, "the level was checked before"
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_saved(middle) >= level else (middle, high)
    little, much = choose(low), choose(high)
    before, after = float(saved[little].mean()), float(saved[much].mean())
    share = (level - before) / (after - before)
    return (1 - share) * errors.gather(1, little[:, None])[:, 0] + share * errors.gather(1, much[:, None])[:, 0]
