"""What each λ saves and changes, measured on held-out prompts: the way from a user's wish to a λ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ada.policy.wishes import WishError

ROUNDING = 1e-6
JUMP, CLOSE = 0.1, 1.25
"""A curve jumps where λ that differ by a quarter at most differ by more than this in the mean share of the compute."""


@dataclass(frozen=True)
class Curve:
    """A policy's measured curve; all of equal length, ordered by λ.

    Args:
        quality_weight: λ, ascending.
        saved: mean share of the compute saved, falling.
        damage: mean bounded damage.
        changed: share of the images visibly changed.
    """

    quality_weight: Sequence[float]
    saved: Sequence[float]
    damage: Sequence[float]
    changed: Sequence[float]

    def to_dict(self) -> dict[str, Any]:
        return {name: [round(float(value), 6) for value in values] for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Curve":
        """The curve that `to_dict` gave.

        Raises:
            ValueError: it is no curve of two points or more.
        """
        curve = cls(**content)
        columns = list(asdict(curve).values())
        is_whole = len(curve.saved) > 1 and len(set(map(len, columns))) == 1
        if not is_whole or not all(math.isfinite(value) for values in columns for value in values):
            raise ValueError("`curve` must have equally many numbers, two or more, of every quantity.")
        if sorted(curve.quality_weight) != list(curve.quality_weight):
            raise ValueError("`curve` must be ordered by `quality_weight`.")
        return curve

    def reachable(self) -> list[tuple[float, float]]:
        """The mean shares of the compute that some λ spends: ranges from least to most.

        Between neighbouring λ ever more images change their rung, so every mean between is met; where they all change at once, none is.
        """
        points = [(1 - saved, 1 - saved) for saved in self.saved]
        ranges: list[tuple[float, float]] = []
        for low, high in sorted([*points, *(tuple(sorted(pair)) for pair in self._steps().values())]):
            if ranges and low <= ranges[-1][1]:
                ranges[-1] = ranges[-1][0], max(high, ranges[-1][1])
            else:
                ranges.append((low, high))
        return ranges

    def spends(self, compute: float) -> bool:
        """Whether some λ spends this share of the compute on average."""
        return any(low - ROUNDING <= compute <= high + ROUNDING for low, high in self.reachable())

    def weight_for_compute(self, compute: float) -> float:
        """λ at which images spend this share of the compute on average; between two that were measured, in proportion of its logarithm.

        Raises:
            WishError: no λ does; it says which can be had.
        """
        ranges = self.reachable()
        if not self.spends(compute):
            raise WishError(
                f"`mean_compute` must lie between {' or between '.join(f'{low:.3f} and {high:.3f}' for low, high in ranges)}, a mean "
                f"compute that this policy can meet; got {compute}. `batch_compute` shares a budget among the images of every batch."
            )
        wanted = min(max(compute, ranges[0][0]), ranges[-1][1])
        for place, pair in self._steps().items():
            if min(pair) - ROUNDING <= wanted <= max(pair) + ROUNDING:
                weight, next_weight = self.quality_weight[place : place + 2]
                part = (wanted - pair[0]) / (pair[1] - pair[0]) if pair[1] != pair[0] else 0.0
                return float(weight * (next_weight / weight) ** part)
        return min(zip(self.saved, self.quality_weight, strict=True), key=lambda point: abs(1 - point[0] - wanted))[1]

    def _steps(self) -> dict[int, tuple[float, float]]:
        """What neighbouring λ spend, by the place of the first; without the jumps."""
        return {
            place: (1 - saved, 1 - next_saved)
            for place, ((weight, saved), (next_weight, next_saved)) in enumerate(
                pairwise(zip(self.quality_weight, self.saved, strict=True))
            )
            if abs(saved - next_saved) <= JUMP or next_weight > CLOSE * weight
        }

    def weight_for_changed(self, changed: float) -> float:
        """The smallest λ at which no more than this share of the images is visibly changed.

        Raises:
            WishError: it is no share, or no λ keeps to it.
        """
        least = self.changed[-1]
        if not least <= changed <= 1:
            raise WishError(
                f"`quality` must lie between {least:.3f} and 1, a share of the images: so many change at the largest λ; got {changed}."
            )
        return next(
            weight
            for place, weight in enumerate(self.quality_weight)
            if all(later <= changed for later in self.changed[place:])
        )
