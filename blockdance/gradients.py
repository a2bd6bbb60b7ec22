"""BlockDance keeps features from step to step, and no graph of how they came about: a backward pass is refused by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from blockdance.errors import BlockDanceError


def inference_only(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
    """Runs a call where gradients are on without them; a backward pass through its output raises.

    Args:
        transformer: the model that is called.
        args, kwargs: its inputs.
        call: calls it.
    """
    if not _wants_gradients(transformer, args, kwargs):
        return call()
    with torch.no_grad():
        output = call()
    return _refusing_backward(output)


def _wants_gradients(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    inputs = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return any(tensor.requires_grad for tensor in inputs) or any(weight.requires_grad for weight in transformer.parameters())


def _refusing_backward(output: Any) -> Any:
    with torch.enable_grad():
        return tree_map(_refuse, output)


def _refuse(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return _Refusal.apply(leaf, torch.zeros((), device=leaf.device, requires_grad=True))  # type: ignore[no-untyped-call]


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        raise BlockDanceError(
            "A backward pass went through a generation with BlockDance on. It is for inference: the features that it reuses have no "
            "graph. Turn it off for training (`remove_blockdance`), or run the generation under `torch.no_grad()`."
        )
