"""Runs methods through the stock pipeline, so that what is measured is what users run: every image once, and then latency in rounds."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from torch import Tensor

from ada.evaluation.measure.counting import Ran, run_batch
from ada.evaluation.measure.metrics import Measured, Metric, edge_density, measure_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.together import Outcome, run_together, shared_calls
from ada.evaluation.methods import Cases, Generated, Method, NotApplicableError
from ada.progress import Advance, progress
from ada.rollouts import FrozenPipeline

LEAST_SAVED = 0.001
LEAST_ROUNDS = 2
MOST_IMAGES = 256
SKIPPED_NOTHING = "It attached without an error and skipped nothing: as many MACs as full compute."


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


def measure_methods(plan: Plan, console: Console | None = None) -> dict[str, str | None]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Every image is made once: MACs are counted in the same run, of the methods whose work depends on the images at every batch, of
    the others at the first. The reference alone is made again for a batch in which the run was killed.

    Args:
        plan: what to run.
        console: where to show progress.

    Returns:
        By method, why it does not apply; None where it does.
    """
    store, batches = plan.store, plan.cases.batches()
    with progress("Measuring", len(plan.methods) * len(batches), console) as advance:
        for number, batch in enumerate(batches):
            todo = [method for method in plan.methods if store.reason(method) is None and store.batch(method, number) is None]
            advance(len(plan.methods) - len(todo))
            if todo:
                _measure_batch(plan, todo, number, batch, advance)
    return {method.name: store.reason(method) for method in plan.methods}


