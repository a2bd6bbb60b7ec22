"""Bootstrap intervals (Efron, 1979): how far a mean or a median would move with other prompts or other batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95 % interval, which are None where a single value says nothing about spread."""

    value: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def bootstrap_mean(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of independent values with its percentile bootstrap interval.

    Args:
        values: one per prompt.
        confidence: share of repetitions whose interval holds the true mean.
        seed: of the resampling.

    Raises:
        ValueError: no values.
    """
    return _bootstrap(values, np.mean, confidence, seed)


def bootstrap_mean_difference(
    values: Sequence[float], others: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `values - others`, paired: both were measured on the same prompts, whose own spread cancels.

    Raises:
        ValueError: no values, or different numbers of them.
    """
    differences = [ours - theirs for ours, theirs in zip(values, others, strict=True)]
    return bootstrap_mean(differences, confidence=confidence, seed=seed)


def bootstrap_median(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The median with its percentile bootstrap interval; arguments and errors as in `bootstrap_mean`."""
    return _bootstrap(values, np.median, confidence, seed)


def _bootstrap(values: Sequence[float], statistic: Callable[..., Any], confidence: float, seed: int) -> Estimate:
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("An estimate needs at least one value; got none.")
    value = float(statistic(sample))
    if sample.size == 1:
        return Estimate(value, None, None)
    chosen = np.random.default_rng(seed).integers(sample.size, size=(NUM_RESAMPLES, sample.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(sample[chosen], axis=1), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
