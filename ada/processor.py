"""The processor: its name, and linear layers that use all of it.

torch multiplies float32 matrices with Intel's MKL, which leaves part of other makers' vector units idle: on a core of an AMD EPYC (Zen 5)
a layer of hundreds of rows takes half as long by oneDNN, a whole generation three fifths (`benchmarks/linear.py`). torch has both, but
no switch between them.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_PRODUCTS = 2**20
"""Multiplications below which oneDNN's call costs more than its arithmetic saves."""
_torch_linear = F.linear


@cache
def processor_facts() -> dict[str, str]:
    """What Linux tells of the first core, such as its `vendor_id`; elsewhere nothing."""
    information = Path("/proc/cpuinfo")
    first = information.read_text(encoding="utf-8").partition("\n\n")[0] if information.is_file() else ""
    facts = (line.partition(":") for line in first.splitlines())
    return {name.strip(): fact.strip() for name, _, fact in facts}


def processor_name() -> str:
    """The processor's model where the system tells it, else its architecture."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()


@cache
def is_held_back() -> bool:
    """Whether torch multiplies with MKL on a processor that is not Intel's, and has oneDNN as well."""
    vendor = processor_facts().get("vendor_id") or platform.processor()
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and "GenuineIntel" not in vendor


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN where that can and pays: large, dense float32 operands on a CPU, without gradients or
    autocast."""
    if torch.compiler.is_compiling():  # the compiler chooses for itself, and cannot lower the operator with unpacked weights
        return _torch_linear(input, weight, bias)
    operands = [input, weight] if bias is None else [input, weight, bias]
    fits = all(
        type(one) in (Tensor, nn.Parameter)
        and one.dtype is torch.float32
        and one.device.type == "cpu"
        and one.layout is torch.strided
        for one in operands
    )
    if not fits or input.ndim < 2 or weight.ndim != 2 or input.numel() * len(weight) < LEAST_PRODUCTS:
        return _torch_linear(input, weight, bias)
    if torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and any(one.requires_grad for one in operands)):
        return _torch_linear(input, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


class _Switch:
    """Has `onednn_linear` in torch's place while anyone uses it; users, such as threads, leave in any order."""

    def __init__(self) -> None:
        self._replaced, self._lock, self._users = patch.object(F, "linear", onednn_linear), Lock(), 0

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._replaced.start()
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._replaced.stop()


_switch = _Switch()


@contextmanager
def fast_linear(device: torch.device) -> Iterator[None]:
    """On a CPU that MKL holds back, linear layers run by oneDNN while the context lasts. Up to rounding nothing else changes.

    It is one switch for all threads, off when the last of them leaves; a function that somebody else put in torch's place stays.
    """
    if device.type != "cpu" or not is_held_back() or F.linear not in (_torch_linear, onednn_linear):
        yield
        return
    _switch.enter()
    try:
        yield
    finally:
        _switch.leave()
