"""Same-length views of a transformer's block lists: at a compute step they capture, at a reuse step they skip and inject.

A model's forward iterates its own lists, so a view put in a list's place for the length of one call changes what runs
without touching the model's code, its parameters or its `state_dict`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.block_views import AddChange, Capture, CaptureChange, FittingReplay, Replay, Slot
from blockdance.layout import BlockLayout, block_list, block_stack, blocks_of, holder
from blockdance.schedule import BlockReuse, Kind, Reuse

_Wrap = Callable[[int, nn.Module], nn.Module]
Shapes = dict[int, tuple[int, Any]]
"""By block: the number of rows and a tree of shapes."""


class BlockViews:
    """The views of one transformer for a set of kinds of reuse, built once so that compiled code stays valid.

    Args:
        transformer: the model, whose lists are left as they are.
        layout: where its blocks are.
        kinds: the kinds of reuse. Compute steps capture what any of them needs.
    """

    def __init__(self, transformer: nn.Module, layout: BlockLayout, kinds: Sequence[Kind]) -> None:
        self._transformer = ref(transformer)
        self._layout = layout
        self.stack = block_stack(transformer, layout)
        boundaries = sorted({kind.boundary for kind in kinds if isinstance(kind, Reuse)})
        individual = sorted({block for kind in kinds if isinstance(kind, BlockReuse) for block in kind.blocks})
        self.kept = {boundary: (boundary, *self._long_skip_sources(boundary)) for boundary in boundaries}
        self._captured = {position: Slot() for positions in self.kept.values() for position in positions}
        self._injected = {position: Slot() for position in self._captured}
        self._changes = {block: Slot() for block in individual}
        self._added = {block: Slot() for block in individual}
        samples = {position for boundary in boundaries for position in self._placeholder_positions(boundary).values()}
        self._sampled = {position: Slot() for position in samples}
        self._placeholders = {position: Slot() for position in samples}
        self._installs: dict[Any, dict[str, nn.ModuleList]] = {None: self._build(self._computing)}
        for kind in kinds:
            if isinstance(kind, BlockReuse):
                self._installs[kind.blocks] = self._build(self._adding(frozenset(kind.blocks)))
            else:
                self._installs[kind.boundary] = self._build(self._replaying(kind.boundary))

    @property
    def _model(self) -> nn.Module:
        transformer = self._transformer()
        assert transformer is not None, "a call is under way, so the model lives"
        return transformer

    def _long_skip_sources(self, boundary: int) -> tuple[int, ...]:
        """Blocks before the boundary whose outputs are read after it."""
        if self._layout.long_skips is None:
            return ()
        readers = self._layout.long_skips(self._model)
        return tuple(
            sorted(
                {source for reader, sources in readers.items() if reader > boundary for source in sources if source < boundary}
            )
        )

    def _placeholder_positions(self, boundary: int) -> dict[str, int]:
        """For every other list with skipped blocks: the last one. A skipped block of another list than the boundary's must return
        something of its own output's shape; the content never matters, because the boundary overwrites it."""
        home = self.stack[boundary][0]
        return {path: position for position, (path, _) in enumerate(self.stack[:boundary]) if path != home}

    def _computing(self, position: int, block: nn.Module) -> nn.Module:
        """Wraps a block whose output a compute step keeps; it may be wrapped for several uses."""
        if position in self._changes:
            block = CaptureChange(block, self._changes[position], self._layout)
        for slots in (self._sampled, self._captured):
            if position in slots:
                block = Capture(block, slots[position], self._layout)
        return block

    def _replaying(self, boundary: int) -> _Wrap:
        """Replaces the blocks that a reuse step skips, and the boundary block itself."""
        placeholders = self._placeholder_positions(boundary)
        view = FittingReplay if self._layout.pads_to_longest else Replay

        def wrap(position: int, block: nn.Module) -> nn.Module:
            if position > boundary:
                return block
            path = self.stack[position][0]
            if position in self.kept[boundary]:
                slot = self._injected[position]
            elif path in placeholders:
                slot = self._placeholders[placeholders[path]]
            else:
                slot = self._injected[boundary]
            return view(block, slot, self._layout)

        return wrap

    def _adding(self, reused: frozenset[int]) -> _Wrap:
        """Replaces the blocks that are reused individually; the others run and refresh what is kept of them."""

        def wrap(position: int, block: nn.Module) -> nn.Module:
            if position in reused:
                return AddChange(block, self._added[position], self._layout)
            if position in self._changes:
                return CaptureChange(block, self._changes[position], self._layout)
            return block

        return wrap

    def _build(self, wrap: _Wrap) -> dict[str, nn.ModuleList]:
        positions = {place: position for position, place in enumerate(self.stack)}
        return {
            path: nn.ModuleList(
                wrap(positions[path, index], block) for index, block in enumerate(block_list(self._model, path))
            )
            for path in self._layout.lists
        }

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Runs every block and captures while the context lasts."""
        with self._installed(None):
            yield

    @contextmanager
    def reusing(self, kind: Kind) -> Iterator[None]:
        """Skips what the kind skips while the context lasts; `inject` or `add` comes first."""
        with self._installed(kind.blocks if isinstance(kind, BlockReuse) else kind.boundary):
            yield

    @contextmanager
    def _installed(self, key: Any) -> Iterator[None]:
        views = {holder(self._model, path): blocks for path, blocks in self._installs[key].items()}
        originals = {(parent, name): parent._modules[name] for parent, name in views}
        for (parent, name), blocks in views.items():
            parent._modules[name] = blocks
        try:
            yield
        finally:
            for (parent, name), original in originals.items():
                parent._modules[name] = original

    def take_captured(self) -> tuple[dict[int, Any], dict[int, Any]]:
        """After a compute step: the outputs to keep at each boundary, as a tuple (the boundary's own, then those that long skips read
        later), and the changes of blocks that are reused individually."""
        outputs = {
            boundary: tuple(self._captured[position].value for position in positions)
            for boundary, positions in self.kept.items()
        }
        changes = self.take_changes()
        for slot in self._captured.values():
            slot.value = None
        return outputs, changes

    def take_changes(self) -> dict[int, Any]:
        """The changes that the blocks that ran made in this call."""
        changes = {block: slot.value for block, slot in self._changes.items() if slot.value is not None}
        for slot in self._changes.values():
            slot.value = None
        return changes

    def inject(self, boundary: int, outputs: tuple[Any, ...], num_rows: int, shapes: Shapes) -> None:
        """Before a reuse step of `num_rows` rows: what the boundary and the sources of long skips give, and shapes for the rest."""
        for position, output in zip(self.kept[boundary], outputs, strict=True):
            self._injected[position].value = output
        for position, (rows, shape) in shapes.items():
            self._placeholders[position].value = tree_map(lambda leaf, rows=rows: _blank(leaf, rows, num_rows), shape)

    def add(self, changes: dict[int, Any]) -> None:
        """Before a step that reuses blocks individually: their changes."""
        for block, change in changes.items():
            self._added[block].value = change

    def let_go(self) -> None:
        """After a reuse step: drops the injected tensors."""
        for slot in (*self._injected.values(), *self._added.values()):
            slot.value = None

    def take_shapes(self, num_rows: int) -> Shapes:
        """After a compute step of `num_rows` rows: what the blocks of other lists than a boundary's put out."""
        shapes = {position: (num_rows, tree_map(_shape, slot.value)) for position, slot in self._sampled.items()}
        for slot in self._sampled.values():
            slot.value = None
        return shapes

    def clear(self) -> None:
        """Lets go of every tensor."""
        groups = (self._captured, self._injected, self._changes, self._added, self._sampled, self._placeholders)
        for slot in (slot for group in groups for slot in group.values()):
            slot.value = None


