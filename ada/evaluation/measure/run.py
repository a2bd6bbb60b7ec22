"""Runs methods through the stock pipeline, so that what is measured is what users run. Nothing is timed here: see `timing`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.measure.counting import Count, counted_decisions, counted_macs, counted_memory
from ada.evaluation.measure.metrics import Measured, Metric, edge_density, measure_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.together import run_together, shared_plan
from ada.evaluation.methods import BatchReport, Method, NotApplicableError, Planned, whole_batch
from ada.evaluation.subject import Cases, Generated, Subject, generate
from blockdance import ReuseSchedule

LEAST_SAVED = 0.001
MOST_IMAGES = 256
SKIPPED_NOTHING = "It attached without an error and skipped nothing: as many MACs as full compute."


@dataclass(frozen=True)
class Plan:
    """An evaluation's ingredients.

    Args:
        subject: the pipeline.
        methods: the first is the reference.
        cases: prompts and seeds.
        metrics: by name.
        embed: features `(images, width)` of images, for the Fréchet distance.
        store: where measurements are kept.
        kept: places of the cases whose images are kept.
        most_images: most images of one call of the pipeline that methods share; up to the batch size, each has calls of its own.
    """

    subject: Subject
    methods: Sequence[Method]
    cases: Cases
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    store: Store
    kept: frozenset[int] = frozenset()
    most_images: int = MOST_IMAGES


def measure(plan: Plan, advance: Callable[[str], None] = lambda name: None) -> dict[str, str | None]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Every image is made once: MACs are counted in the same run, of the methods whose work depends on the images at every batch, of
    the others at the first.

    Args:
        plan: what to run.
        advance: called with a method's name before each of its `len(cases.batches())` turns.

    Returns:
        By method, why it does not apply; None where it does.
    """
    for number, batch in enumerate(plan.cases.batches()):
        reasons = _measure_batch(plan, number, batch, advance)
    return reasons


def _measure_batch(plan: Plan, number: int, batch: slice, advance: Callable[[str], None]) -> dict[str, str | None]:
    """All methods on one batch: the reference, then those that share their calls, then the others one by one."""
    store = plan.store
    todo = [method for method in plan.methods if store.reason(method) is None and store.batch(method, number) is None]
    for method in plan.methods:
        if method not in todo:
            advance(method.name)
    if todo:
        reference = _reference(plan, number, batch, advance)
        _run_others(plan, [method for method in todo if method is not plan.methods[0]], number, batch, reference, advance)
    store.drop_reference(number)
    return {method.name: store.reason(method) for method in plan.methods}


def _reference(plan: Plan, number: int, batch: slice, advance: Callable[[str], None]) -> Generated:
    """The images of full compute, measured where they were not yet."""
    store, first = plan.store, plan.methods[0]
    reference, measured = store.reference(number), store.batch(first, number)
    if measured is None:
        advance(first.name)
    if reference is None or measured is None:
        ran = run_batch(plan.subject, first, plan.cases, batch, Count() if _needs_count(first, number) else None)
        reference = ran.generated
        store.add_reference(number, reference)
        store.write("frames", reference.images.shape[1] if reference.images.ndim == 5 else None)
        if measured is None:
            _keep(
                plan, first, number, batch, _measured(plan, reference, range(batch.stop - batch.start), batch, reference), ran
            )
    return reference


def _run_others(
    plan: Plan, todo: Sequence[Method], number: int, batch: slice, reference: Generated, advance: Callable[[str], None]
) -> None:
    """First the methods that share their calls, then the others one by one."""
    alone = list(todo)
    for methods, plans in _calls(plan, todo, batch.stop - batch.start):
        alone = [method for method in alone if method not in methods]
        for method in methods:
            advance(method.name)
        _run_shared(plan, methods, plans, number, batch, reference)
    for method in alone:
        advance(method.name)
        _run_alone(plan, method, number, batch, reference)


def _calls(plan: Plan, methods: Sequence[Method], num_images: int) -> Iterator[tuple[list[Method], list[Any]]]:
    """The methods that run in one call of the pipeline each: of one number of steps, their deciders seeing the same block."""
    waiting: dict[int, list[tuple[Method, Any]]] = {}
    boundaries: dict[int, int] = {}
    for method in methods:
        shared, steps = shared_plan(plan.subject, method), method.num_inference_steps
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
            yield tuple(map(list, zip(*together[start : start + most], strict=True)))  # type: ignore[misc]