def _measure_batch(plan: Plan, todo: Sequence[Method], number: int, batch: slice, advance: Advance) -> None:
    """First the reference, then the methods that share their calls, then the others one by one."""
    reference, is_first = plan.methods[0], number == 0
    ran = run_batch(plan.frozen, reference, plan.cases, batch, count=is_first and reference in todo)
    turn = Turn(plan, number, batch, ran.generated)
    if reference in todo:
        turn.keep_alone(reference, ran)
        advance(1, reference.name)
    alone = [method for method in todo if method is not reference]
    most = max(1, plan.most_images // (batch.stop - batch.start))
    for methods, plans in shared_calls(plan.frozen, alone, most):
        alone = [method for method in alone if method not in methods]
        generated, places, outcomes = run_together(plan.frozen, methods, plans, plan.cases, batch, counted=is_first)
        measured = turn.measured(generated, places)
        for method, outcome in zip(methods, outcomes, strict=True):
            turn.keep(method, measured, outcome)
            advance(1, method.name)
    for method in alone:
        try:
            # counting slows a run down
            ran = run_batch(plan.frozen, method, plan.cases, batch, count=is_first or method.data_dependent)
            turn.keep_alone(method, ran)
        except NotApplicableError as error:
            plan.store.refuse(method, str(error))
        advance(1, method.name)


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

    def measured(self, generated: Generated, places: Sequence[int]) -> Measured:
        """Measures images that have these places in the batch."""
        prompts = [self.plan.cases.prompts[self.batch.start + place] for place in places]
        beside = self.reference.take(list(places))
        return measure_images(self.plan.metrics, self.plan.embed, generated, prompts, beside, self.plan.cases.batch_size)

    def keep_alone(self, method: Method, ran: Ran) -> None:
        """Measures and stores what a method made by itself; where it saves nothing and must, that it does not apply."""
        if self.number == 0 and method.must_save:
            full = float(sum(self.plan.store.batch(self.plan.methods[0], 0)["macs"]))
            if ran.macs > (1 - LEAST_SAVED) * full:
                raise NotApplicableError(SKIPPED_NOTHING)
        images = range(len(ran.generated.images))
        self.keep(method, self.measured(ran.generated, images), Outcome(images, ran.report, ran.macs, ran.own_macs))

    def keep(self, method: Method, measured: Measured, outcome: Outcome) -> None:
        """Stores what a method did to the batch.

        Args:
            method: the method.
            measured: a row per image that was made; the outcome says which are the method's.
            outcome: what it did.
        """
        plan, batch, report = self.plan, self.batch, outcome.report
        if outcome.failure is not None:
            plan.store.refuse(method, outcome.failure)
            return
        own, images, is_reference = measured.take(outcome.images), batch.stop - batch.start, method is plan.methods[0]
        counted = [outcome.macs / images] * images if outcome.macs else None
        measurements = {
            "values": own.values,
            "edge_density": edge_density(own.images).tolist() if is_reference else None,
            "macs": counted if report.macs is None else report.macs.tolist(),
            "own_macs": outcome.own_macs / images,
            "actions": None if report.actions is None else report.actions.tolist(),
            "action_names": list(report.action_names),
            "cache_bytes": report.cache_bytes,
        }
        if is_reference:
            plan.store.write("frames", own.images.shape[1] if own.images.ndim == 5 else None)
        # thumbnails of any prompt's reference may be asked for
        kept = [place for place in range(batch.start, batch.stop) if is_reference or place in plan.kept]
        plan.store.add_images(method, kept, own.images[[place - batch.start for place in kept]])
        plan.store.add_batch(method, self.number, measurements, own.features)


@dataclass(frozen=True)
class TimingPlan:
    """How latency is measured: of the stock pipeline's call, text encoder and decoder included, and with Ada its policy.

    Args:
        batch_sizes: images per call, ascending, each at most the number of cases; each size has rounds of its own.
        rounds: most rounds at each size; 0 measures no latency.
        seconds: of all sizes together, shared equally; but for the first two of its size, no round begins later.
    """

    batch_sizes: Sequence[int]
    rounds: int
    seconds: float = float("inf")


@dataclass(frozen=True)
class Timing:
    """One method's latencies.

    Args:
        seconds_per_image: by batch size, one value per round, in the order of the rounds.
        peak_bytes: most memory held at once beside the weights, at the largest batch size.
        cache_bytes: most bytes that the method kept between steps there; None where nobody knows.
    """

    seconds_per_image: dict[int, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    cache_bytes: int | None = None


def time_methods(
    plan: Plan, methods: Sequence[Method], timing: TimingPlan, console: Console | None = None
) -> dict[str, Timing]:
    """Times methods; rounds that are stored already are not run again.

    A first round, that does not count, warms up and weighs the memory. A round goes through all methods, so that a change of the
    machine's pace meets all alike; its order is random, so that no method always runs after the same one. Latency hardly depends on
    the prompt: what drifts is the machine, so a round takes some of the prompts.

    Args:
        plan: the evaluation.
        methods: those to time, all of which apply.
        timing: batch sizes, rounds and time.
        console: where to show progress.
    """
    timings = {method.name: Timing() for method in methods}
    sizes = timing.batch_sizes if timing.rounds else ()
    with progress("Timing", len(methods) * len(sizes) * (timing.rounds + 1), console) as advance:
        start = time.monotonic()
        for method in methods if sizes else ():
            # a process that goes on with stored rounds is new, and warms up as well
            for size in sizes:
                ran = run_batch(plan.frozen, method, plan.cases, slice(0, size), weigh=size == sizes[-1])
                advance(1, method.name)
            timings[method.name] = Timing({}, ran.peak_bytes, ran.report.cache_bytes)
        for place, size in enumerate(sizes, 1):
            end = start + timing.seconds * place / len(sizes)
            for number in range(timing.rounds):
                if number < LEAST_ROUNDS or time.monotonic() <= end:
                    for name, seconds in _round(plan, methods, size, number, advance).items():
                        timings[name].seconds_per_image.setdefault(size, []).append(seconds)
    return timings


def _round(plan: Plan, methods: Sequence[Method], size: int, number: int, advance: Advance) -> dict[str, float]:
    """By method, seconds per image of one round."""
    name = f"round-{size}-{number}"
    stored: dict[str, float] = plan.store.read(name) or {}
    turns = list(methods)
    random.Random(number).shuffle(turns)
    for method in turns:
        if method.name not in stored:
            start = number * size % (len(plan.cases.prompts) - size + 1)
            ran = run_batch(plan.frozen, method, plan.cases, slice(start, start + size))
            stored[method.name] = ran.seconds / size
            plan.store.write(name, stored)
        advance(1, method.name)
    return {method.name: stored[method.name] for method in turns}
