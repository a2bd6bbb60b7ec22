"""One call for a batch whose images take different actions: the rows that compute enter at the first block, the others join behind the
boundary up to which they reuse, and the blocks after it run on the whole batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from blockdance.cache import RowCache
from blockdance.kinds import Keep, Kind
from blockdance.kinds.views import Capture, Slot, View
from blockdance.layouts import BlockLayout, BlockStack
from blockdance.pieces import Joiner, Placement, RowSet, pieces_of
from blockdance.rows import RowPlan
from blockdance.schedule import COMPUTE
from blockdance.trees import map_tensors

Ending = tuple[int, int]
"""Boundary and order of a kind of reuse."""


@dataclass(frozen=True)
class Stage:
    """The blocks from where rows joined to the boundary after which the next ones do.

    Args:
        end: that boundary; the last stage has none.
        rows: the rows that run.
        computing: which of these compute every block.
        placement: where those belong in the batch.
        joining: the rows that are read from what was kept when it is over, and for which action.
        joiner: puts what its last block gives, and what was read, in the order of the batch; None where all rows are read, as those that
            compute have just been kept with those that join.
    """

    end: int | None
    rows: RowSet
    computing: RowSet
    placement: Placement
    joining: tuple[tuple[int, RowSet], ...] = ()
    joiner: Joiner | None = None


def endings_of(kinds: Sequence[Kind], stack: BlockStack) -> tuple[Ending, ...]:
    """The ending of every kind of reuse; none at all where one of them skips other blocks, or needs more than a boundary's output."""
    ends = tuple(kind.skipped_blocks[-1] for kind in kinds)
    is_boundary = all(
        kind.skipped_blocks == tuple(range(end + 1)) and kind.keeps(stack) == (Keep(end, Capture),)
        for kind, end in zip(kinds, ends, strict=True)
    )
    return tuple((end, kind.order) for kind, end in zip(kinds, ends, strict=True)) if is_boundary else ()


@lru_cache(maxsize=1024)
def stages_of(plan: RowPlan, endings: tuple[Ending, ...]) -> tuple[Stage, ...]:
    """The stages of a call in which some rows compute, for the ending of every kind of reuse."""
    groups = {group.action: group for group in plan.groups}
    computing = groups.pop(COMPUTE)
    num_rows, placement = computing.rows.num_rows, computing.placement
    stages, active = [], computing.rows.rows
    for end in sorted({endings[action - 1][0] for action in groups}):
        joining = tuple((action, group.rows) for action, group in groups.items() if endings[action - 1][0] == end)
        parts = (active, *(rows.rows for _, rows in joining))
        sources = sorted((row, part, place) for part, rows in enumerate(parts) for place, row in enumerate(rows))
        rows, among = RowSet(active, num_rows), _within(active, computing.rows)
        if among.is_whole and len(sources) == num_rows and not any(endings[action - 1][1] for action, _ in joining):
            stages.append(Stage(end, rows, among, placement, ((joining[0][0], RowSet(range(num_rows), num_rows)),)))
        else:
            pieces = pieces_of([(place, part, source) for place, (_, part, source) in enumerate(sources)])
            stages.append(Stage(end, rows, among, placement, joining, Joiner(pieces, [len(part) for part in parts])))
        active = tuple(row for row, _, _ in sources)
    stages.append(Stage(None, RowSet(active, num_rows), _within(active, computing.rows), placement))
    return tuple(stages)


def _within(active: tuple[int, ...], rows: RowSet) -> RowSet:
    """Where the rows lie among the active ones."""
    return RowSet([active.index(row) for row in rows.rows], len(active))


class Flow:
    """What the views of one call share: which rows run now, and what is done where others join."""

    def __init__(self) -> None:
        self._stages: list[Stage] = []
        self._caches: Mapping[int, RowCache] = {}
        self._sigma = math.nan
        self._read: Callable[[int, RowSet], Any] = lambda action, rows: None
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}
        self.is_whole = True
        """Whether all rows run now."""

    def begin(
        self, stages: Sequence[Stage], caches: Mapping[int, RowCache], sigma: float, read: Callable[[int, RowSet], Any]
    ) -> None:
        """A call begins.

        Args:
            stages: what it consists of.
            caches: of every block at a boundary: they keep what the rows that compute gave.
            sigma: noise level of this step.
            read: gives what an action reads for rows.
        """
        self._stages, self._caches, self._sigma, self._read = list(reversed(stages)), caches, sigma, read
        self.is_whole = False

    def end(self) -> None:
        """The call is over: lets go of every tensor."""
        self._stages, self._caches, self._read = [], {}, lambda action, rows: None
        self._taken.clear()

    def enter(self, argument: Any) -> Any:
        """A block's argument for the rows that run: what has a row for each of the batch is narrowed, once for all blocks."""
        known = self._taken.get(id(argument))
        if known is not None:
            return known[1]
        return self._take(argument) if isinstance(argument, Tensor) else map_tensors(self._take, argument)

    def _take(self, leaf: Tensor) -> Tensor:
        rows = self._stages[-1].rows
        if not leaf.ndim or leaf.size(0) != rows.num_rows:
            return leaf
        known = self._taken.get(id(leaf))
        if known is None:
            known = self._taken[id(leaf)] = leaf, rows.take(leaf)
        return known[1]

    def leave(self, position: int, output: Any) -> Any:
        """Keeps what a block at a stop gave, and gives what the model goes on with."""
        stage, cache = self._stages[-1], self._caches[position]
        cache.store(map_tensors(stage.computing.take, output), self._sigma, stage.placement)
        if position != stage.end:
            return output
        self._stages.pop()
        self._taken.clear()
        self.is_whole = self._stages[-1].rows.is_whole
        kept = [self._read(action, rows) for action, rows in stage.joining]
        joiner = stage.joiner
        return kept[0] if joiner is None else map_tensors(lambda *leaves: joiner.join(leaves), output, *kept)


class Joining(View):
    """Runs a block on the rows of a stage.

    Args:
        block, slot, layout: as of every view.
        flow: which rows run.
        stop: the block's position where its output is kept and rows may join after it, else None.
    """

    def __init__(self, block: nn.Module, slot: Slot, layout: BlockLayout, flow: Flow, stop: int | None) -> None:
        super().__init__(block, slot, layout)
        self.flow, self.stop = flow, stop
        object.__setattr__(self, "inner", block)  # found at once, unlike a module's modules
        shared = layout.shared_block_arguments
        self.shared = layout.shared_arguments if shared is None else shared
        self.shared_places = {place for place, name in enumerate(self.names) if name in self.shared}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        flow = self.flow
        if not flow.is_whole:
            enter = flow.enter
            args = tuple([value if place in self.shared_places else enter(value) for place, value in enumerate(args)])
            if kwargs:
                kwargs = {name: value if name in self.shared else enter(value) for name, value in kwargs.items()}
        output = self.inner(*args, **kwargs)
        return output if self.stop is None else self.own(flow.leave(self.stop, output))
