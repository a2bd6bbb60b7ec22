"""Latency: rounds in which every timed method runs once at each batch size, in an order drawn anew.

What is timed is the stock pipeline's call, text encoder and decoder included, and with Ada its policy. A subset of the methods is
timed (the `main` ones) on a subset of the prompts: latency hardly depends on the prompt, and what drifts is the machine.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ada.evaluation.measure.counting import Count
from ada.evaluation.measure.run import Plan, run_batch
from ada.evaluation.methods import Method

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """One method's latencies.

    Args:
        seconds_per_image: by batch size, one value per round, in the order of the rounds.
        peak_bytes: most memory held at once beside the weights, at the largest batch size.
    """

    seconds_per_image: dict[int, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None


def time_methods(
    plan: Plan, methods: Sequence[Method], batch_sizes: Sequence[int], rounds: int, advance: Advance = lambda name: None
) -> dict[str, Timing]:
    """Times methods; rounds that are stored already are not run again.

    A first round, that does not count, warms up and weighs the memory. A round goes through all methods, so that a change of the
    machine's pace meets all alike; its order is random, so that no method always runs after the same one.

    Args:
        plan: the evaluation.
        methods: those to time, all of which apply.
        batch_sizes: images per call, each at most the number of cases.
        rounds: how often each method is timed at each size.
        advance: called with a method's name before each of its `(rounds + 1) · len(batch_sizes)` runs.
    """
    timings = {method.name: Timing({size: [] for size in batch_sizes}) for method in methods}
    if not rounds:
        return timings
    weighed = _warm_up(plan, methods, batch_sizes, advance)
    for number in range(rounds):
        for name, seconds in _round(plan, methods, batch_sizes, number, advance).items():
            for size in batch_sizes:
                timings[name].seconds_per_image[size].append(seconds[str(size)])
    return {name: Timing(timing.seconds_per_image, weighed[name]) for name, timing in timings.items()}


def _warm_up(plan: Plan, methods: Sequence[Method], batch_sizes: Sequence[int], advance: Advance) -> dict[str, int | None]:
    """Peak memory by method. A process that goes on with stored rounds is new, and warms up as well."""
    weighed: dict[str, int | None] = {}
    for method in methods:
        for size in batch_sizes:
            advance(method.name)
            largest = size == max(batch_sizes)
            count = Count() if largest else None
            run_batch(plan.subject, method, plan.cases, slice(0, size), count, weigh=largest)
            if count is not None:
                weighed[method.name] = count.peak_bytes
    return weighed


def _round(
    plan: Plan, methods: Sequence[Method], batch_sizes: Sequence[int], number: int, advance: Advance
) -> dict[str, dict[str, float]]:
    """By method and batch size, seconds per image of one round."""
    name = f"round-{number}"
    stored: dict[str, dict[str, float]] = plan.store.read(name) or {}
    turns = [(method, size) for method in methods for size in batch_sizes]
    random.Random(number).shuffle(turns)
    for method, size in turns:
        advance(method.name)
        if str(size) in stored.get(method.name, {}):
            continue
        start = number * size % (len(plan.cases.prompts) - size + 1)
        ran = run_batch(plan.subject, method, plan.cases, slice(start, start + size))
        stored.setdefault(method.name, {})[str(size)] = ran.seconds / size
        plan.store.write(name, stored)
    return stored