def _run_shared(
    plan: Plan, methods: Sequence[Method], plans: Sequence[Any], number: int, batch: slice, reference: Generated
) -> None:
    generated, places, shared = run_together(
        plan.subject, methods, plans, plan.cases, batch, plan.cases.batch_size, counted=number == 0
    )
    measured = _measured(plan, generated, places, batch, reference)
    for method, done in zip(methods, shared, strict=True):
        if done.failure is not None:
            plan.store.refuse(method, done.failure)
            continue
        report = BatchReport(done.actions, done.action_names, done.macs)
        _keep(plan, method, number, batch, measured.take(done.images), Ran(generated, report, 0.0, own_macs=done.own_macs))


def _run_alone(plan: Plan, method: Method, number: int, batch: slice, reference: Generated) -> None:
    try:
        ran = run_batch(plan.subject, method, plan.cases, batch, Count() if _needs_count(method, number) else None)
    except NotApplicableError as error:
        plan.store.refuse(method, str(error))
        return
    if number == 0 and _skipped_nothing(plan, method, ran.macs):
        plan.store.refuse(method, SKIPPED_NOTHING)
        return
    _keep(plan, method, number, batch, _measured(plan, ran.generated, range(batch.stop - batch.start), batch, reference), ran)


def _needs_count(method: Method, number: int) -> bool:
    """Whether MACs are counted, which slows a run down: BlockDance reports its own, but for what a policy takes."""
    if method.data_dependent:
        return True
    reports = isinstance(method.accelerate, Planned) and _network_of(method) is None
    return number == 0 and not reports


def _skipped_nothing(plan: Plan, method: Method, macs: float) -> bool:
    """Whether a method that must save MACs counted as many in the first batch as the reference."""
    if not method.must_save:
        return False
    full = float(sum(plan.store.batch(plan.methods[0], 0)["macs"]))
    return macs > (1 - LEAST_SAVED) * full


def _measured(plan: Plan, generated: Generated, places: Sequence[int], batch: slice, reference: Generated) -> Measured:
    """Images at these places of a batch, beside its reference."""
    device = generated.images.device
    beside = Generated(reference.images[list(places)].to(device), reference.latents[list(places)].to(device))
    prompts = [plan.cases.prompts[batch.start + place] for place in places]
    return measure_images(plan.metrics, plan.embed, generated, prompts, beside, plan.cases.batch_size)


def _keep(plan: Plan, method: Method, number: int, batch: slice, measured: Measured, ran: "Ran") -> None:
    """Stores what a method did to a batch."""
    images = batch.stop - batch.start
    macs = ran.report.macs if ran.report.macs is not None else whole_batch(ran.macs, images) if ran.macs else None
    is_reference = method is plan.methods[0]
    measurements = {
        "values": measured.values,
        "edge_density": edge_density(measured.images).tolist() if is_reference else None,
        "macs": None if macs is None else macs.tolist(),
        "own_macs": ran.own_macs / images,
        "actions": None if ran.report.actions is None else ran.report.actions.tolist(),
        "action_names": list(ran.report.action_names),
        "cache_bytes": ran.report.cache_bytes,
    }
    # thumbnails of any prompt's reference may be asked for
    kept = [place for place in range(batch.start, batch.stop) if is_reference or place in plan.kept]
    plan.store.add_images(method, kept, measured.images[[place - batch.start for place in kept]])
    plan.store.add_batch(method, number, measurements, measured.features)


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
    subject: Subject, method: Method, cases: Cases, batch: slice, count: Count | None = None, weigh: bool = False
) -> Ran:
    """One call of the pipeline: with `count` its MACs are counted, with `weigh` its memory instead; either slows it down."""
    own = Count()
    with ExitStack() as stack:
        run = stack.enter_context(method.accelerate(subject.pipeline, batch))
        _synchronize(subject.device)
        start = time.perf_counter()
        with ExitStack() as counters:
            if count is not None and weigh:
                counters.enter_context(counted_memory(subject.device, count))
            elif count is not None:
                counters.enter_context(counted_macs(subject.pipeline.transformer, count))
                decider = _network_of(method)
                counters.enter_context(nullcontext() if decider is None else counted_decisions(decider, own))
            generated = generate(subject, cases.prompts[batch], cases.seeds[batch], method.num_inference_steps, run.call)
        _synchronize(subject.device)
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
