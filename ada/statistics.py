"""The interval that training and evaluation both give, bootstrap-t (Efron, 1979; Hall, 1988), which heavy tails need; and ranks."""

from functools import lru_cache

import torch
from torch import Tensor

NUM_RESAMPLES = 2000
LEAST_SPREAD = 0.05
"""A resample of equal values has no t, and one of hardly any spread one without meaning: below this share of the sample's standard
error it is left out. Only samples that are nearly all the same value have such resamples."""


def studentised_interval(values: Tensor) -> tuple[float, float, float]:
    """The mean of independent bounded values with the ends of its 95 % interval.

    Args:
        values: `(count,)`: what is resampled together is one value.

    Returns:
        The mean and both ends, which are the mean itself where all values are equal or there is one.
    """
    values = values.double().cpu()
    count, centre = len(values), float(values.mean())
    error = float(values.std() / count**0.5) if count > 1 else 0.0
    if error == 0:
        return centre, centre, centre
    centred = values - values.mean()
    weights = _resamples(count)
    means = weights @ centred
    errors = ((weights @ centred.square() - means.square()).clamp(min=0) / (count - 1)).sqrt()
    usable = errors > LEAST_SPREAD * error
    low, high = (means[usable] / errors[usable]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return centre, centre - high * error, centre - low * error


@lru_cache(maxsize=8)
def _resamples(count: int) -> Tensor:
    """How much each value weighs in each resample, float64 `(NUM_RESAMPLES, count)`: the same for every sample, so made once."""
    drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    return torch.zeros(NUM_RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full_like(drawn, 1 / count, dtype=torch.float64)
    )


def rank_correlation(values: Tensor, others: Tensor) -> float | None:
    """Spearman's rank correlation of `(count,)` and `(count,)`, equal values sharing their rank; None where one side is constant."""
    sides = [_shared_ranks(side) for side in (values, others)]
    if any(side.std(correction=0) == 0 for side in sides):
        return None
    return float(torch.corrcoef(torch.stack(sides))[0, 1])


def _shared_ranks(values: Tensor) -> Tensor:
    """The rank of every value, the mean of their ranks for equal ones; what differs by rounding alone is equal."""
    _, groups, counts = values.double().cpu().round(decimals=9).unique(return_inverse=True, return_counts=True)
    ranks: Tensor = (counts.cumsum(0) - (counts + 1) / 2).double()[groups]
    return ranks
