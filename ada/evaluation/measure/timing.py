"""Latency: rounds in which every timed method runs once, in an order drawn anew, until the rounds or the time are used up.

What is timed is the stock pipeline's call, text encoder and decoder included, and with Ada its policy. A subset of the methods is
timed on a subset of the prompts: latency hardly depends on the prompt, and what drifts is the machine.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ada.evaluation.measure.counting import Count
from ada.evaluation.measure.run import Advance, Plan, run_batch
from ada.evaluation.methods import Method

LEAST_ROUNDS = 2


@dataclass(frozen=True)
class TimingPlan:
    """How latency is measured.

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
    plan: Plan, methods: Sequence[Method], timing: TimingPlan, advance: Advance = lambda name: None
) -> dict[str, Timing]:
    """Times methods; rounds that are stored already are not run again.

    A first round, that does not count, warms up and weighs the memory. A round goes through all methods, so that a change of the
    machine's pace meets all alike; its order is random, so that no method always runs after the same one.

    Args:
        plan: the evaluation.
        methods: those to time, all of which apply.
        timing: batch sizes, rounds and time.
        advance: called with a method's name before each of its `(rounds + 1) · len(batch_sizes)` runs at most.
    """
    if not timing.rounds:
        return {method.name: Timing() for method in methods}
    start = time.monotonic()
    timings = {method.name: _warm_up(plan, method, timing.batch_sizes, advance) for method in methods}
    for place, size in enumerate(timing.batch_sizes, 1):
        end = start + timing.seconds * place / len(timing.batch_sizes)
        for number in range(timing.rounds):
            if number >= LEAST_ROUNDS and time.monotonic() > end:
                break
            for name, seconds in _round(plan, methods, size, number, advance).items():
                timings[name].seconds_per_image.setdefault(size, []).append(seconds)
    return timings


def _warm_up(plan: Plan, method: Method, batch_sizes: Sequence[int], advance: Advance) -> Timing:
    """Weighs the memory at the largest size. A process that goes on with stored rounds is new, and warms up as well."""
    *smaller, largest = batch_sizes
    for size in smaller:
        advance(method.name)
        run_batch(plan.frozen, method, plan.cases, slice(0, size))
    advance(method.name)
    count = Count()
    ran = run_batch(plan.frozen, method, plan.cases, slice(0, largest), count, weigh=True)
    return Timing({}, count.peak_bytes, ran.report.cache_bytes)


def _round(plan: Plan, methods: Sequence[Method], size: int, number: int, advance: Advance) -> dict[str, float]:
    """By method, seconds per image of one round."""
    name = f"round-{size}-{number}"
    stored: dict[str, float] = plan.store.read(name) or {}
    turns = list(methods)
    random.Random(number).shuffle(turns)
    for method in turns:
        advance(method.name)
        if method.name in stored:
            continue
        start = number * size % (len(plan.cases.prompts) - size + 1)
        ran = run_batch(plan.frozen, method, plan.cases, slice(start, start + size))
        stored[method.name] = ran.seconds / size
        plan.store.write(name, stored)
    return stored
