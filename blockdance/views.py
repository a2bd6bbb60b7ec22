"""Same-length views of a transformer's block lists: at a compute step they capture, at a reuse step they skip and inject.

A model's forward iterates its own lists, so a view put in a list's place for the length of one call changes what runs
without touching the model's code, its parameters or its `state_dict`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.layout import BlockLayout, block_stack

_Wrap = Callable[[int, nn.Module], nn.Module]


class Slot:
    """Holds one block output for a view to write or to replay."""

    def __init__(self) -> None:
        self.value: Any = None


class _View(nn.Module):
    """Stands in for a block, whose attributes stay readable (SD3's forward reads `block.context_pre_only`)."""

    def __init__(self, block: nn.Module, slot: Slot) -> None:
        super().__init__()
        self.block = block
        self.slot = slot

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


class Capture(_View):
    """Runs the block and keeps its raw output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        self.slot.value = output
        return output


class Replay(_View):
    """Returns the slot's value instead of running the block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.slot.value


class BlockViews:
    """The views of one transformer for a set of boundaries, built once so that compiled code stays valid.

    Args:
        transformer: the model, whose lists are left as they are.
        layout: where its blocks are.
        boundaries: the boundaries that compute steps capture and reuse steps start after.
    """

    def __init__(self, transformer: nn.Module, layout: BlockLayout, boundaries: Sequence[int]) -> None:
        self._transformer = transformer
        self.stack = block_stack(transformer, layout)
        self.captured = {boundary: Slot() for boundary in boundaries}
        self.injected = {boundary: Slot() for boundary in boundaries}
        # What a reuse step's skipped blocks return when they lie in another list than the boundary: any tensor of the shape
        # those blocks put out will do, because the boundary overwrites it. Each list's last block shows that shape.
        last_of = {name: position for position, (name, _) in enumerate(self.stack)}
        skipped = {
            name: position
            for name, position in last_of.items()
            if any(self.stack[boundary][0] != name and position < boundary for boundary in boundaries)
        }
        self._sampled = {name: Slot() for name in skipped}
        self._placeholders = {name: Slot() for name in skipped}
        self._shapes: dict[str, tuple[int, Any]] = {}
        self._compute = self._build(layout, self._capture({skipped[name]: slot for name, slot in self._sampled.items()}))
        self._reuse = {boundary: self._build(layout, self._replay(boundary)) for boundary in boundaries}

    def _capture(self, sampled: dict[int, Slot]) -> _Wrap:
        """Wraps the blocks whose output a compute step keeps; a block may be wrapped for two uses."""

        def wrap(position: int, block: nn.Module) -> nn.Module:
            for slots in (sampled, self.captured):
                if position in slots:
                    block = Capture(block, slots[position])
            return block

        return wrap

    def _replay(self, boundary: int) -> _Wrap:
        """Replaces the blocks that a reuse step skips, and the boundary block itself."""
        home = self.stack[boundary][0]

        def wrap(position: int, block: nn.Module) -> nn.Module:
            if position > boundary:
                return block
            owner = self.stack[position][0]
            return Replay(block, self.injected[boundary] if owner == home else self._placeholders[owner])

        return wrap

    def _build(self, layout: BlockLayout, wrap: _Wrap) -> dict[str, nn.ModuleList]:
        positions = {place: position for position, place in enumerate(self.stack)}
        return {
            name: nn.ModuleList(
                wrap(positions[name, index], block) for index, block in enumerate(getattr(self._transformer, name))
            )
            for name in layout.lists
        }

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Captures at every boundary while the context lasts."""
        with self._installed(self._compute):
            yield

    @contextmanager
    def reusing(self, boundary: int) -> Iterator[None]:
        """Skips every block up to `boundary` and injects `self.injected[boundary]` while the context lasts."""
        with self._installed(self._reuse[boundary]):
            yield

    @contextmanager
    def _installed(self, views: dict[str, nn.ModuleList]) -> Iterator[None]:
        modules = self._transformer._modules
        originals = {name: modules[name] for name in views}
        modules.update(views)
        try:
            yield
        finally:
            modules.update(originals)

    def learn_shapes(self, num_rows: int) -> None:
        """After a compute step of `num_rows` rows, notes what the blocks of other lists put out."""
        self._shapes = {name: (num_rows, tree_map(_shape, slot.value)) for name, slot in self._sampled.items()}
        for slot in self._sampled.values():
            slot.value = None

    def place_shapes(self, num_rows: int) -> None:
        """Before a reuse step of `num_rows` rows, fills the placeholders; they take no memory."""
        for name, (rows, shapes) in self._shapes.items():
            self._placeholders[name].value = tree_map(lambda leaf, rows=rows: _blank(leaf, rows, num_rows), shapes)

    def clear(self) -> None:
        """Lets go of every tensor."""
        for slot in (*self.captured.values(), *self._sampled.values(), *self.injected.values(), *self._placeholders.values()):
            slot.value = None


@dataclass(frozen=True)
class _Shape:
    shape: torch.Size
    like: Tensor
    """An empty tensor that carries dtype and device."""


def _shape(leaf: Any) -> Any:
    return _Shape(leaf.shape, leaf.new_zeros(())) if isinstance(leaf, Tensor) else leaf


def _blank(leaf: Any, learnt_rows: int, num_rows: int) -> Any:
    if not isinstance(leaf, _Shape):
        return leaf
    return leaf.like.expand(leaf.shape[0] // learnt_rows * num_rows, *leaf.shape[1:])
