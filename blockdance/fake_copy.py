"""A copy of a model without memory: as large as the model, computing nothing, and without the hooks that move weights."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

_STAND_INS = ("forward", "cache_context", "_old_forward", "_hf_hook", "_diffusers_hook", "_blockdance")
"""What accelerate, diffusers and this package put on a module: hooks that move weights, and the methods that they replaced."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


def fake_copy(transformer: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Copies a model into a mode. It must be a copy: models keep tensors between calls (rotary tables), and fake ones must not stay.

    Args:
        transformer: the model; its weights may be offloaded.
        mode: the mode of the copy's tensors.
    """
    memo: dict[int, Any] = {}
    for module in transformer.modules():
        own = vars(module)
        memo |= {id(own[name]): None for name in _STAND_INS if name in own}
        memo |= {id(own[name]): OrderedDict() for name in _HOOKS}
    with FakeCopyMode(mode):
        copied: nn.Module = copy.deepcopy(transformer, memo)
    device = home(transformer)
    with mode:
        for module in copied.modules():
            for name in _STAND_INS:
                vars(module).pop(name, None)
            _bring_home(module, device)
    return copied


def home(transformer: nn.Module) -> torch.device:
    """The device of a model's weights; offloaded ones, which have none, count as the CPU's."""
    devices = (parameter.device for parameter in transformer.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _bring_home(module: nn.Module, device: torch.device) -> None:
    """Puts weights that are elsewhere, or nowhere, on the device."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.device != device:
            module._parameters[name] = nn.Parameter(_empty(parameter, device), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device != device:
            module._buffers[name] = _empty(buffer, device)


def _empty(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
