"""What a batch carries from step to step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blockdance.cache import RowCache
from blockdance.kinds import Keep
from blockdance.kinds.views import Capture


@dataclass
class ReuseState:
    """One cache for everything that a kind of reuse keeps. Rows are ordered branch by branch."""

    num_images: int
    num_branches: int
    caches: dict[Keep, RowCache]

    @staticmethod
    def empty(num_images: int, num_branches: int, histories: Mapping[Keep, Literal[1, 2]]) -> "ReuseState":
        """The state before the first step, for what is kept and the number of outputs of each."""
        rows = num_images * num_branches
        return ReuseState(num_images, num_branches, {keep: RowCache(rows, history) for keep, history in histories.items()})

    @property
    def num_rows(self) -> int:
        return self.num_images * self.num_branches

    def rows_of(self, images: Sequence[int]) -> list[int]:
        """The rows of some images, branch by branch."""
        return [branch * self.num_images + image for branch in range(self.num_branches) for image in images]

    def row_of(self, row: int, images: Sequence[int]) -> int:
        """The row of the same branch that belongs to the image which `images` names for this row's own."""
        return row - row % self.num_images + images[row % self.num_images]

    @property
    def num_bytes(self) -> int:
        """Bytes of all caches."""
        return sum(cache.num_bytes for cache in self.caches.values())

    def output_of(self, block: int) -> RowCache:
        """What is kept of a block's output."""
        return self.caches[Keep(block, Capture)]

    def take(self, images: Sequence[int]) -> "ReuseState":
        """The state of the given images, which may repeat: several continuations of one image share its past."""
        rows = [branch * self.num_images + image for branch in range(self.num_branches) for image in images]
        return self._take_rows(rows, len(images), self.num_branches)

    def with_branches(self, num_branches: int, cond_last: bool) -> "ReuseState":
        """The state for another number of fused guidance branches: the conditional rows keep their past, new ones have none.

        Args:
            num_branches: branches of the next call.
            cond_last: whether the conditional branch is the last; else the first.
        """
        first = (self.num_branches - 1) * self.num_images if cond_last else 0
        conditional = list(range(first, first + self.num_images))
        state = self._take_rows(conditional * num_branches, self.num_images, num_branches)
        kept = num_branches - 1 if cond_last else 0
        fresh = [row for row in range(state.num_rows) if row // self.num_images != kept]
        for cache in state.caches.values():
            cache.forget(fresh)
        return state

    def _take_rows(self, rows: list[int], num_images: int, num_branches: int) -> "ReuseState":
        chosen = [(0, row) for row in rows]
        caches = {keep: RowCache.gather([cache], chosen) for keep, cache in self.caches.items()}
        return ReuseState(num_images, num_branches, caches)

    @staticmethod
    def cat(states: Sequence["ReuseState"]) -> "ReuseState":
        """Several batches at the same step as one."""
        branches = states[0].num_branches
        rows = [
            (index, branch * state.num_images + image)
            for branch in range(branches)
            for index, state in enumerate(states)
            for image in range(state.num_images)
        ]
        num_images = sum(state.num_images for state in states)
        caches = {keep: RowCache.gather([state.caches[keep] for state in states], rows) for keep in states[0].caches}
        return ReuseState(num_images, branches, caches)
