"""Runs methods through the stock pipeline, so that what is measured is what users run: every image once, and then latency in rounds."""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from rich.console import Console
from torch import Tensor

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.measure.metrics import Metric, edge_density, measure_images
from ada.evaluation.measure.store import Store, key_of
from ada.evaluation.measure.together import Call, Outcome, calls_of, run_together
from ada.evaluation.methods.base import Cases, Generated, Method, NotApplicableError
from ada.processes import work_off
from ada.processor import fast_linear
from ada.progress import Advance, progress
from ada.rollouts import FrozenPipeline
from ada.rollouts.fingerprints import digest

LEAST_SAVED = 0.001
MOST_IMAGES = 384
LEAST_ROUNDS = 2
NOT_FINITE = "On some images it is not finite (NaN or infinite): {}."
SKIPPED_NOTHING = "It attached without an error and skipped nothing on the first batch: as many MACs as full compute."


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
        processes: how many measure, each with one thread; see `work_off`.
    """

    frozen: FrozenPipeline
    methods: Sequence[Method]
    cases: Cases
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    store: Store
    kept: frozenset[int] = frozenset()
    most_images: int = MOST_IMAGES
    processes: int = 1


def measure_methods(plan: Plan, console: Console | None = None) -> dict[str, str | None]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Every image is made once: MACs are counted in the same run, of the methods whose work depends on the images at every batch, of
    the others at the first. The reference alone is made again for a batch in which the run was killed, and by every process that
    works on a batch.

    Returns:
        By method, why it does not apply; None where it does.
    """
    batches = [_tasks(plan, batch) for batch in plan.cases.batches()]
    total, left = len(plan.methods) * len(batches), sum(len(call.methods) for call in chain(*chain(*batches)))
    with progress("Measuring", total, console) as advance:
        advance(total - left)
        for names in work_off(batches, fast_linear(plan.frozen.device)(Measurer(plan)), plan.processes):
            for name in names:
                advance(1, name)
    return {method.name: method.reason or plan.store.reason(method) for method in plan.methods}


