"""One call of the pipeline, and what it really did, counted from outside: MACs of its transformer, memory, seconds."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ada.evaluation.methods.base import BatchReport, Cases, Generated, Method, generate
from ada.rollouts import FrozenPipeline
from blockdance import BlockDanceConfig, ReuseSchedule
from blockdance.opaque import OpaqueLayers

_SINGLE: set[Any] = {torch.ops.prim.device.default}
"""Operations that are made of no others, or of none that computes."""
Result = TypeVar("Result")


class MacCounter(TorchDispatchMode):
    """Adds up the MACs of everything that runs inside, with the formulas of `torch.utils.flop_counter`.

    Its `FlopCounterMode` also keeps the tree of modules, and never comes back from a module that contains itself, as those of
    cache-dit do. PyTorch's own encoder layers, as in the paper's policy, run without their fused operator, which no formula knows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0.0
        self._formulas = dict(flop_registry) | FORMULAS
        self._fused: list[bool] = []

    def __enter__(self) -> "MacCounter":
        self._fused.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fused.pop())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _SINGLE:  # nearly all operations, so nothing else is asked of them
            return function(*args, **kwargs)
        formula = self._formulas.get(function._overloadpacket)
        if formula is None:
            # an operation made of others, such as `matmul` without autograd; one that gives views computes nothing
            results = function._schema.returns
            if not results or any(result.alias_info is None for result in results):
                with self:
                    parts = function.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            _SINGLE.add(function)
        output = function(*args, **kwargs)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=output) / 2
        return output


def _product_flops(place: int, *operands: Any, out_val: Tensor, **kwargs: Any) -> int:
    """Of a matrix product whose left side is the operand at this place."""
    return 2 * out_val.numel() * int(operands[place].shape[-1])


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((torch.ops.aten.linear, torch.ops.aten.mm, torch.ops.aten.bmm), partial(_product_flops, 0)),
    **dict.fromkeys((torch.ops.aten.addmm, torch.ops.aten.baddbmm), partial(_product_flops, 1)),
    **dict.fromkeys(
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, torch.ops.aten.scaled_dot_product_attention),
        _attention_flops,
    ),
    **({torch.ops.mkldnn._linear_pointwise: partial(_product_flops, 0)} if torch.backends.mkldnn.is_available() else {}),
}
"""Of what `torch.utils.flop_counter` does not know, and of the matrix products, for which its own cost more than the product does."""


@contextmanager
def counted_macs(transformer: nn.Module) -> Iterator[MacCounter]:
    """Counts the MACs of every call of the transformer, whatever wraps or patches it; those of packed linear layers, whose operators no
    counter knows, as `blockdance` does in its reports.

    Counting slows the model down: never time what runs inside.
    """
    counter = MacCounter()
    opaque = OpaqueLayers(lambda: int(2 * counter.macs))

    def start(*arguments: Any) -> None:
        opaque.flops = 0  # of layers that were called by themselves
        counter.__enter__()

    def end(*arguments: Any) -> None:
        counter.__exit__(None, None, None)
        counter.macs += opaque.flops / 2

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(start).remove)
        hooks.callback(transformer.register_forward_hook(end, always_call=True).remove)
        opaque.watch(transformer, hooks)
        yield counter


@contextmanager
def counted_decisions(decider: Any) -> Iterator[MacCounter]:
    """Counts the MACs of everything that a decider does to decide."""
    counter, decide = MacCounter(), decider.decide

    def counted(state: Any) -> Any:
        with counter:
            return decide(state)

    vars(decider)["decide"] = counted
    try:
        yield counter
    finally:
        del vars(decider)["decide"]


def weighed(device: torch.device, call: Callable[[], Result]) -> tuple[Result, int]:
    """What a call gives, and the most bytes that it held at once above those that are held before it: weights are not in it.

    On a GPU the allocator knows; on a CPU the profiler's allocation events are added up, which slows the call down.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return call(), torch.cuda.max_memory_allocated(device) - before
    # else the profiler announces itself on the terminal, in the middle of the progress bar
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events: Any = profiler.profiler.kineto_results.events()
    peak = max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))
    # the profiler is part of a cycle and holds hundreds of megabytes of events
    del profiler, events
    gc.collect()
    return result, peak


@dataclass(frozen=True)
class Ran:
    """One call of the pipeline.

    Args:
        generated: what it made.
        report: what the method says; where that is no MACs and they were counted, those.
        seconds: how long the call took; longer where something was counted or weighed.
        macs: of the transformer, counted from outside; 0 where they were not.
        peak_bytes: most memory held at once beside the weights; None where it was not weighed.
    """

    generated: Generated
    report: BatchReport
    seconds: float
    macs: float = 0.0
    peak_bytes: int | None = None


def run_batch(
    frozen: FrozenPipeline, method: Method, cases: Cases, batch: slice, *, count: bool = False, weigh: bool = False, ask: bool = True
) -> Ran:  # fmt: skip
    """One call of the pipeline: with `count` its MACs are counted, with `weigh` its memory is; either slows it down.

    Without `ask` the report is empty: what BlockDance did takes seconds to work out at the first call of a shape.

    Raises:
        NotApplicableError: the method does not apply.
    """
    images = batch.stop - batch.start
    decider = None if isinstance(method.plan, BlockDanceConfig | ReuseSchedule) else method.plan
    with method.accelerate(frozen.pipeline, batch) as run:
        call = partial(generate, frozen, cases.prompts[batch], cases.seeds[batch], method.num_inference_steps, run)
        _synchronize(frozen.device)
        start = time.perf_counter()
        with ExitStack() as counters:
            macs = counters.enter_context(counted_macs(frozen.transformer)) if count else MacCounter()
            own = counters.enter_context(counted_decisions(decider)) if count and decider is not None else MacCounter()
            generated, peak = weighed(frozen.device, call) if weigh else (call(), None)
        _synchronize(frozen.device)
        seconds = time.perf_counter() - start
        report = run.report() if ask else BatchReport()
    if count and report.macs is None:
        report = replace(report, macs=torch.full((images,), macs.macs / images, dtype=torch.float64))
    return Ran(generated, replace(report, own_macs=own.macs / images), seconds, macs.macs, peak)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
