"""What a batch carries from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from blockdance.cache import RowCache
from blockdance.gathered import GatheredInputs
from blockdance.kinds import Keep
from blockdance.kinds.views import Capture
from blockdance.rows import RowPlan
from blockdance.schedule import COMPUTE


@dataclass
class ReuseState:
    """One cache for everything that a kind of reuse keeps. Rows are ordered branch by branch."""

    num_images: int
    num_branches: int
    caches: dict[Keep, RowCache]
    inputs: GatheredInputs = field(default_factory=GatheredInputs)

    @staticmethod
    def empty(num_images: int, num_branches: int, histories: Mapping[Keep, Literal[1, 2]]) -> "ReuseState":
        """The state before the first step, for what is kept and the number of outputs of each."""
        rows = num_images * num_branches
        return ReuseState(num_images, num_branches, {keep: RowCache(rows, history) for keep, history in histories.items()})

    @property
    def num_rows(self) -> int:
        return self.num_images * self.num_branches

    @property
    def num_bytes(self) -> int:
        """Bytes of all caches."""
        return sum(cache.num_bytes for cache in self.caches.values())

    def output_of(self, block: int) -> RowCache:
        """What is kept of a block's output."""
        return self.caches[Keep(block, Capture)]

    def newest(self) -> tuple[Any, ...]:
        """What every cache was given last, in its own memory."""
        return tuple(cache.newest for cache in self.caches.values())

    def put(self, kept: tuple[Any, ...], sigma: float) -> None:
        """Gives every cache what a step at noise level `sigma` left for all rows, as `newest` gave it."""
        placement = RowPlan.of((COMPUTE,) * self.num_images, None, self.num_branches).groups[0].placement
        for cache, value in zip(self.caches.values(), kept, strict=True):
            cache.store(value, sigma, placement)

    def with_branches(self, num_branches: int, cond_last: bool) -> "ReuseState":
        """The state for another number of fused guidance branches: the conditional rows keep their past, new ones have none.

        Args:
            num_branches: branches of the next call.
            cond_last: whether the conditional branch is the last; else the first.
        """
        first = (self.num_branches - 1) * self.num_images if cond_last else 0
        conditional = list(range(first, first + self.num_images))
        caches = {keep: cache.take(conditional * num_branches) for keep, cache in self.caches.items()}
        state = ReuseState(self.num_images, num_branches, caches)
        kept = num_branches - 1 if cond_last else 0
        fresh = [row for row in range(state.num_rows) if row // self.num_images != kept]
        for cache in state.caches.values():
            cache.forget(fresh)
        return state
