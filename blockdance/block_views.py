"""What stands in for a single block during one forward call: capture its output or change, replay it, or add it."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from blockdance.layout import BlockLayout, parameter_names


class Slot:
    """Holds one value for a view to write or to read."""

    def __init__(self) -> None:
        self.value: Any = None


class _View(nn.Module):
    """Stands in for a block, whose attributes stay readable (SD3's forward reads `block.context_pre_only`)."""

    def __init__(self, block: nn.Module, slot: Slot, layout: BlockLayout) -> None:
        super().__init__()
        self.block = block
        self.slot = slot
        self.batch_dim = layout.batch_dim
        self.copies = layout.changes_outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def turn(self, output: Any) -> Any:
        """What the block gives as the cache keeps it, and back: the batch first, and a copy where the model would change it."""
        if self.batch_dim == 0 and not self.copies:
            return output
        return tree_map(self._turn_leaf, output)

    def _turn_leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.transpose(0, self.batch_dim)
        return leaf.clone() if self.copies else leaf


class Capture(_View):
    """Runs the block and keeps its raw output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        self.slot.value = self.turn(output)
        return output


class Replay(_View):
    """Returns the slot's value instead of running the block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.turn(self.slot.value)


class FittingReplay(Replay):
    """Returns the slot's value with as many tokens as the block was given, cropped or padded at the end."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
        return tree_map(lambda leaf: fit_tokens(leaf, tokens), super().forward(*args, **kwargs))


class _ChangeView(_View):
    """Knows which arguments of the block its outputs continue."""

    def __init__(self, block: nn.Module, slot: Slot, layout: BlockLayout) -> None:
        super().__init__(block, slot, layout)
        self.names = parameter_names(block)
        self.streams = tuple(name for name in layout.streams if name in self.names)

    def input(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's input that an output continues, as `turn` gives it."""
        return self.turn(kwargs[name] if name in kwargs else args[self.names.index(name)])


class CaptureChange(_ChangeView):
    """Runs the block and keeps what it changed: output minus input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = {name: self.input(name, args, kwargs) for name in (self.names[0], *self.streams)}
        output = self.block(*args, **kwargs)
        after = self.turn(output)
        if isinstance(after, Tensor):
            self.slot.value = after - before[self.names[0]]
        else:
            pairs = zip(self.streams, after, strict=True)
            self.slot.value = tuple(None if stream is None else stream - before[name] for name, stream in pairs)
        return output


class AddChange(_ChangeView):
    """Adds the change that the slot holds instead of running the block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        change = self.slot.value
        if isinstance(change, Tensor):
            return self.turn(self.input(self.names[0], args, kwargs) + change)
        pairs = zip(self.streams, change, strict=True)
        return tuple(None if part is None else self.turn(self.input(name, args, kwargs) + part) for name, part in pairs)


def fit_tokens(leaf: Any, tokens: int) -> Any:
    """Crops a tensor `(rows, tokens, channels)`, or pads it with zeros, at the end of its second dimension."""
    if not isinstance(leaf, Tensor) or leaf.shape[1] == tokens:
        return leaf
    return leaf[:, :tokens] if leaf.shape[1] > tokens else pad(leaf, (0, 0, 0, tokens - leaf.shape[1]))
