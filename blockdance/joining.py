"""One call for a batch whose images take different actions: the rows that compute enter at the first block, the others join behind the
boundary up to which they reuse, and the blocks after it run on the whole batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from blockdance.kinds import Keep, Kind
from blockdance.kinds.views import Capture, Slot, View
from blockdance.layouts import BlockLayout, BlockStack
from blockdance.pieces import Joiner, RowSet, pieces_of
from blockdance.rows import RowGroup, RowPlan
from blockdance.schedule import COMPUTE
from blockdance.trees import map_tensors


@dataclass(frozen=True)
class Stage:
    """The blocks from where rows joined to the boundary after which the next ones do.

    Args:
        end: that boundary; the last stage has none.
        rows: the rows that run.
        computing: which of these compute every block.
        joining: the groups of rows that join after it.
        joiner: puts what its last block gives, and what was kept for those groups, in the order of the batch.
    """

    end: int | None
    rows: RowSet
    computing: RowSet
    joining: tuple[RowGroup, ...] = ()
    joiner: Joiner | None = None


def boundaries_of(kinds: Sequence[Kind], stack: BlockStack) -> tuple[int, ...]:
    """The boundary of every kind of reuse; none at all where one of them skips other blocks, or needs more than the boundary's output."""
    ends = tuple(kind.skipped_blocks[-1] for kind in kinds)
    is_boundary = all(
        kind.skipped_blocks == tuple(range(end + 1)) and kind.keeps(stack) == (Keep(end, Capture),)
        for kind, end in zip(kinds, ends, strict=True)
    )
    return ends if is_boundary else ()


@lru_cache(maxsize=1024)
def stages_of(plan: RowPlan, boundaries: tuple[int, ...]) -> tuple[Stage, ...]:
    """The stages of a call in which some rows compute, for the boundary of every kind of reuse."""
    groups = {group.action: group for group in plan.groups}
    computing = groups.pop(COMPUTE).rows
    stages, active = [], computing.rows
    for end in sorted({boundaries[action - 1] for action in groups}):
        joining = tuple(group for action, group in groups.items() if boundaries[action - 1] == end)
        parts = (active, *(group.rows.rows for group in joining))
        sources = sorted((row, part, place) for part, rows in enumerate(parts) for place, row in enumerate(rows))
        pieces = pieces_of([(place, part, source) for place, (_, part, source) in enumerate(sources)])
        joiner = Joiner(pieces, [len(rows) for rows in parts])
        stages.append(Stage(end, RowSet(active, computing.num_rows), _within(active, computing), joining, joiner))
        active = tuple(row for row, _, _ in sources)
    stages.append(Stage(None, RowSet(active, computing.num_rows), _within(active, computing)))
    return tuple(stages)


def _within(active: tuple[int, ...], rows: RowSet) -> RowSet:
    """Where the rows lie among the active ones."""
    return RowSet([active.index(row) for row in rows.rows], len(active))


class Flow:
    """What the views of one call share: which rows run now, and what is done where others join."""

    def __init__(self) -> None:
        self._stages: list[Stage] = []
        self._store: Mapping[int, Callable[[Any], None]] = {}
        self._read: Callable[[RowGroup], Any] = lambda group: None
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}
        self.is_whole = True
        """Whether all rows run now."""
        self.stops: frozenset[int] = frozenset()
        """The boundaries: blocks whose output is kept, and after which rows may join."""

    def begin(
        self, stages: Sequence[Stage], store: Mapping[int, Callable[[Any], None]], read: Callable[[RowGroup], Any]
    ) -> None:
        """A call begins.

        Args:
            stages: what it consists of.
            store: takes, of a block at a boundary, what the rows that compute gave.
            read: gives what was kept for a group that joins.
        """
        self._stages, self._store, self._read = list(reversed(stages)), store, read
        self.is_whole, self.stops = False, frozenset(store)

    def end(self) -> None:
        """The call is over: lets go of every tensor."""
        self._stages, self._store, self._read = [], {}, lambda group: None
        self._taken.clear()

    def enter(self, argument: Any) -> Any:
        """A block's argument for the rows that run: what has a row for each of the batch is narrowed, once for all blocks."""
        return self._take(argument) if isinstance(argument, Tensor) else map_tensors(self._take, argument)

    def _take(self, leaf: Tensor) -> Tensor:
        rows = self._stages[-1].rows
        if not leaf.ndim or leaf.shape[0] != rows.num_rows:
            return leaf
        known = self._taken.get(id(leaf))
        if known is None:
            known = self._taken[id(leaf)] = leaf, rows.take(leaf)
        return known[1]

    def leave(self, position: int, output: Any) -> Any:
        """Keeps what a block at a stop gave, and gives what the model goes on with."""
        stage = self._stages[-1]
        self._store[position](map_tensors(stage.computing.take, output))
        joiner = stage.joiner
        if joiner is None or position != stage.end:
            return output
        self._stages.pop()
        self._taken.clear()
        self.is_whole = self._stages[-1].rows.is_whole
        return map_tensors(lambda *leaves: joiner.join(leaves), output, *map(self._read, stage.joining))


class Joining(View):
    """Runs a block on the rows of a stage."""

    def __init__(self, block: nn.Module, slot: Slot, layout: BlockLayout, position: int, flow: Flow) -> None:
        super().__init__(block, slot, layout)
        self.position, self.flow = position, flow
        object.__setattr__(self, "inner", block)  # found at once, unlike a module's modules
        self.shared = layout.shared_arguments
        self.shared_places = {place for place, name in enumerate(self.names) if name in self.shared}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        flow = self.flow
        if not flow.is_whole:
            enter = flow.enter
            args = tuple(value if place in self.shared_places else enter(value) for place, value in enumerate(args))
            kwargs = {name: value if name in self.shared else enter(value) for name, value in kwargs.items()}
        output = self.inner(*args, **kwargs)
        return flow.leave(self.position, output) if self.position in flow.stops else output
