"""What the MACs of a forward call depend on."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from blockdance.layouts import BlockLayout
from blockdance.pieces import RowSet
from blockdance.selection import select_rows

_LARGEST_VALUE = 2**16
"""Integer inputs of up to this many elements (ids, masks) are kept by value: a model may read lengths and shapes from them."""


class CallShape:
    """What a forward call's MACs depend on: enough to count them later, without holding the inputs' memory.

    Args:
        key: shapes and dtypes of the tensors and the plain values.
        values: the small integer tensors' bytes, for models whose MACs depend on them.
        leaves: the inputs' leaves: a `_Shape` for a tensor of floats, small integer tensors by value, of other objects (key-value
            caches) copies whose tensors have no memory.
        spec: how the leaves make up the inputs.
    """

    def __init__(self, key: tuple[Any, ...], values: tuple[bytes, ...], leaves: list[Any], spec: TreeSpec) -> None:
        self.key, self.values = key, values
        self._leaves, self._spec = leaves, spec

    @staticmethod
    def of(inputs: Mapping[str, Any], timestep: str) -> "CallShape":
        """The shape of a call.

        Args:
            inputs: the forward call's arguments by name.
            timestep: name of the one that carries the timestep, whose value costs nothing.
        """
        given = {name: tree_map_only(Tensor, _shape, value) if name == timestep else value for name, value in inputs.items()}
        leaves, spec = tree_flatten(given)
        key = (str(spec), *(_signature(leaf) for leaf in leaves))
        kept = [_without_memory(leaf) for leaf in leaves]
        values = tuple(leaf.flatten().view(torch.uint8).numpy().tobytes() for leaf in kept if isinstance(leaf, Tensor))
        return CallShape(key, values, kept, spec)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Inputs of this shape on a device; floats are ones."""
        leaves = [
            torch.ones(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, _Shape)
            else leaf.to(device) if isinstance(leaf, Tensor)
            else _copied(leaf, partial(_filled, device=device))
            for leaf in self._leaves
        ]  # fmt: skip
        inputs: dict[str, Any] = tree_unflatten(leaves, self._spec)
        return inputs

    def is_ragged(self, layout: BlockLayout) -> bool:
        """Whether images of different sizes, or captions of different lengths, are given as lists."""
        given: dict[str, Any] = tree_unflatten(self._leaves, self._spec)
        lists = [given[name] for name in layout.image_lists if isinstance(given.get(name), list)]
        return any(len({str(tree_map_only(Tensor, _shape, item)) for item in items}) > 1 for items in lists)

    def of_image(self, image: int, num_images: int, layout: BlockLayout) -> "CallShape | None":
        """The shape of the call for one of its images alone; None where the model's rows cannot run apart."""
        inputs = self.inputs(torch.device("cpu"))
        num_rows = layout.num_rows(inputs)
        if layout.one_image or not layout.splits_rows(inputs):
            return None
        rows = RowSet(range(image, num_rows, num_images), num_rows)
        images = RowSet([image] * len(rows), num_images)
        chosen = {name: select_rows(layout, name, value, rows, images) for name, value in inputs.items()}
        return CallShape.of(chosen, layout.timestep)


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: torch.dtype


def _shape(tensor: Tensor) -> _Shape:
    return _Shape(tuple(tensor.shape), tensor.dtype)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _shape(leaf)
    return leaf if isinstance(leaf, _Shape | int | float | str | bool | None) else type(leaf)


def _without_memory(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return _copied(leaf, _emptied)
    return leaf.detach().cpu() if _is_by_value(leaf) else _shape(leaf)


def _is_by_value(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.numel() <= _LARGEST_VALUE


def _copied(leaf: Any, copy_tensor: Callable[[Tensor], Tensor]) -> Any:
    """A copy of what no tree of tensors is, with its tensors copied in another way; models, and what cannot be copied, as they are."""
    if isinstance(leaf, nn.Module):
        return leaf
    try:
        with _TensorCopies(copy_tensor):
            return copy.deepcopy(leaf)
    except Exception:  # what holds a lock or a file fails in a way of its own
        return leaf


class _TensorCopies(TorchFunctionMode):
    """Copies tensors within objects as a function says."""

    def __init__(self, copy_tensor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._copy_tensor = copy_tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), self._copy_tensor(tensor))


def _emptied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone() if _is_by_value(tensor) else torch.empty_like(tensor, device="meta")


def _filled(tensor: Tensor, device: torch.device) -> Tensor:
    """Ones for a tensor without memory, which share one element's: a key-value cache may be larger than the model."""
    return torch.ones((), dtype=tensor.dtype, device=device).expand(tensor.shape) if tensor.is_meta else tensor.to(device)