def _tasks(plan: Plan, batch: slice) -> list[list[Call]]:
    """What is left to do of a batch: first the reference, then the methods that share their calls, then the others one by one; in the
    task of each, those that have to come after it."""
    apply = [method for method in plan.methods if method.reason is None and plan.store.reason(method) is None]
    todo = [method for method in apply if not _is_done(plan, method, batch)]
    first, others = [each for each in todo if each is plan.methods[0]], [each for each in todo if each is not plan.methods[0]]
    names = {method.name for method in others}
    followers = [method for method in others if method.after in names]
    images = min(plan.cases.batch_size, len(plan.cases.prompts))
    independent = [method for method in others if method.after not in names]
    tasks = [[call] for call in calls_of(plan.frozen, independent, batch, max(1, plan.most_images // images))]
    for task in tasks:
        done = {method.name for method in task[0].methods}
        task += [Call(batch, [method]) for method in followers if method.after in done]
    return [[Call(batch, first)], *tasks] if first else tasks


def _is_done(plan: Plan, method: Method, batch: slice) -> bool:
    """Whether a batch is measured, and the pictures are there that are to be kept of it."""
    return plan.store.batch(method, batch) is not None and plan.store.has_images(method, _kept(plan, method, batch))


def _kept(plan: Plan, method: Method, batch: slice) -> list[int]:
    """Places of the images that are kept: of the reference all, for the page may ask for a thumbnail of any prompt."""
    return [place for place in range(batch.start, batch.stop) if method is plan.methods[0] or place in plan.kept]


class Measurer:
    """Does tasks, one batch after the other, of each of which it makes the reference once."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._batch = plan, slice(0, 0)

    def __call__(self, task: Sequence[Call]) -> list[str]:
        """Measures and stores what the methods of a task make; gives their names."""
        plan = self._plan
        for call in task:
            if call.batch != self._batch:
                self._batch, self._is_first = call.batch, call.batch.start == 0
                self._reference = run_batch(plan.frozen, plan.methods[0], plan.cases, call.batch, count=self._is_first)
            if call.plans is not None:
                generated, places, outcomes = run_together(plan.frozen, call, plan.cases, counted=self._is_first)
                self._keep(generated, places, zip(call.methods, outcomes, strict=True))
            elif plan.store.reason(call.methods[0]) is None:
                self._run_alone(call.methods[0])
        return [method.name for call in task for method in call.methods]

    def _run_alone(self, method: Method) -> None:
        plan = self._plan
        try:
            # counting slows a run down
            count = self._is_first or method.data_dependent
            is_reference = method is plan.methods[0]
            ran = self._reference if is_reference else run_batch(plan.frozen, method, plan.cases, self._batch, count=count)
            if method.must_save and self._is_first and ran.macs > (1 - LEAST_SAVED) * self._reference.macs:
                raise NotApplicableError(SKIPPED_NOTHING)
        except NotApplicableError as error:
            plan.store.refuse(method, str(error))
        else:
            every = range(len(ran.generated.images))
            self._keep(ran.generated, every, [(method, (every, ran.report))])

    def _keep(self, generated: Generated, places: Sequence[int], outcomes: Iterable[tuple[Method, Outcome]]) -> None:
        """Measures distinct images, each with its place in the batch, and stores what methods did; refuses those that tell a reason, and
        those of whose images anything is not finite.

        Raises:
            ValueError: the reference's images are not finite, beside which nothing can be measured.
        """
        plan, batch = self._plan, self._batch
        prompts, beside = [plan.cases.prompts[batch.start + place] for place in places], self._reference.generated.take(places)
        values, features = measure_images(plan.metrics, plan.embed, generated, prompts, beside, plan.cases.batch_size)
        known = {"image": generated.images, "features": features} | {name: torch.tensor(each) for name, each in values.items()}
        for method, (numbers, report) in outcomes:
            if isinstance(report, str):
                plan.store.refuse(method, report)
                continue
            chosen, is_reference = list(numbers), method is plan.methods[0]
            if broken := [name for name, each in known.items() if not each[chosen].isfinite().all()]:
                reason = NOT_FINITE.format(", ".join(broken))
                if is_reference:
                    raise ValueError(f"{method.name} cannot be measured. {reason} A wider `dtype` may help.")
                plan.store.refuse(method, reason)
                continue
            images = generated.images[chosen]
            measurements = {
                "values": {name: [each[number] for number in chosen] for name, each in values.items()},
                "edge_density": edge_density(images).tolist() if is_reference else None,
                "macs": None if report.macs is None else report.macs.tolist(),
                "own_macs": report.own_macs,
                "actions": None if report.actions is None else report.actions.tolist(),
                "action_names": list(report.action_names),
                "cache_bytes": report.cache_bytes,
            }
            if is_reference:
                plan.store.write("frames", images.shape[1] if images.ndim == 5 else None)
            shown = _kept(plan, method, batch)
            plan.store.add_images(method, shown, images[[place - batch.start for place in shown]])
            plan.store.add_batch(method, batch, measurements, features[chosen])


@dataclass(frozen=True)
class TimingPlan:
    """How latency is measured: of the stock pipeline's call, text encoder and decoder included, and with Ada its policy.

    Args:
        batch_sizes: images per call, ascending, each at most the number of prompts, for rounds take the first noise seed; each size has
            rounds of its own.
        rounds: most rounds at each size; 0 measures no latency.
        seconds: of all sizes together, shared equally; but for the first two of its size, no round begins later.
        weigh: whether the warm-up weighs the memory, which takes far longer on a CPU.
    """

    batch_sizes: Sequence[int]
    rounds: int
    seconds: float = float("inf")
    weigh: bool = True


@dataclass(frozen=True)
class Timing:
    """One method's latencies.

    Args:
        seconds_per_image: by batch size, one value per round, in the order of the rounds.
        peak_bytes: most memory held at once beside the weights, at the largest batch size; None where it was not weighed.
        cache_bytes: of it, what the method keeps between steps; None where nobody knows.
    """

    seconds_per_image: dict[int, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    cache_bytes: int | None = None


def time_methods(
    plan: Plan, methods: Sequence[Method], timing: TimingPlan, console: Console | None = None
) -> dict[str, Timing]:
    """Times methods, all of which apply; rounds that are stored already are not run again.

    A first round, that does not count, warms up, weighs the memory, and asks what BlockDance keeps. A round goes through all methods, so
    that a change of the machine's pace meets all alike; its order is random, so that no method always runs after the same one. What drifts
    is the machine, so a round takes some of the prompts: of a method whose work depends on them, those that cost what all cost on average.
    """
    timings = {method.name: Timing() for method in methods}
    sizes = timing.batch_sizes if timing.rounds else ()
    together = digest(sorted(map(key_of, methods)))[:6]
    with progress("Timing", len(methods) * len(sizes) * (timing.rounds + 1), console) as advance:
        start = time.monotonic()
        for method in methods if sizes else ():
            # a process that goes on with stored rounds is new, and warms up as well
            for size in sizes:
                weigh = timing.weigh and size == sizes[-1]
                ran = run_batch(plan.frozen, method, plan.cases, slice(0, size), weigh=weigh, ask=size == sizes[-1])
                advance(1, method.name)
            timings[method.name] = Timing({}, ran.peak_bytes, ran.report.cache_bytes)
        for place, size in enumerate(sizes, 1):
            end = start + timing.seconds * place / len(sizes)
            for number in range(timing.rounds):
                if number < LEAST_ROUNDS or time.monotonic() <= end:
                    # a round is of methods that ran within minutes of each other, so further ones have rounds of their own
                    name = f"round-{size}-{number}-{together}"
                    for own, seconds in _round(plan, methods, size, number, name, advance).items():
                        timings[own].seconds_per_image.setdefault(size, []).append(seconds)
    return timings


def typical_batches(plan: Plan, method: Method, size: int) -> list[slice]:
    """Batches of the first noise seed, in the order in which a method is timed on them: those first on which it computes nearest to what
    it computes on average."""
    count = len(plan.cases.prompts) // plan.cases.num_seeds
    batches = [slice(start, start + size) for start in range(0, count - size + 1, size)]
    stored = [plan.store.batch(method, batch) for batch in plan.cases.batches()]
    counted = [value for part in stored if part and part["macs"] for value in part["macs"]]
    if len(counted) < len(plan.cases.prompts):  # counted once, for its work does not depend on the prompts
        return batches
    every = torch.tensor(counted, dtype=torch.float64)
    return sorted(batches, key=lambda batch: abs(float(every[batch].mean() - every.mean())))


def _round(plan: Plan, methods: Sequence[Method], size: int, number: int, name: str, advance: Advance) -> dict[str, float]:
    """By method, seconds per image of one round, which is stored under a name."""
    stored: dict[str, float] = plan.store.read(name) or {}
    turns = list(methods)
    random.Random(number).shuffle(turns)
    for method in turns:
        if key_of(method) not in stored:
            batches = typical_batches(plan, method, size)
            ran = run_batch(plan.frozen, method, plan.cases, batches[number % len(batches)], ask=False)
            stored[key_of(method)] = ran.seconds / size
            plan.store.write(name, stored)
        advance(1, method.name)
    return {method.name: stored[key_of(method)] for method in turns}
