"""Runs methods through the stock pipeline, so that what is measured is what users run. Nothing is timed here: see `timing`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.cases import Cases, Generated, generate
from ada.evaluation.measure.counting import Count, counted_decisions, counted_macs, counted_memory
from ada.evaluation.measure.metrics import Measured, Metric, edge_density, measure_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.together import run_together, shared_plan
from ada.evaluation.methods import BatchReport, Method, NotApplicableError, Planned
from ada.rollouts import FrozenPipeline
from blockdance import ReuseSchedule

LEAST_SAVED = 0.001
MOST_IMAGES = 256
SKIPPED_NOTHING = "It attached without an error and skipped nothing: as many MACs as full compute."
Advance = Callable[[str], None]
"""Called with a method's name before each of its turns."""


@dataclass(frozen=True)
class Plan:
    """An evaluation's ingredients.

    Args:
        frozen: the pipeline.
        methods: the first is the reference.
        cases: prompts and seeds.
        metrics: by name.
        embed: features `(images, width)` of images, for the Fréchet distance.
        store: where measurements are kept.
        kept: places of the cases whose images are kept.
        most_images: most images of one call of the pipeline that methods share; up to the batch size, each has calls of its own.
    """

    frozen: FrozenPipeline
    methods: Sequence[Method]
    cases: Cases
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    store: Store
    kept: frozenset[int] = frozenset()
    most_images: int = MOST_IMAGES


