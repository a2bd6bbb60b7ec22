"""Fair timings: what is compared runs in turns, so that a machine that slows down slows all of it."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleave(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every function, `repeats` times each, one after the other in every round.

    Raises:
        ValueError: fewer than two rounds have no quartiles.
    """
    if repeats < 2:
        raise ValueError(f"Timings take two rounds or more; got {repeats}.")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + repeats):
        for name, function in functions.items():
            _synchronize()
            start = clock()
            function()
            _synchronize()
            if round_number >= warm_up:
                seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios of one round each."""
    ratios = [one / other for one, other in zip(numerator, denominator, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
