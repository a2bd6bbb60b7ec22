"""What each λ saves and changes, measured on held-out prompts: the way from a user's wish to a λ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ada.policy.wishes import WishError


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

    def weight_for_compute(self, compute: float) -> float:
        """λ at which images spend this share of the compute on average; between two that were measured, in proportion of its logarithm, as
        ever more images change their rung on the way from one to the other.

        Raises:
            WishError: no λ does; it says which can be had.
        """
        spent = [1 - saved for saved in self.saved]
        return self._invert(spent, compute, "mean_compute", "a mean compute")

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

    def _invert(self, values: Sequence[float], wanted: float, name: str, what: str) -> float:
        low, high = min(values), max(values)
        if not low - 1e-6 <= wanted <= high + 1e-6:
            raise WishError(
                f"`{name}` must lie between {low:.3f} and {high:.3f}, {what} that this policy can meet; got {wanted}."
            )
        wanted = min(max(wanted, low), high)
        place = next(
            place for place, (one, other) in enumerate(pairwise(values)) if min(one, other) <= wanted <= max(one, other)
        )
        (one, other), (weight, next_weight) = values[place : place + 2], self.quality_weight[place : place + 2]
        part = (wanted - one) / (other - one) if other != one else 0.0
        return float(weight * (next_weight / weight) ** part)
