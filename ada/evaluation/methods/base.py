"""What a method is: a way to accelerate a pipeline for the time of a context, and what it tells afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from blockdance import BlockDanceConfig, Plan, ReuseSchedule, apply_blockdance
from blockdance.kinds import Kind

FULL_COMPUTE = "Full compute"
FEWER_STEPS = "Fewer steps"
RANDOM = "Random, as often as Ada"
STATIC = "Best static schedule"
ADA = "Ada"
ADA_BUDGET = "Ada, within a budget"

Group = Literal["plain", "blockdance", "static", "ada", "peers"]
"""Whose idea it is; gives the colour in every figure."""
STATIC_GROUPS = ("plain", "blockdance", "static")
"""Those that do not look at the image."""


class NotApplicableError(RuntimeError):
    """A method that cannot run on this pipeline; the message says why, for its row of the table."""


@dataclass(frozen=True)
class BatchReport:
    """What a method did to one batch.

    Args:
        actions: int64 `(images, num_steps)`, or None for a method without actions.
        action_names: what the actions mean, action 0 first; empty without actions.
        macs: float64 `(images,)`, MACs of the denoising steps that ran; None where they are counted from outside.
        cache_bytes: most bytes that the method kept between steps; None where nobody knows.
    """

    actions: Tensor | None = None
    action_names: tuple[str, ...] = ()
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
        family: methods that form a line in the plot.
        group: whose colour it takes.
        label: its name among its family.
        num_inference_steps: denoising steps.
        accelerate: see `Accelerate`; `Planned` makes one of a BlockDance plan, calibrated and Block Caching plans among them.
        note: what exactly it does, in words.
        settings: the same for programs; with the name it tells stored measurements apart.
        data_dependent: whether the work depends on the images, so that it is counted for every batch, not once.
        must_save: whether a run that does not save MACs means that the method never took hold.
        main: whether it runs by default; the others are settings around a main one, which a sweep runs as well.
        timed: whether the latency of a main one is measured; where a neighbouring setting is timed, it tells nothing new.
    """

    name: str
    family: str
    group: Group
    label: str
    num_inference_steps: int
    accelerate: Accelerate
    note: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_dependent: bool = False
    must_save: bool = False
    main: bool = True
    timed: bool = True


@contextmanager
def unchanged(pipeline: Any, images: slice) -> Iterator[Run]:
    """Leaves the pipeline as it is."""
    yield Run(lambda: BatchReport(cache_bytes=0))


@dataclass(frozen=True)
class Unavailable:
    """Does not apply, and says why."""

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
        plan = rows_of(self.plan, images)
        with apply_blockdance(pipeline, plan) as handle:

            def report() -> BatchReport:
                done = handle.report()
                return BatchReport(done.actions, names_of(done.kinds), done.macs_computed, done.peak_cache_bytes)

            try:
                yield Run(report)
            except ValueError as error:  # a wish that a policy finds out too late that it cannot meet
                if isinstance(plan, BlockDanceConfig | ReuseSchedule):
                    raise
                raise NotApplicableError(str(error)) from error


def rows_of(plan: Any, images: slice) -> Any:
    """A plan for some of the cases: of a schedule with a row per case their rows."""
    has_rows = isinstance(plan, ReuseSchedule) and plan.batch_size > 1
    return ReuseSchedule(plan.actions[images], plan.kinds) if has_rows else plan


def names_of(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """What actions mean, action 0 first."""
    return ("compute", *(f"reuse {kind}" for kind in kinds))


@dataclass(frozen=True)
class OneByOne:
    """Runs a method image by image: for those that decide for the whole batch, a batch of one is where they are at their best.

    Args:
        accelerate: of the method; it is entered anew for every image.
    """

    accelerate: Accelerate

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        kept: list[int] = []

        def call(prompts: Sequence[str], *, generator: Sequence[torch.Generator], **arguments: Any) -> tuple[Tensor]:
            made = []
            for place, (prompt, noise) in enumerate(zip(prompts, generator, strict=True), images.start):
                with self.accelerate(pipeline, slice(place, place + 1)) as run:
                    made.append((run.call or pipeline)([prompt], generator=[noise], **arguments)[0])
                    kept.append(run.report().cache_bytes or 0)
            return (torch.cat(made),)

        yield Run(lambda: BatchReport(cache_bytes=max(kept)), call)


def one_by_one(method: Method) -> Method:
    """The method image by image."""
    return replace(
        method, name=f"{method.name}, batch 1", family=f"{method.family}, batch 1", label=f"{method.label}, batch 1",
        accelerate=OneByOne(method.accelerate), note=f"{method.note} Here every image is a batch of its own.",
        settings={**method.settings, "batch_size": 1}, timed=False,
    )  # fmt: skip


def planned_method(
    name: str, family: str, group: Group, label: str, num_inference_steps: int, plan: Plan, note: str,
    *, main: bool = True, timed: bool = True,
) -> Method:  # fmt: skip
    """A method that runs a BlockDance plan: the place for schedules that were calibrated, learnt or written by hand."""
    return Method(
        name=name, family=family, group=group, label=label, num_inference_steps=num_inference_steps, accelerate=Planned(plan),
        note=note, settings=settings_of(plan), main=main, timed=timed,
    )  # fmt: skip


def settings_of(plan: Plan) -> dict[str, Any]:
    """A configuration's fields, or a schedule's actions and kinds; of a decider nothing, which its method has to add."""
    if isinstance(plan, BlockDanceConfig):
        return {**asdict(plan), "reuse_range": list(plan.reuse_range)}
    if isinstance(plan, ReuseSchedule):
        rows = [("" if len(plan.kinds) < 10 else " ").join(map(str, row)) for row in plan.actions.tolist()]
        return {"actions": rows[0] if len(rows) == 1 else rows, "kinds": [str(kind) for kind in plan.kinds]}
    return {}
