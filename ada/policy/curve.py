"""What each λ saves and changes, measured on held-out prompts: the way from a user's wish to a λ."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ada.policy.wishes import WishError

ROUNDING, TINY = 1e-6, 1e-12
JUMP, CLOSE, NEAR = 0.1, 1.25, 0.02
"""A curve jumps where λ that differ by a quarter at most differ by more than a tenth in the mean share of the compute; what lies near one
end of a jump is met by it."""


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
        ever more images change their rung on the way from one to the other. Where nearly all change at once, as where damage
        saturates, it is the nearer of the two, with a warning.

        Raises:
            WishError: no λ does; it says which can be had.
        """
        spent = [1 - saved for saved in self.saved]
        low, high = min(spent), max(spent)
        if not low - ROUNDING <= compute <= high + ROUNDING:
            raise WishError(
                f"`mean_compute` must lie between {low:.3f} and {high:.3f}, a mean compute that this policy can meet; got {compute}. "
                "`batch_compute` shares a budget among the images of every batch."
            )
        wanted = min(max(compute, low), high)
        place = self._place(wanted)
        (one, other), (weight, next_weight) = spent[place : place + 2], self.quality_weight[place : place + 2]
        if (met := self.met_instead(compute)) is not None:
            warnings.warn(
                f"With `mean_compute={compute:g}` images will spend {met:.2f} on average: at what lies between {min(one, other):.2f} and "
                f"{max(one, other):.2f} this policy changes nearly all of them at once. `batch_compute={compute:g}` meets every batch.",
                stacklevel=3,
            )
        if self._is_jump(place):
            return weight if abs(one - wanted) <= abs(other - wanted) else next_weight
        part = (wanted - one) / (other - one) if other != one else 0.0
        return float(weight * (next_weight / weight) ** part)

    def met_instead(self, compute: float) -> float | None:
        """The mean share that images spend in place of this one, which lies in a jump of the curve; None where they meet it."""
        if not 1 - max(self.saved) <= compute <= 1 - min(self.saved):
            return None
        place = self._place(compute)
        nearest = min((1 - saved for saved in self.saved[place : place + 2]), key=lambda spent: abs(spent - compute))
        return nearest if self._is_jump(place) and abs(nearest - compute) > NEAR else None

    def _is_jump(self, place: int) -> bool:
        (saved, next_saved), (weight, next_weight) = self.saved[place : place + 2], self.quality_weight[place : place + 2]
        return abs(saved - next_saved) > JUMP and next_weight <= CLOSE * weight

    def _place(self, compute: float) -> int:
        """The first of the neighbouring λ that spend this share of the compute between them."""
        return next(
            place
            for place, (saved, next_saved) in enumerate(pairwise(self.saved))
            if min(saved, next_saved) <= 1 - compute + TINY and 1 - compute - TINY <= max(saved, next_saved)
        )

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