_VIEWS: WeakKeyDictionary[nn.Module, dict[Any, BlockViews]] = WeakKeyDictionary()


def views_of(transformer: nn.Module, layout: BlockLayout, kinds: Sequence[Kind]) -> BlockViews:
    """The views of a model for these kinds of reuse: the same ones each time, so that what was compiled for them stays valid."""
    skips = frozenset(kind.skipped_blocks if isinstance(kind, BlockReuse) else kind.boundary for kind in kinds)
    blocks = tuple(id(block) for block in blocks_of(transformer, layout))
    known = _VIEWS.setdefault(transformer, {})
    key = (id(layout), skips, blocks)
    if key not in known:
        known[key] = BlockViews(transformer, layout, kinds)
    return known[key]


@dataclass(frozen=True)
class _Shape:
    shape: torch.Size
    like: Tensor
    """An empty tensor that carries dtype and device."""


def _shape(leaf: Any) -> Any:
    return _Shape(leaf.shape, leaf.new_zeros(())) if isinstance(leaf, Tensor) else leaf


def _blank(leaf: Any, learnt_rows: int, num_rows: int) -> Any:
    """A tensor of a shape for another number of rows; it takes no memory."""
    if not isinstance(leaf, _Shape):
        return leaf
    return leaf.like.expand(leaf.shape[0] * num_rows // learnt_rows, *leaf.shape[1:])
