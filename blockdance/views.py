"""Same-length views of a transformer's block lists: at a compute step they capture, at a reuse step they skip and inject.

A model's forward iterates its own lists, so a view put in a list's place for the length of one call changes what runs
without touching the model's code, its parameters or its `state_dict`.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from blockdance.joining import Flow, Joining
from blockdance.kinds import Keep, Kind, StandIn
from blockdance.kinds.views import Slot
from blockdance.layouts import BlockLayout, BlockStack, block_list, blocks_of, holder

Form = tuple[StandIn | None, ...]
"""What takes the place of every block; kinds of one form share their views and what was compiled for them."""


def form_of(kind: Kind, stack: BlockStack) -> Form:
    """The form of a kind's steps on a model."""
    return tuple(kind.stand_in(position, stack) for position in range(len(stack)))


class BlockViews:
    """The views of one transformer for a set of kinds of reuse, built once so that compiled code stays valid.

    Args:
        transformer: the model, whose lists are left as they are.
        layout: where its blocks are.
        keeps: what computing blocks leave for later steps.
        forms: what steps of reuse look like.
    """

    def __init__(self, transformer: nn.Module, layout: BlockLayout, keeps: Iterable[Keep], forms: Iterable[Form]) -> None:
        self._transformer = ref(transformer)
        self._layout = layout
        self._stack = BlockStack.of(transformer, layout)
        self.written = {keep: Slot() for keep in keeps}
        """Where blocks leave what is kept."""
        self.read = {keep: Slot() for keep in keeps}
        """Where views find what they give."""
        self._without = Slot()
        self.computing: Form = (None,) * len(self._stack)
        self.lists = {form: self._build(form) for form in (self.computing, *forms)}
        """The lists of views of every form, by the paths of the model's own."""
        self.flow = Flow()
        """What the views of `joining` share."""
        self._slots = (*self.written.values(), *self.read.values())
        self._originals: list[tuple[nn.Module, str, nn.Module | None]] = []

    @cached_property
    def joining(self) -> dict[str, nn.ModuleList]:
        """The lists of views for a call in which rows join one another; behind the last boundary are the model's own blocks."""
        places = {place: position for position, place in enumerate(self._stack.places)}
        stops = {keep.position for keep in self.written}

        def view(block: nn.Module, position: int) -> nn.Module:
            if position > max(stops):
                return block
            return Joining(block, self._without, self._layout, self.flow, position if position in stops else None)

        return {
            path: nn.ModuleList(view(block, places[path, index]) for index, block in enumerate(block_list(self._model, path)))
            for path in self._layout.lists
        }

    def writes(self, form: Form) -> tuple[Keep, ...]:
        """What the blocks that run at a step of this form leave for later steps."""
        return tuple(keep for keep in self.written if form[keep.position] is None and self._captures(keep, form))

    def _build(self, form: Form) -> dict[str, nn.ModuleList]:
        positions = {place: position for position, place in enumerate(self._stack.places)}
        return {
            path: nn.ModuleList(
                self._wrap(block, positions[path, index], form) for index, block in enumerate(block_list(self._model, path))
            )
            for path in self._layout.lists
        }

    def _wrap(self, block: nn.Module, position: int, form: Form) -> nn.Module:
        """What stands in for a block: its replacement, or itself with everything kept that this form keeps of it."""
        stand_in = form[position]
        if stand_in is not None:
            slot = self._without if stand_in.keep is None else self.read[stand_in.keep]
            view = stand_in.view(block, slot, self._layout)
            view.is_last_reader = stand_in.keep is not None and stand_in.keep.position == position
            return view
        for keep, slot in self.written.items():
            if keep.position == position and self._captures(keep, form):
                block = keep.capture(block, slot, self._layout)
        return block

    def _captures(self, keep: Keep, form: Form) -> bool:
        return keep.capture.refreshes or not any(form)

    @property
    def _model(self) -> nn.Module:
        transformer = self._transformer()
        assert transformer is not None, "a call is under way, so the model lives"
        return transformer

    def install(self, lists: dict[str, nn.ModuleList]) -> None:
        """Puts the views of a form in the place of the model's lists."""
        self._originals = []
        model = self._model
        for path, blocks in lists.items():
            parent, name = (model, path) if path in model._modules else holder(model, path)
            self._originals.append((parent, name, parent._modules[name]))
            parent._modules[name] = blocks

    def restore(self) -> None:
        """Puts the model's own lists back."""
        for parent, name, blocks in self._originals:
            parent._modules[name] = blocks
        self._originals = []

    def deliver(self) -> None:
        """After a call: hands over what compiled code could not, and lets go of everything."""
        for slot in self.written.values():
            if slot.value is not None and slot.receive is not None:
                slot.receive(slot.value)
        self.clear()

    def clear(self) -> None:
        """Lets go of every tensor."""
        for slot in self._slots:
            slot.clear()


_VIEWS: WeakKeyDictionary[nn.Module, dict[Any, BlockViews]] = WeakKeyDictionary()


def views_of(transformer: nn.Module, layout: BlockLayout, keeps: Sequence[Keep], forms: Sequence[Form]) -> BlockViews:
    """The views of a model for these forms: the same ones each time, so that what was compiled for them stays valid."""
    blocks = tuple(id(block) for block in blocks_of(transformer, layout))
    known = _VIEWS.setdefault(transformer, {})
    key = (blocks, id(layout), frozenset(keeps), frozenset(forms))
    if key not in known:
        for other in [other for other in known if other[0] != blocks]:  # they would keep blocks in memory that were replaced
            del known[other]
        known[key] = BlockViews(transformer, layout, dict.fromkeys(keeps), dict.fromkeys(forms))
    return known[key]
