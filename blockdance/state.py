"""What a batch carries from step to step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from blockdance.cache import BoundaryCache
from blockdance.schedule import BlockReuse, Kind


@dataclass
class ReuseState:
    """One cache per boundary, and one per block that is reused individually. Rows are ordered branch by branch."""

    num_images: int
    num_branches: int
    caches: dict[int, BoundaryCache]
    changes: dict[int, BoundaryCache]
    shapes: dict[int, Any] = field(default_factory=dict)
    """Shapes that the views' placeholders take; guidance branches differ in the length of their prompts."""

    @staticmethod
    def empty(
        num_images: int, num_branches: int, histories: Mapping[int, Literal[1, 2]], blocks: Iterable[int]
    ) -> "ReuseState":
        """The state before the first step, for boundaries with the number of outputs that each keeps, and single blocks."""
        rows = num_images * num_branches
        return ReuseState(
            num_images,
            num_branches,
            {boundary: BoundaryCache(rows, history) for boundary, history in histories.items()},
            {block: BoundaryCache(rows, history=1) for block in blocks},
        )

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
        """Bytes of all caches, each storage counted once."""
        storages: dict[int, int] = {}
        for cache in (*self.caches.values(), *self.changes.values()):
            storages |= cache.storages
        return sum(storages.values())

    def serves(self, kind: Kind, image: int) -> bool:
        """Whether every branch of an image has computed often enough for a kind of reuse."""
        rows = range(image, self.num_rows, self.num_images)
        caches = (
            [self.changes[block] for block in kind.blocks] if isinstance(kind, BlockReuse) else [self.caches[kind.boundary]]
        )
        return all(cache.serves(kind, row) for cache in caches for row in rows)

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
        for cache in (*state.caches.values(), *state.changes.values()):
            cache.forget(fresh)
        return state

    def _take_rows(self, rows: list[int], num_images: int, num_branches: int) -> "ReuseState":
        caches = {boundary: cache.take(rows) for boundary, cache in self.caches.items()}
        changes = {block: cache.take(rows) for block, cache in self.changes.items()}
        return ReuseState(num_images, num_branches, caches, changes, self.shapes)

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
        first = states[0]
        return ReuseState(
            sum(state.num_images for state in states),
            branches,
            {name: BoundaryCache.gather([state.caches[name] for state in states], rows) for name in first.caches},
            {name: BoundaryCache.gather([state.changes[name] for state in states], rows) for name in first.changes},
            first.shapes,
        )
