"""What an action costs, in multiply-accumulate operations (MACs) counted from the model itself."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from blockdance.kinds import Kind
from blockdance.layouts import BlockLayout, blocks_of


@dataclass(frozen=True)
class ForwardCost:
    """MACs of one forward call.

    Args:
        total: MACs of the whole call.
        blocks: MACs of each block, in execution order.
    """

    total: float
    blocks: tuple[float, ...]

    def per_action(self, kinds: Sequence[Kind]) -> Tensor:
        """MACs of one forward call under every action: float64 `(1 + len(kinds),)`, action 0 (compute) first."""
        reuse = [self.total - sum(self.blocks[block] for block in kind.skipped_blocks) for kind in kinds]
        return torch.tensor([self.total, *reuse], dtype=torch.float64)

    def macs(self, actions: Tensor, kinds: Sequence[Kind]) -> Tensor:
        """MACs of each image's denoising steps: float64 `(batch,)` for actions `(batch, num_steps)`."""
        return self.per_action(kinds).to(actions.device)[actions].sum(-1)

    def compute_saved(self, actions: Tensor, kinds: Sequence[Kind]) -> Tensor:
        """Share of the denoising MACs that each image saves, in [0, 1]: float64 `(batch,)`."""
        return 1.0 - self.macs(actions, kinds) / (self.total * actions.shape[-1])


_LARGEST_VALUE = 2**16
"""Integer inputs of up to this many elements (ids, masks) are kept by value: lengths and shapes may be read from them."""


class CallShape:
    """The shapes of a forward call's inputs: enough to count its MACs later, without holding the inputs' memory.

    Args:
        key: shapes and dtypes of the tensors and the plain values; two calls of equal key cost the same.
        leaves: the inputs' leaves: a `torch.Size` with a dtype for a tensor of floats, small integer tensors by value.
        spec: how the leaves make up `(args, kwargs)`.
    """

    def __init__(self, key: tuple[Any, ...], leaves: list[Any], spec: TreeSpec) -> None:
        self._key, self._leaves, self._spec = key, leaves, spec

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> "CallShape":
        """The shape of a call."""
        leaves, spec = tree_flatten((args, kwargs))
        key = (str(spec), *(_signature(leaf) for leaf in leaves))
        return CallShape(key, [_without_memory(leaf) for leaf in leaves], spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallShape) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def inputs(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of this shape on a device; floats are ones."""
        leaves = [
            torch.ones(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, _Shape)
            else leaf.to(device) if isinstance(leaf, Tensor)
            else leaf
            for leaf in self._leaves
        ]  # fmt: skip
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: torch.dtype


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, int | float | str | bool | None) else type(leaf)


def _without_memory(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if not leaf.is_floating_point() and leaf.numel() <= _LARGEST_VALUE:
        return leaf.detach().cpu()
    return _Shape(tuple(leaf.shape), leaf.dtype)


def count_macs(
    transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any], *, shared: Sequence[Any] = ()
) -> ForwardCost:
    """Counts the MACs of one forward call.

    It runs on fake tensors, which compute nothing and take no memory; where the model reads values from its inputs (lengths
    from a mask) or its weights are offloaded, it is one real call.

    Args:
        transformer: the model.
        layout: where its blocks are.
        args, kwargs: the inputs of the call, or tensors of their shapes and dtypes on the model's device.
        shared: objects that the model refers to and that need no copy.
    """
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        if not _is_offloaded(transformer):
            try:
                return _count_on_fake_tensors(transformer, layout, args, kwargs, shared)
            except Exception:  # each model fails in its own way; a real call shows the error if the inputs are to blame
                pass
        return _count(transformer, layout, args, kwargs)


def _count_on_fake_tensors(
    transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any], shared: Sequence[Any]
) -> ForwardCost:
    """Counts on a copy without memory: models keep tensors between calls (rotary tables), and fake ones must not stay in them."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with FakeCopyMode(mode):
            copied = copy.deepcopy(transformer, {id(item): item for item in shared})
        inputs = tree_map_only(Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
        return _count(copied, layout, *inputs)


def _count(transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ForwardCost:
    blocks = blocks_of(transformer, layout)
    counter = FlopCounterMode(display=False)
    flops = [0] * len(blocks)

    def add(position: int, sign: int) -> None:
        flops[position] += sign * counter.get_total_flops()

    # the math backend breaks attention into the matrix products that the counter knows on every device
    with sdpa_kernel(SDPBackend.MATH), counter, ExitStack() as hooks:
        hooks.enter_context(patch("torch.nn.attention.flex_attention.flex_attention", _dense_attention))
        for parameter in transformer.parameters():  # the counter's hooks on gradients fail on views of parameters
            hooks.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for position, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(lambda *_, at=position: add(at, -1)).remove)
            hooks.callback(block.register_forward_hook(lambda *_, at=position: add(at, 1)).remove)
        transformer.forward(*args, **kwargs)
    return ForwardCost(counter.get_total_flops() / 2, tuple(count / 2 for count in flops))


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, enable_gqa: bool = False, **__: Any) -> Tensor:
    """Stands in for block-sparse attention, which the counter does not know: it is counted as if it were dense."""
    return scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)


def _is_offloaded(transformer: nn.Module) -> bool:
    """Whether accelerate or diffusers moves weights between devices, which fake tensors would spoil."""
    return any("_hf_hook" in vars(module) or "_diffusers_hook" in vars(module) for module in transformer.modules())
