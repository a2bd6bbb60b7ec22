"""What each λ saves and changes, measured on held-out prompts: the way from a user's wish to a λ."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ada.policy.wishes import WishError

ROUNDING, TINY = 1e-6, 1e-12
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

    def weight_for_compute(self, compute: float) -> float:
        """λ at which images spend this share of the compute on average; between two that were measured, in proportion of its logarithm, as
        ever more images change their rung on the way from one to the other. Within a jump, a warning says what they may spend instead.

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
        if jump := self.jump(compute):
            warnings.warn(
                f"Where this policy would spend {compute:g} on average, nearly all images change at once: they may spend {jump[0]:.2f} or "
                f"{jump[1]:.2f} instead. `batch_compute={compute:g}` meets it in every batch.",
                stacklevel=3,
            )
        wanted = min(max(compute, low), high)
        place = self._place(wanted)
        (one, other), (weight, next_weight) = spent[place : place + 2], self.quality_weight[place : place + 2]
        part = (wanted - one) / (other - one) if other != one else 0.0
        return float(weight * (next_weight / weight) ** part)

    def jump(self, compute: float) -> tuple[float, float] | None:
        """The mean shares of the compute on either side of the jump in which this share lies; None where it lies in none.

        Between neighbouring λ ever more images change their rung, so every mean between is met. Where nearly all change at once, as
        where damage saturates, none is.
        """
        if not 1 - max(self.saved) < compute < 1 - min(self.saved):
            return None
        place = self._place(compute)
        low, high = sorted(1 - saved for saved in self.saved[place : place + 2])
        weight, next_weight = self.quality_weight[place : place + 2]
        is_within = low + ROUNDING < compute < high - ROUNDING
        return (low, high) if is_within and high - low > JUMP and next_weight <= CLOSE * weight else None

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
