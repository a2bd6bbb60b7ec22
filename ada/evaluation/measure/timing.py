"""Latency in rounds, which a change of the machine's pace meets all alike."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.measure.run import Plan
from ada.evaluation.measure.store import key_of
from ada.evaluation.methods import Method
from ada.progress import Advance, progress

LEAST_ROUNDS = 2


@dataclass(frozen=True)
class TimingPlan:
    """How latency is measured: of the stock pipeline's call, text encoder and decoder included, and with Ada its policy.

    Args:
        batch_sizes: images per call, ascending, each at most the number of cases; each size has rounds of its own.
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
    """

    seconds_per_image: dict[int, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None


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
                weigh = timing.weigh and size == sizes[-1]
                ran = run_batch(plan.frozen, method, plan.cases, slice(0, size), weigh=weigh, ask=False)
                advance(1, method.name)
            timings[method.name] = Timing({}, ran.peak_bytes)
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
        if key_of(method) not in stored:
            start = number * size % (len(plan.cases.prompts) - size + 1)
            ran = run_batch(plan.frozen, method, plan.cases, slice(start, start + size), ask=False)
            stored[key_of(method)] = ran.seconds / size
            plan.store.write(name, stored)
        advance(1, method.name)
    return {method.name: stored[key_of(method)] for method in turns}
