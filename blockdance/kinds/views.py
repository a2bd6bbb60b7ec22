"""What stands in for a single block during one forward call: kinds of reuse are made of these."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockdance.layouts import BlockLayout, parameter_names
from blockdance.trees import fit_tokens, map_tensors


class Slot:
    """Where a view writes what its block gave, or reads what it is to give."""

    __slots__ = ("receive", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.receive: Callable[[Any], None] | None = None
        """Takes what is written at once, so that nothing is held for the rest of the call."""

    def write(self, value: Any, copies: bool = False) -> None:
        """Hands a value over; code that is being compiled leaves it here, to be fetched outside the graph.

        Args:
            value: what is kept; the receiver copies it.
            copies: whether a value that stays here for the rest of the call must be a copy.
        """
        if torch.compiler.is_compiling() or self.receive is None:
            self.value = map_tensors(torch.clone, value) if copies else value
        else:
            self.receive(value)

    def clear(self) -> None:
        """Lets go of the value."""
        self.value = None
        self.receive = None


class View(nn.Module):
    """Stands in for a block, whose attributes stay readable (SD3's forward reads `block.context_pre_only`).

    Args:
        block: the block, or another view of it.
        slot: what the view writes to or reads from.
        layout: how the block's inputs and outputs look.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # a call costs half as much without the machinery for hooks, which views have none of
        cls.__call__ = cls.forward  # type: ignore[method-assign]

    refreshes: ClassVar[bool] = False
    """Of a view that writes: whether it also does at reuse steps at which its block runs."""

    def __init__(self, block: nn.Module, slot: Slot, layout: BlockLayout) -> None:
        super().__init__()
        self.block = block
        self.slot = slot
        self.batch_dim = layout.batch_dim
        self.changes_outputs = layout.changes_outputs
        self.is_plain = self.batch_dim == 0 and not self.changes_outputs
        """Whether the model takes what the cache keeps as it is."""
        self.names: list[str] = block.names if isinstance(block, View) else parameter_names(block)
        self.all_streams = layout.streams
        self.streams = tuple(name for name in layout.streams if name in self.names)
        self.is_last_reader = False
        """Whether nobody reads the slot after this view."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def turn(self, output: Any) -> Any:
        """What the block gives as the cache keeps it, and back: the batch first."""
        return output if self.batch_dim == 0 else map_tensors(lambda leaf: leaf.transpose(0, self.batch_dim), output)

    def read(self) -> Any:
        """The slot's value; the last reader lets go of it, so that it does not outlive its use in the model."""
        value = self.slot.value
        if self.is_last_reader and not torch.compiler.is_compiling():
            self.slot.value = None
        return value

    def own(self, output: Any) -> Any:
        """A copy where the model would change it."""
        return map_tensors(torch.clone, output) if self.changes_outputs else output

    def input(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's input that an output continues."""
        return kwargs[name] if name in kwargs else args[self.names.index(name)]


class Capture(View):
    """Runs the block and keeps its raw output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        self.slot.write(self.turn(output), self.changes_outputs)
        return output


class CaptureChange(View):
    """Runs the block and keeps what it changed: output minus input."""

    refreshes = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = {name: self.turn(self.input(name, args, kwargs)) for name in (self.names[0], *self.streams)}
        # a block that works in place would change its input before it is subtracted
        before = self.own(before)
        output = self.block(*args, **kwargs)
        after = self.turn(output)
        if isinstance(after, Tensor):
            self.slot.write(after - before[self.names[0]])
        else:
            pairs = zip(self.streams, after, strict=True)
            self.slot.write(tuple(None if stream is None else stream - before[name] for name, stream in pairs))
        return output


class Pass(View):
    """Gives back what it was given, in the form of the block's output: what it holds never matters."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.streams and self.streams == self.all_streams:
            return tuple(self.input(name, args, kwargs) for name in self.streams)
        return self.input(self.names[0], args, kwargs)


class Replay(View):
    """Returns the slot's value instead of running the block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value = self.read() if self.is_last_reader else self.slot.value
        return value if self.is_plain else self.turn(self.own(value))


class FittingReplay(Replay):
    """Returns the slot's value with as many tokens as the block was given, cropped or padded at the end."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
        return map_tensors(lambda leaf: fit_tokens(leaf, tokens), super().forward(*args, **kwargs))


class AddChange(View):
    """Adds the change that the slot holds instead of running the block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        change = self.read()
        if isinstance(change, Tensor):
            return self._added(self.names[0], change, args, kwargs)
        pairs = zip(self.streams, change, strict=True)
        return tuple(None if part is None else self._added(name, part, args, kwargs) for name, part in pairs)

    def _added(self, name: str, change: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.turn(self.turn(self.input(name, args, kwargs)) + change)
