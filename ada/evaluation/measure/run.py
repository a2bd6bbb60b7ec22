"""Runs methods through the stock pipeline, so that what is measured is what users run. Nothing is timed here: see `timing`."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.measure.counting import Count, counted_decisions, counted_macs, counted_memory
from ada.evaluation.measure.metrics import Metric, edge_density, measure_batch
from ada.evaluation.measure.store import Store
from ada.evaluation.methods import BatchReport, Method, NotApplicableError, Planned, whole_batch
from ada.evaluation.subject import Cases, Generated, Subject, generate

LEAST_SAVED = 0.001
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
    """

    subject: Subject
    methods: Sequence[Method]
    cases: Cases
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    store: Store
    kept: frozenset[int] = frozenset()


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
    """All methods on one batch."""
    store = plan.store
    reference = store.reference(number)
    reasons: dict[str, str | None] = {}
    for method in plan.methods:
        advance(method.name)
        reasons[method.name] = store.reason(method)
        if reasons[method.name] is not None or store.batch(method, number) is not None:
            continue
        if reference is None and method is not plan.methods[0]:
            reference = run_batch(plan.subject, plan.methods[0], plan.cases, batch).generated
        count = Count() if _needs_count(method, number) else None
        try:
            ran = run_batch(plan.subject, method, plan.cases, batch, count)
        except NotApplicableError as error:
            reasons[method.name] = str(error)
            store.refuse(method, str(error))
            continue
        if number == 0 and _skipped_nothing(plan, method, ran.macs):
            reasons[method.name] = SKIPPED_NOTHING
            store.refuse(method, SKIPPED_NOTHING)
            continue
        if reference is None:
            reference = ran.generated
            store.add_reference(number, reference)
            store.write("frames", reference.images.shape[1] if reference.images.ndim == 5 else None)
        _keep(plan, method, number, batch, ran, _to(reference, ran.generated.images.device))
    store.drop_reference(number)
    return reasons


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


def _keep(plan: Plan, method: Method, number: int, batch: slice, ran: "Ran", reference: Generated) -> None:
    """Measures and stores a batch."""
    images = batch.stop - batch.start
    macs = ran.report.macs if ran.report.macs is not None else whole_batch(ran.macs, images) if ran.macs else None
    measurements = {
        "values": measure_batch(plan.metrics, ran.generated, plan.cases.prompts[batch], reference),
        "edge_density": edge_density(ran.generated.images).tolist(),
        "macs": None if macs is None else macs.tolist(),
        "own_macs": ran.own_macs / images,
        "actions": None if ran.report.actions is None else ran.report.actions.tolist(),
        "action_names": list(ran.report.action_names),
        "cache_bytes": ran.report.cache_bytes,
    }
    everything = method is plan.methods[0]  # thumbnails of any prompt may be asked for
    kept = [place for place in range(batch.start, batch.stop) if everything or place in plan.kept]
    plan.store.add_images(method, kept, ran.generated.images[[place - batch.start for place in kept]])
    plan.store.add_batch(method, number, measurements, plan.embed(ran.generated.images))


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


def _to(generated: Generated, device: Any) -> Generated:
    return Generated(generated.images.to(device), generated.latents.to(device))
