"""Digests that tell settings and weights apart."""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import partial
from inspect import getclosurevars, isfunction, ismethod
from typing import Any

import numpy as np
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from PIL import Image
from torch import Tensor, nn

from ada.rewards import Reward
from ada.rewards.base import source_digest

SAMPLED = 64
"""Values of a large tensor, spread evenly over it, that tell it from others."""
SUMMED_AT_ONCE = 2**18
ADAPTERS = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
"""Attributes of peft's layers; no others have the first."""
WHOLE_BITS = 44
"""The largest weight of a tensor is so many bits long as a whole number: then `SUMMED_AT_ONCE` of them cannot overflow 64 bits."""


def weights_digest(module: nn.Module) -> str:
    """A digest of a model's weights, from sums of its parameters, wherever they lie and however many threads add them up."""
    sums: dict[str, Any] = {name: _sums(tensor.detach().cpu().flatten()) for name, tensor in _weights(module).items()}
    return digest(sums | _adapters(module))


def _sums(values: Tensor) -> list[float]:
    """The sum of values `(count,)`, and of their magnitudes. Added up as whole numbers, which no order of addition rounds otherwise; what
    lies below the last bit of the largest value is left out."""
    largest = float(values.abs().max()) if len(values) else 0.0
    if largest == 0 or not math.isfinite(largest):
        return [largest, largest]
    shift = WHOLE_BITS - math.frexp(largest)[1]
    total = magnitude = 0
    for part in values.split(SUMMED_AT_ONCE):
        whole = part.to(torch.float64, copy=True).mul_(2.0**shift).long()
        total, magnitude = total + int(whole.sum()), magnitude + int(whole.abs_().sum())
    return [math.ldexp(total, -shift), math.ldexp(magnitude, -shift)]


def parts_digest(pipeline: Any) -> dict[str, str]:
    """Digests of all models of a pipeline, such as text encoders and the decoder, by name: from their tensors' types and shapes and a few
    values of each, so that the largest take no time.

    Args:
        pipeline: holds the models as attributes.
    """
    return {name: _sampled_digest(part) for name, part in vars(pipeline).items() if isinstance(part, nn.Module)}


def networks_digest(held: Any) -> list[str]:
    """Digests of the networks that rewards, or features of images, compute with, in their order; from a few values of each tensor.

    Args:
        held: a network, a reward, another object of this package, a method of one, or mappings and lists of them. Others' objects, such as
            tokenizers, are not looked into.
    """
    held = held.__self__ if ismethod(held) else held
    if isinstance(held, nn.Module):
        return [_sampled_digest(held)]
    if isinstance(held, Mapping):
        parts = list(held.values())
    elif isinstance(held, list | tuple):
        parts = list(held)
    else:
        is_ours = isinstance(held, Reward) or type(held).__module__.startswith("ada.")
        parts = list(vars(held).values()) if is_ours else []
    return [found for part in parts for found in networks_digest(part)]


def _sampled_digest(module: nn.Module) -> str:
    return digest({key: _sample(tensor) for key, tensor in _weights(module).items()} | _adapters(module))


def _adapters(module: nn.Module) -> dict[str, Any]:
    """How strong the LoRAs of a model are, and which of them are on: peft keeps that beside the weights."""
    layers = [(path, vars(layer)) for path, layer in module.named_modules() if ADAPTERS[0] in vars(layer)]
    return {f"{path}.{name}": described(held[name]) for path, held in layers for name in ADAPTERS if name in held}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A model's state, those tensors included that accelerate keeps elsewhere until they are needed."""
    state: dict[str, Tensor] = module.state_dict()
    if not any(tensor.is_meta for tensor in state.values()):
        return state
    elsewhere: dict[str, Mapping[str, Tensor]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        hook = vars(part).get("_hf_hook")
        for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
            if isinstance(one, AlignDevicesHook) and one.offload:
                elsewhere[path] = one.weights_map
    return {
        key: elsewhere[key.rpartition(".")[0]][key.rpartition(".")[2]] if tensor.is_meta else tensor
        for key, tensor in state.items()
    }


def _sample(tensor: Tensor) -> list[Any]:
    flat = tensor.flatten()
    return [str(tensor.dtype), list(tensor.shape), flat[:: max(1, len(flat) // SAMPLED)].double().tolist()]


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits that tell one piece of JSON from another."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(value: Any, holders: tuple[Any, ...] = ()) -> Any:
    """A setting as JSON that tells it from others: tensors and images by their content, functions by name, source and what they hold,
    objects by class and attributes, what has none by its text, and one of its `holders`, which it refers back to, by class alone."""
    if value is None or isinstance(value, str | int | float):
        return value
    if any(value is holder for holder in holders):
        return [qualified_name(value), {}]
    holders = (*holders, value)
    if isinstance(value, Mapping):
        return {str(name): described(part, holders) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part, holders) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((described(part, holders) for part in value), key=str)
    if isinstance(value, Tensor | np.ndarray | Image.Image):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
        return [list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]]
    if isinstance(value, nn.Module):
        return weights_digest(value)
    if isinstance(value, partial):
        return [qualified_name(value), described([value.func, value.args, value.keywords], holders)]
    if ismethod(value):
        return [qualified_name(value), described(value.__self__, holders)]
    if isfunction(value):
        # constants, too: of two lambdas in one line the source is the same
        constants = [each for each in value.__code__.co_consts if isinstance(each, int | float | str)]
        held = [value.__defaults__, value.__kwdefaults__, getclosurevars(value).nonlocals, constants]
        return [qualified_name(value), {"source": source_digest(value), "held": described(held, holders)}]
    if hasattr(value, "__qualname__"):
        return [qualified_name(value), {}]
    if not hasattr(value, "__dict__"):
        return [qualified_name(value), str(value).partition(" at 0x")[0]]
    return [qualified_name(value), {name: described(part, holders) for name, part in vars(value).items()}]


def qualified_name(value: Any) -> str:
    """The name of a function or class, with its module; of another object, that of its class."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
