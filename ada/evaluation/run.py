"""Runs methods through the stock pipeline, so that what is measured is what users run."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ada.evaluation.complexity import edge_density
from ada.evaluation.counting import Count, counted_macs, counted_memory
from ada.evaluation.methods import BatchReport, Method, NotApplicableError, whole_batch
from ada.evaluation.metrics import Metric, measure_batch
from ada.evaluation.store import Store, key_of
from ada.evaluation.subject import Generated, Subject, generate
from ada.rollout import prompt_seed

LEAST_SAVED = 0.001


@dataclass(frozen=True)
class Cases:
    """What every method is run on, `batch_size` at a time: every prompt once per sampler seed, all prompts of a seed in a row.

    Args:
        prompts: one per case.
        seeds: of each case's noise.
        batch_size: cases per call of the pipeline.
        num_seeds: how often each prompt occurs.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_size: int
    num_seeds: int = 1

    @classmethod
    def of(cls, prompts: Sequence[str], indices: Sequence[int], batch_size: int, seed: int = 0, num_seeds: int = 1) -> "Cases":
        """Cases of prompts, whose noise depends on their index in the data set and on the sampler seeds `seed`, `seed + 1`, …"""
        seeds = [prompt_seed(seed + offset, index) for offset in range(num_seeds) for index in indices]
        return cls(list(prompts) * num_seeds, seeds, batch_size, num_seeds)

    def batches(self) -> list[slice]:
        """Places of the batches among the cases; the last may be smaller."""
        count = len(self.prompts)
        return [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]


@dataclass(frozen=True)
class WarmUp:
    """What a method's first run told.

    Args:
        macs_per_image: of the denoising, counted from outside.
        peak_bytes: most memory held at once beside the weights.
        reason: why the method does not apply; None where it does.
    """

    macs_per_image: float = 0.0
    peak_bytes: int | None = None
    reason: str | None = None


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


def measure(plan: Plan, advance: Callable[[str], None] = lambda name: None) -> dict[str, WarmUp]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Each method first runs one batch, in which its MACs and memory are counted. Then the methods take turns batch by batch, so
    that a change of the machine's pace meets all alike.

    Args:
        plan: what to run.
        advance: called with a method's name before each of its `len(cases.batches()) + 1` turns.

    Returns:
        By method, what its first run told, with the reason where the method does not apply.
    """
    goes_on = plan.store.read(_warm_up_name(plan.methods[0])) is not None
    warm_ups = {method.name: _warm_up(plan, method, advance) for method in plan.methods}
    if goes_on:  # the process is new, even where all warm-ups are known
        run_batch(plan.subject, plan.methods[0], plan.cases, plan.cases.batches()[0])
    full = warm_ups[plan.methods[0].name].macs_per_image
    for method in plan.methods:
        found = warm_ups[method.name]
        if method.must_save and found.reason is None and found.macs_per_image > (1 - LEAST_SAVED) * full:
            warm_ups[method.name] = WarmUp(
                reason="It attached without an error and skipped nothing: as many MACs as full compute."
            )
    applicable = [method for method in plan.methods if warm_ups[method.name].reason is None]
    for number, batch in enumerate(plan.cases.batches()):
        for method in plan.methods:
            if method not in applicable:
                advance(method.name)
        _measure_batch(plan, applicable, number, batch, advance)
    return warm_ups


def _warm_up(plan: Plan, method: Method, advance: Callable[[str], None]) -> WarmUp:
    advance(method.name)
    name = _warm_up_name(method)
    known = plan.store.read(name)
    if known is not None:
        return WarmUp(**known)
    batch = plan.cases.batches()[0]
    count = Count()
    try:
        run_batch(plan.subject, method, plan.cases, batch, count, weigh=True)
        result = WarmUp(count.macs / (batch.stop - batch.start), count.peak_bytes)
    except NotApplicableError as error:
        result = WarmUp(reason=str(error))
    plan.store.write(name, asdict(result))
    return result


def _warm_up_name(method: Method) -> str:
    return f"{key_of(method)}/warm-up"


def _measure_batch(plan: Plan, methods: Sequence[Method], number: int, batch: slice, advance: Callable[[str], None]) -> None:
    """All methods on one batch."""
    store, subject, cases = plan.store, plan.subject, plan.cases
    missing = [method for method in methods if store.batch(method, number) is None]
    reference = store.reference(number)
    if missing and reference is None and missing[0] is not methods[0]:
        reference = run_batch(subject, methods[0], cases, batch)[0]
    for method in methods:
        advance(method.name)
        if method not in missing:
            continue
        count = Count()
        if method.data_dependent:
            run_batch(subject, method, cases, batch, count)
        generated, report, seconds = run_batch(subject, method, cases, batch)
        if reference is None:
            reference = generated
            store.add_reference(number, reference)
            store.write("frames", reference.images.shape[1] if reference.images.ndim == 5 else None)
        images = batch.stop - batch.start
        macs = report.macs if report.macs is not None else whole_batch(count.macs, images) if method.data_dependent else None
        reference = _to(reference, generated.images.device)
        measurements = {
            "values": measure_batch(plan.metrics, generated, cases.prompts[batch], reference),
            "edge_density": edge_density(generated.images).tolist(),
            "macs": None if macs is None else macs.tolist(),
            "actions": None if report.actions is None else report.actions.tolist(),
            "cache_bytes": report.cache_bytes,
            "seconds_per_image": seconds / images if images == min(cases.batch_size, len(cases.prompts)) else None,
        }
        everything = method is methods[0]  # thumbnails of any prompt may be asked for
        kept = [place for place in range(batch.start, batch.stop) if everything or place in plan.kept]
        store.add_images(method, kept, generated.images[[place - batch.start for place in kept]])
        store.add_batch(method, number, measurements, plan.embed(generated.images))
    store.drop_reference(number)


def run_batch(
    subject: Subject, method: Method, cases: Cases, batch: slice, count: Count | None = None, weigh: bool = False
) -> tuple[Generated, BatchReport, float]:
    """Images, report and seconds of one call of the pipeline.

    With `count` its MACs are counted, with `weigh` its memory, too; both slow it down.
    """
    with ExitStack() as stack:
        run = stack.enter_context(method.accelerate(subject.pipeline, batch))
        _synchronize(subject.device)
        start = time.perf_counter()
        with ExitStack() as counters:
            if count is not None:
                counters.enter_context(counted_memory(subject.device, count) if weigh else nullcontext())
                counters.enter_context(counted_macs(subject.pipeline.transformer, count))
            generated = generate(subject, cases.prompts[batch], cases.seeds[batch], method.num_inference_steps, run.call)
        _synchronize(subject.device)
        seconds = time.perf_counter() - start
        return generated, run.report(), seconds
    raise AssertionError("a method must not swallow errors")


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _to(generated: Generated, device: Any) -> Generated:
    return Generated(generated.images.to(device), generated.latents.to(device))
