"""What a method is: a way to accelerate a pipeline for the time of a context, and what it tells afterwards."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blockdance import Plan, ReuseSchedule, apply_blockdance

FULL_COMPUTE = "Full compute"
FEWER_STEPS = "Fewer steps"
RANDOM = "Random, as often as Ada"
STATIC = "Best static schedule"
PAPER_PEERS = "Peers in BlockDance's paper"
PEERS = "Other caches"
CALIBRATED = "BlockDance, calibrated"
BLOCK_CACHING = "Block Caching"
ADA = "Ada"
ADA_BUDGET = "Ada, within a budget"


class NotApplicableError(RuntimeError):
    """A method that cannot run on this pipeline; the message says why, for its row of the table."""


@dataclass(frozen=True)
class BatchReport:
    """What a method did to one batch.

    Args:
        actions: int64 `(images, num_steps)`, or None for a method without actions.
        macs: float64 `(images,)`, MACs of the denoising steps that ran; None where they are counted from outside.
        cache_bytes: most bytes that the method kept between steps; None where nobody knows.
    """

    actions: Tensor | None = None
    macs: Tensor | None = None
    cache_bytes: int | None = None


@dataclass
class Run:
    """An accelerated pipeline, while its context lasts.

    Args:
        report: tells, after the pipeline ran and still inside the context, what was done.
        call: is called in place of the pipeline, with the pipeline's arguments; None calls the pipeline itself.
    """

    report: Callable[[], BatchReport] = field(default=BatchReport)
    call: Callable[..., Any] | None = None


Accelerate = Callable[[Any, slice], AbstractContextManager[Run]]
"""Called with the pipeline and the batch's place among all cases; the pipeline is accelerated while the context lasts."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a pipeline.

    Args:
        name: unique, for the table.
        family: methods that share a colour and a line in the plot.
        label: short name of the point in the plot.
        num_inference_steps: denoising steps.
        accelerate: see `Accelerate`; `Planned` makes one of a BlockDance plan, calibrated and Block Caching plans among them.
        note: what exactly it does, for `results.json` and the page.
        data_dependent: whether the work depends on the images, so that it is counted for every batch, not once.
        must_save: whether a run that does not save MACs means that the method never took hold.
    """

    name: str
    family: str
    label: str
    num_inference_steps: int
    accelerate: Accelerate
    note: str
    data_dependent: bool = False
    must_save: bool = False


@contextmanager
def unchanged(pipeline: Any, images: slice) -> Iterator[Run]:
    """Leaves the pipeline as it is."""
    yield Run(lambda: BatchReport(cache_bytes=0))


@dataclass(frozen=True)
class Unavailable:
    """Does not apply.

    Args:
        reason: why.
    """

    reason: str

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        raise NotApplicableError(self.reason)
        yield Run()


@dataclass(frozen=True)
class Planned:
    """Runs a BlockDance plan.

    Args:
        plan: whatever `apply_blockdance` takes: a config, a decider, or a schedule with a single row or one row per case of the
            whole evaluation.
    """

    plan: Plan

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        plan = self.plan
        if isinstance(plan, ReuseSchedule) and plan.batch_size > 1:
            plan = ReuseSchedule(plan.actions[images], plan.kinds)
        with apply_blockdance(pipeline, plan) as handle:

            def report() -> BatchReport:
                done = handle.report()
                return BatchReport(done.actions, done.macs_computed, done.peak_cache_bytes)

            yield Run(report)


def full_method(num_inference_steps: int) -> Method:
    """The reference of all others."""
    return Method(
        name=FULL_COMPUTE,
        family=FULL_COMPUTE,
        label="full",
        num_inference_steps=num_inference_steps,
        accelerate=unchanged,
        note="The plain pipeline: every block at every step. The reference of the others.",
    )


def planned_method(name: str, family: str, label: str, num_inference_steps: int, plan: Plan, note: str) -> Method:
    """A method that runs a BlockDance plan: the place for schedules that were calibrated, learnt or written by hand."""
    return Method(
        name=name, family=family, label=label, num_inference_steps=num_inference_steps, accelerate=Planned(plan), note=note
    )  # fmt: skip


def whole_batch(macs: float, images: int) -> Tensor:
    """MACs of a batch, shared equally among its images: float64 `(images,)`."""
    return torch.full((images,), macs / images, dtype=torch.float64)
