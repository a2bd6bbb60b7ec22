"""Reuse of everything up to a boundary: BlockDance (arXiv 2503.15927)."""

import math
from dataclasses import dataclass
from typing import Literal

from blockdance.errors import ScheduleError, StepUnknownError
from blockdance.kinds.base import Keep, StandIn
from blockdance.kinds.views import Capture, FittingReplay, Pass, Replay
from blockdance.layouts import BlockStack


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Skips the blocks up to a boundary and starts after it from what it gave at the last computed steps."""

    boundary: int
    """Index, in execution order, of the last block that a reuse step skips."""
    order: Literal[0, 1] = 0
    """0 injects the cached output as it is (the paper); 1 extrapolates it linearly in the noise level."""
    weight: float = 1.0
    """Share of the linear extrapolation that is applied; only order 1 uses it."""

    def __post_init__(self) -> None:
        if self.boundary < 0:
            raise ScheduleError(f"`boundary` must be the index of a block, 0 or more; got {self.boundary}.")
        if self.order not in (0, 1):
            raise ScheduleError(f"`order` must be 0 (inject as it is) or 1 (extrapolate); got {self.order!r}.")

    @property
    def skipped_blocks(self) -> tuple[int, ...]:
        """The blocks that do not run."""
        return tuple(range(self.boundary + 1))

    def keeps(self, stack: BlockStack) -> tuple[Keep, ...]:
        """The boundary's output, and those before it that blocks after it read again."""
        sources = {
            source
            for reader, read in stack.long_skips.items()
            if reader > self.boundary
            for source in read
            if source < self.boundary
        }
        return tuple(Keep(position, Capture) for position in (self.boundary, *sorted(sources)))

    def stand_in(self, position: int, stack: BlockStack) -> StandIn | None:
        """A replay of what was kept. A block whose output nobody reads gives the boundary's, which has the right form; in another
        list, whose blocks give another form, it passes on what it was given."""
        if position > self.boundary:
            return None
        replay = FittingReplay if stack.layout.pads_to_longest else Replay
        keep = Keep(position, Capture)
        if keep in self.keeps(stack):
            return StandIn(replay, keep)
        if stack.list_of(position) != stack.list_of(self.boundary):
            return StandIn(Pass)
        return StandIn(replay, Keep(self.boundary, Capture))

    def slope(self, sigma: float, newest: float, previous: float) -> float:
        """w·(σ − σ₁)/(σ₁ − σ₀); 0 where both computed steps had the same noise level, as in Heun's second half-steps.

        Raises:
            StepUnknownError: a noise level is not known.
        """
        if math.isnan(sigma + newest + previous):
            raise StepUnknownError(
                "Extrapolation (order 1) needs the noise levels, which neither scheduler, context nor timestep tells here. Apply "
                "BlockDance to the pipeline, or use order 0."
            )
        return 0.0 if newest == previous else self.weight * (sigma - newest) / (newest - previous)

    def __str__(self) -> str:
        weight = f", weight {self.weight:g}" if self.order == 1 and self.weight != 1 else ""
        return f"after block {self.boundary}, order {self.order}{weight}"
