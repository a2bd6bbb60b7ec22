"""Counts what a pipeline really did, from outside: MACs of its transformer, and the most memory it took at once."""

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

MEMORY_EVENT = "[memory]"


@dataclass
class Count:
    """What was counted so far.

    Args:
        macs: multiply-accumulate operations inside the transformer's calls.
        peak_bytes: most bytes held at once above those held at the start; None before the end of `counted_memory`.
    """

    macs: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def counted_macs(transformer: nn.Module, count: Count) -> Iterator[None]:
    """Adds the MACs of every call of the transformer, whatever wraps or patches it, to `count`.

    Counting slows the model down: never time what runs inside.
    """
    counter = MacCounter(count)

    def start(*arguments: Any) -> None:
        counter.__enter__()  # type: ignore[no-untyped-call]

    def end(*arguments: Any) -> None:
        counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(start).remove)
        hooks.callback(transformer.register_forward_hook(end, always_call=True).remove)
        yield


@contextmanager
def counted_decisions(decider: nn.Module, count: Count) -> Iterator[None]:
    """Adds the MACs of everything that a policy does to decide."""
    decide = decider.decide

    def counted(state: Any) -> Any:
        with MacCounter(count):
            return decide(state)  # type: ignore[operator]

    vars(decider)["decide"] = counted
    try:
        yield
    finally:
        del vars(decider)["decide"]


_SINGLE: set[Any] = {torch.ops.prim.device.default}
"""Operations that are made of no others."""


class MacCounter(TorchDispatchMode):
    """Adds the MACs of everything that runs inside to a count, with the formulas of `torch.utils.flop_counter`.

    Its `FlopCounterMode` also keeps the tree of modules, and never comes back from a module that contains itself, as those of
    cache-dit do.
    """

    def __init__(self, count: Count) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count
        self._formulas = dict(flop_registry)
        self._formulas[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = _attention_flops

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self._formulas.get(function._overloadpacket)
        if formula is None and function not in _SINGLE:
            # an operation made of others, such as `linear` without autograd
            with self:
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            _SINGLE.add(function)
        output = function(*args, **kwargs)
        if formula is not None:
            self._count.macs += formula(*args, **kwargs, out_val=output) / 2
        return output


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


@contextmanager
def counted_memory(device: torch.device, count: Count) -> Iterator[None]:
    """Measures the most memory held at once above what is held at the start: weights are not in it.

    On a GPU the allocator knows; on a CPU the profiler's allocation events are added up.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield
        count.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    # else the profiler announces itself on the terminal, in the middle of the progress bar
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == MEMORY_EVENT:
            held += event.nbytes()
            peak = max(peak, held)
    count.peak_bytes = peak
    # the profiler is part of a cycle and holds hundreds of megabytes of events
    del profiler, event
    gc.collect()