def measure(plan: Plan, advance: Advance = lambda name: None) -> dict[str, str | None]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Every image is made once: MACs are counted in the same run, of the methods whose work depends on the images at every batch, of
    the others at the first. The reference alone is made again for a batch in which the run was killed.

    Args:
        plan: what to run.
        advance: called `len(cases.batches())` times for every method.

    Returns:
        By method, why it does not apply; None where it does.
    """
    store = plan.store
    for number, batch in enumerate(plan.cases.batches()):
        todo = [method for method in plan.methods if store.reason(method) is None and store.batch(method, number) is None]
        for method in plan.methods:
            if method not in todo:
                advance(method.name)
        if todo:
            _measure_batch(plan, todo, number, batch, advance)
    return {method.name: store.reason(method) for method in plan.methods}


def _measure_batch(plan: Plan, todo: Sequence[Method], number: int, batch: slice, advance: Advance) -> None:
    """First the reference, then the methods that share their calls, then the others one by one."""
    reference = plan.methods[0]
    is_new = reference in todo
    if is_new:
        advance(reference.name)
    ran = run_batch(plan.frozen, reference, plan.cases, batch, Count() if is_new and number == 0 else None)
    turn = Turn(plan, number, batch, ran.generated)
    if is_new:
        turn.keep(reference, turn.measured(ran.generated, range(len(ran.generated.images))), ran.report, ran.macs, 0.0)
    alone = [method for method in todo if method is not reference]
    for methods, plans in _calls(plan, alone, batch.stop - batch.start):
        alone = [method for method in alone if method not in methods]
        for method in methods:
            advance(method.name)
        turn.run_shared(methods, plans)
    for method in alone:
        advance(method.name)
        turn.run_alone(method)


def _calls(plan: Plan, methods: Sequence[Method], num_images: int) -> Iterator[tuple[list[Method], list[Any]]]:
    """The methods that run in one call of the pipeline each: of one number of steps, their deciders seeing the same block."""
    waiting: dict[int, list[tuple[Method, Any]]] = {}
    boundaries: dict[int, int] = {}
    for method in methods:
        shared, steps = shared_plan(plan.frozen, method), method.num_inference_steps
        if shared is None:
            continue
        if not isinstance(shared, ReuseSchedule):
            boundary = shared.kinds[0].boundary
            if boundaries.setdefault(steps, boundary) != boundary:
                continue
        waiting.setdefault(steps, []).append((method, shared))
    most = max(1, plan.most_images // num_images)
    for together in waiting.values():
        for start in range(0, len(together), most):
            some = together[start : start + most]
            yield [method for method, _ in some], [shared for _, shared in some]


@dataclass(frozen=True)
class Turn:
    """One batch, and its reference.

    Args:
        plan: the evaluation.
        number: of the batch.
        batch: places of its cases.
        reference: its images with every step computed.
    """

    plan: Plan
    number: int
    batch: slice
    reference: Generated

    def run_shared(self, methods: Sequence[Method], plans: Sequence[Any]) -> None:
        """Runs, measures and stores methods in one call."""
        generated, places, shared = run_together(
            self.plan.frozen, methods, plans, self.plan.cases, self.batch, counted=self.number == 0
        )
        measured = self.measured(generated, places)
        for method, done in zip(methods, shared, strict=True):
            if done.failure is not None:
                self.plan.store.refuse(method, done.failure)
            else:
                self.keep(method, measured.take(done.images), done.report, 0.0, done.own_macs)

    def run_alone(self, method: Method) -> None:
        """Runs, measures and stores a method, or why it does not apply."""
        plan, count = self.plan, Count() if _needs_count(method, self.number) else None
        try:
            ran = run_batch(plan.frozen, method, plan.cases, self.batch, count)
        except NotApplicableError as error:
            plan.store.refuse(method, str(error))
            return
        if self.number == 0 and method.must_save:
            full = float(sum(plan.store.batch(plan.methods[0], 0)["macs"]))
            if ran.macs > (1 - LEAST_SAVED) * full:
                plan.store.refuse(method, SKIPPED_NOTHING)
                return
        measured = self.measured(ran.generated, range(len(ran.generated.images)))
        self.keep(method, measured, ran.report, ran.macs, ran.own_macs)

    def measured(self, generated: Generated, places: Sequence[int]) -> Measured:
        """Measures images that have these places in the batch."""
        device, which = generated.images.device, list(places)
        beside = Generated(self.reference.images[which].to(device), self.reference.latents[which].to(device))
        prompts = [self.plan.cases.prompts[self.batch.start + place] for place in places]
        return measure_images(self.plan.metrics, self.plan.embed, generated, prompts, beside, self.plan.cases.batch_size)

    def keep(self, method: Method, measured: Measured, report: BatchReport, macs: float, own_macs: float) -> None:
        """Stores what a method did to the batch.

        Args:
            method: the method.
            measured: a row per image of the batch.
            report: what the method says.
            macs: of the batch, counted from outside, for methods that report none; 0 where they were not counted.
            own_macs: of its decider, the whole batch together.
        """
        plan, batch, images = self.plan, self.batch, self.batch.stop - self.batch.start
        counted = [macs / images] * images if macs else None
        is_reference = method is plan.methods[0]
        measurements = {
            "values": measured.values,
            "edge_density": edge_density(measured.images).tolist() if is_reference else None,
            "macs": counted if report.macs is None else report.macs.tolist(),
            "own_macs": own_macs / images,
            "actions": None if report.actions is None else report.actions.tolist(),
            "action_names": list(report.action_names),
            "cache_bytes": report.cache_bytes,
        }
        if is_reference:
            plan.store.write("frames", measured.images.shape[1] if measured.images.ndim == 5 else None)
        # thumbnails of any prompt's reference may be asked for
        kept = [place for place in range(batch.start, batch.stop) if is_reference or place in plan.kept]
        plan.store.add_images(method, kept, measured.images[[place - batch.start for place in kept]])
        plan.store.add_batch(method, self.number, measurements, measured.features)


def _needs_count(method: Method, number: int) -> bool:
    """Whether MACs are counted, which slows a run down: BlockDance reports its own, but for what a policy takes."""
    reports = isinstance(method.accelerate, Planned) and _network_of(method) is None
    return method.data_dependent or (number == 0 and not reports)


@dataclass(frozen=True)
class Ran:
    """One call of the pipeline.

    Args:
        generated: what it made.
        report: what the method says.
        seconds: how long the call took; longer where something was counted.
        macs: of the transformer, counted from outside; 0 where they were not.
        own_macs: of the decider's own network; 0 where they were not counted.
    """

    generated: Generated
    report: BatchReport
    seconds: float
    macs: float = 0.0
    own_macs: float = 0.0


def run_batch(
    frozen: FrozenPipeline, method: Method, cases: Cases, batch: slice, count: Count | None = None, weigh: bool = False
) -> Ran:
    """One call of the pipeline: with `count` its MACs are counted, with `weigh` its memory instead; either slows it down."""
    own = Count()
    with ExitStack() as stack:
        run = stack.enter_context(method.accelerate(frozen.pipeline, batch))
        _synchronize(frozen.device)
        start = time.perf_counter()
        with ExitStack() as counters:
            if count is not None and weigh:
                counters.enter_context(counted_memory(frozen.device, count))
            elif count is not None:
                counters.enter_context(counted_macs(frozen.transformer, count))
                decider = _network_of(method)
                counters.enter_context(nullcontext() if decider is None else counted_decisions(decider, own))
            generated = generate(frozen, cases.prompts[batch], cases.seeds[batch], method.num_inference_steps, run.call)
        _synchronize(frozen.device)
        seconds = time.perf_counter() - start
        return Ran(generated, run.report(), seconds, count.macs if count is not None else 0.0, own.macs)
    raise AssertionError("a method must not swallow errors")


def _network_of(method: Method) -> nn.Module | None:
    """The network that decides, where there is one."""
    plan = method.accelerate.plan if isinstance(method.accelerate, Planned) else None
    return plan if isinstance(plan, nn.Module) else None


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
