"""Tensors in tuples, lists and dictionaries: a block's outputs and a model's inputs."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.functional import pad


def map_tensors(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Applies a function to every tensor of trees of one form; all else is taken from the first.

    torch's own `tree_map` does this for every kind of container, at ten times the time: this runs at every step.
    """
    if isinstance(first, Tensor):
        return function(first, *others)
    if type(first) in (tuple, list):
        return type(first)(map_tensors(function, *leaves) for leaves in zip(first, *others, strict=True))
    if isinstance(first, tuple):  # with named fields
        return type(first)(*(map_tensors(function, *leaves) for leaves in zip(first, *others, strict=True)))
    if isinstance(first, dict):
        mapped = {name: map_tensors(function, leaf, *(other[name] for other in others)) for name, leaf in first.items()}
        return mapped if type(first) is dict else type(first)(**mapped)  # diffusers' output classes
    return first


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a tree."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for leaf in tree:
            yield from tensors_of(leaf)
    elif isinstance(tree, dict):
        yield from tensors_of(list(tree.values()))


def fit_tokens(leaf: Tensor, tokens: int) -> Tensor:
    """Crops a tensor `(rows, tokens, channels)`, or pads it with zeros, at the end of its second dimension."""
    if leaf.shape[1] == tokens:
        return leaf
    return leaf[:, :tokens] if leaf.shape[1] > tokens else pad(leaf, (0, 0, 0, tokens - leaf.shape[1]))
