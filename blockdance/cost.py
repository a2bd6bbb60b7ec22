"""What an action costs, in multiply-accumulate operations (MACs) counted from the model itself."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from blockdance.call_shape import CallShape
from blockdance.fake_copy import fake_copy, home
from blockdance.kinds import Kind
from blockdance.layouts import BlockLayout, blocks_of
from blockdance.opaque import OpaqueLayers
from blockdance.overrides import plainly


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


_MOST = 256
"""Costs that are kept of a model. Where they depend on captions' lengths there is no end of them."""
_SWITCHES = ("_disable_adapters", "_active_adapter", "merged_adapters")
"""Where peft's layers say which of their adapters take part in a call."""


@dataclass
class _Known:
    """Costs of a model as it is.

    Args:
        made_of: its blocks, the shapes of its weights and which of its adapters are on.
        costs: by shape, None where they depend on values too, and by shape and values; those read last come last.
    """

    made_of: Any
    costs: dict[Any, ForwardCost | None] = field(default_factory=dict)

    def get(self, key: Any, count: Callable[[], ForwardCost | None]) -> ForwardCost | None:
        """The cost of a key, counted where it is not known; the one that was not read for longest goes where there are too many."""
        cost = self.costs[key] = self.costs.pop(key) if key in self.costs else count()
        if len(self.costs) > _MOST:
            del self.costs[next(iter(self.costs))]
        return cost


# MACs depend on the model and its inputs alone, so they outlive the controllers of one model
_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _known(transformer: nn.Module, layout: BlockLayout) -> _Known:
    """What is known of a model: nothing yet where blocks were replaced or a LoRA was loaded since."""
    blocks = tuple(map(id, blocks_of(transformer, layout)))
    shapes = tuple(parameter.shape for parameter in transformer.parameters())
    layers = [vars(module) for module in transformer.modules()]
    adapters = tuple(str(layer[switch]) for layer in layers for switch in _SWITCHES if switch in layer)
    made_of = blocks, shapes, adapters
    known = _KNOWN.get(transformer)
    if known is None or known.made_of != made_of:
        known = _KNOWN[transformer] = _Known(made_of)
    return known


def cost_of(transformer: nn.Module, layout: BlockLayout, shape: CallShape) -> ForwardCost:
    """MACs of a forward call of a shape; each is counted once for a model as it is."""
    known = _known(transformer, layout)

    def count(counting: Callable[..., ForwardCost | None]) -> ForwardCost | None:
        return counting(transformer, layout, (), shape.inputs(home(transformer)))

    cost = known.get(shape.key, partial(count, _count_on_fake_tensors))
    if cost is None:  # it reads values
        cost = known.get((shape.key, shape.values), partial(count, _count_for_real))
    assert cost is not None, "a real call always counts"
    return cost


def costs_of(transformer: nn.Module, layout: BlockLayout, shape: CallShape, num_images: int) -> list[ForwardCost]:
    """MACs of each image's part of a forward call, guidance branches together.

    The call's MACs in equal parts; but where images of other captions or sizes cost differently, each image's are those of a call of
    its own, without the padding to another's length. (Where rows cannot run apart, in equal parts all the same.)

    Args:
        transformer, layout, shape: as `cost_of` takes them.
        num_images: images of the call.
    """
    whole = cost_of(transformer, layout, shape)
    reads_values = _KNOWN[transformer].costs[shape.key] is None
    if num_images > 1 and (reads_values or shape.is_ragged(layout)):
        alone = [shape.of_image(image, num_images, layout) for image in range(num_images)]
        costs = [cost_of(transformer, layout, one) for one in alone if one is not None]
        if len(set(costs)) > 1:
            return costs
    part = ForwardCost(whole.total / num_images, tuple(block / num_images for block in whole.blocks))
    return [part] * num_images


_COUNTING = threading.RLock()
"""Counting sets torch's stance for the whole process: threads that set it in turns would leave it set for ever."""


def count_macs(transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ForwardCost:
    """Counts the MACs of one forward call.

    It runs on fake tensors, which compute nothing and take no memory; where the model reads values from its inputs (lengths
    from a mask), it is one real call. What the counter cannot see into, such as int8 layers, is counted from its shapes.

    Args:
        transformer: the model.
        layout: where its blocks are.
        args, kwargs: the inputs of the call, or tensors of their shapes and dtypes on the model's device.
    """
    cost = _count_on_fake_tensors(transformer, layout, args, kwargs)
    return _count_for_real(transformer, layout, args, kwargs) if cost is None else cost


def _count_on_fake_tensors(
    transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ForwardCost | None:
    """None where the model does something that fake tensors cannot do, such as reading a value."""
    try:
        with _eager(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            copied = fake_copy(transformer, mode)
            inputs = tree_map_only(Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
            # the math backend breaks attention into the matrix products that the counter knows on every device
            with sdpa_kernel(SDPBackend.MATH):
                return _count(copied, layout, *inputs)
    except Exception:  # each model fails in its own way; a real call shows the error if the inputs are to blame
        return None


def _count_for_real(transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ForwardCost:
    """Takes no more memory than a denoising step: attention runs as it does there."""
    with _eager(), plainly():
        return _count(transformer, layout, args, kwargs)


@contextmanager
def _eager() -> Iterator[None]:
    with _COUNTING, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


def _count(transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ForwardCost:
    blocks = blocks_of(transformer, layout)
    counter = FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops})
    opaque = OpaqueLayers(counter.get_total_flops)
    flops = [0] * len(blocks)

    def total() -> int:
        return counter.get_total_flops() + opaque.flops

    def add(position: int, sign: int) -> None:
        flops[position] += sign * total()

    with counter, opaque, ExitStack() as hooks:
        hooks.enter_context(patch("torch.nn.attention.flex_attention.flex_attention", _dense_attention))
        for parameter in transformer.parameters():  # the counter's hooks on gradients fail on views of parameters
            hooks.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        opaque.watch(transformer, hooks)  # first: a block may itself be such a layer
        for position, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(lambda *_, at=position: add(at, -1)).remove)
            hooks.callback(block.register_forward_hook(lambda *_, at=position: add(at, 1)).remove)
        transformer.forward(*args, **kwargs)
    if opaque.unknown:
        warnings.warn(
            f"MACs of {type(transformer).__name__} are counted without {', '.join(sorted(opaque.unknown))}: what these operators compute "
            "is not known, so savings may be reported too high or too low.",
            stacklevel=2,
        )
    return ForwardCost(total() / 2, tuple(count / 2 for count in flops))


_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of softmax(Q·Kᵀ)·V for shapes `(batch, heads, tokens, channels)`."""
    batch, heads, queries, channels = query
    return 2 * batch * heads * queries * key[2] * (channels + value[3])


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, enable_gqa: bool = False, **__: Any) -> Tensor:
    """Stands in for block-sparse attention, which the counter does not know: it is counted as if it were dense."""
    return scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)
