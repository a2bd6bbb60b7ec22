"""What choosing schedules can win: the mixture of static ones, the oracle, and how much of the gap between them a policy closes.

Functions take errors `(cases, schedules)`, lower is better, and what each schedule saves, `(schedules,)`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-9
"""Errors that are nearer to each other are the same."""


@dataclass(frozen=True)
class Mixture:
    """Static schedules, one of two for each image, drawn without looking at it: what a mean budget gives for nothing.

    Args:
        saved: mean compute saved at the corners of the lower convex hull, ascending.
        schedules: the schedule at each corner.
    """

    saved: tuple[float, ...]
    schedules: tuple[int, ...]

    @classmethod
    def of(cls, errors: Tensor, saved: Tensor) -> "Mixture":
        """The best mixtures by mean error: the lower convex hull of (saved, mean error) to the right of the smallest error."""
        means = errors.double().mean(0).tolist()
        points = sorted(
            (float(gain), mean, place) for place, (gain, mean) in enumerate(zip(saved.tolist(), means, strict=True))
        )
        hull: list[tuple[float, float, int]] = []
        for point in points:
            if hull and point[0] == hull[-1][0]:
                if point[1] >= hull[-1][1]:
                    continue
                hull.pop()
            while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        start = min(range(len(hull)), key=lambda corner: (hull[corner][1], -hull[corner][0]))
        return cls(tuple(point[0] for point in hull[start:]), tuple(point[2] for point in hull[start:]))

    def shares(self, level: float, num_schedules: int) -> Tensor:
        """How often each schedule is drawn to save `level` on average: float64 `(schedules,)`, of sum 1.

        Raises:
            ValueError: no mixture saves that much.
        """
        if level > self.saved[-1] + 1e-9:
            raise ValueError(f"The schedules save {self.saved[-1]:.1%} at most; {level:.1%} was asked for.")
        shares = torch.zeros(num_schedules, dtype=torch.float64)
        after = next(corner for corner, saved in enumerate(self.saved) if saved >= level - 1e-9)
        if after == 0:
            shares[self.schedules[0]] = 1.0
            return shares
        low, high = self.saved[after - 1], self.saved[after]
        part = min(1.0, (level - low) / (high - low))
        shares[self.schedules[after - 1]], shares[self.schedules[after]] = 1 - part, part
        return shares

    def errors(self, errors: Tensor, level: float) -> Tensor:
        """Every case's expected error at a level: float64 `(cases,)`; `errors` may be of other cases than those it was made on."""
        return errors.double() @ self.shares(level, errors.shape[1])


def _turns_up(first: tuple[float, float, int], middle: tuple[float, float, int], last: tuple[float, float, int]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


def oracle_errors(errors: Tensor, saved: Tensor, level: float) -> Tensor:
    """Errors `(cases,)` when the cases share the compute as serves their mean error best, saving `level` on average.

    Each case takes the schedule of smallest `error − price · saved`; the price is the one at which the mean saving meets the level
    (Lagrange). Between the two solutions on either side of the level their mixture is taken, which is exact for the convex hull.

    Raises:
        ValueError: no schedule saves that much.
    """
    errors, saved = errors.double(), saved.double()
    if level > float(saved.max()) + 1e-9:
        raise ValueError(f"The schedules save {float(saved.max()):.1%} at most; {level:.1%} was asked for.")
    low, high = 0.0, 1.0

    def choose(price: float) -> Tensor:
        # of equal choices, the one that saves more
        return (errors - price * saved - 1e-12 * saved).argmin(1)

    def mean_saved(price: float) -> float:
        return float(saved[choose(price)].mean())

    if mean_saved(low) >= level:
        return errors.gather(1, choose(low)[:, None])[:, 0]
    while mean_saved(high) < level - 1e-9 and high < 1e9:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_saved(middle) >= level else (middle, high)
    little, much = choose(low), choose(high)
    before, after = float(saved[little].mean()), float(saved[much].mean())
    share = (level - before) / max(after - before, 1e-12)
    return (1 - share) * errors.gather(1, little[:, None])[:, 0] + share * errors.gather(1, much[:, None])[:, 0]


def gap_closed(policy: float, mixture: float, oracle: float) -> float:
    """Share of the gap between the mixture and the oracle that a policy closes, by mean errors at equal mean compute; 0 where there is
    none, but for rounding."""
    return (mixture - policy) / (mixture - oracle) if mixture - oracle > ROUNDING else 0.0
