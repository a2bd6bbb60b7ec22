"""The interval that training and evaluation both give: bootstrap-t (Efron, 1979; Hall, 1988), which heavy tails need."""

from functools import lru_cache

import torch
from torch import Tensor

NUM_RESAMPLES = 2000
LEAST_SPREAD = 0.05
"""A resample of equal values has no t, and one of hardly any spread one without meaning: below this share of the sample's standard
error it is left out. Only samples that are nearly all the same value have such resamples."""


def studentised_interval(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The mean of independent bounded values with the ends of its 95 % interval.

    Args:
        values: `(count,)`: what is resampled together is one value.
        seed: of the resampling.

    Returns:
        The mean and both ends, which are the mean itself where all values are equal or there is one.
    """
    values = values.double().cpu()
    count, centre = len(values), float(values.mean())
    error = float(values.std() / count**0.5) if count > 1 else 0.0
    if error == 0:
        return centre, centre, centre
    centred = values - values.mean()
    weights = _resamples(count, seed)
    means = weights @ centred
    errors = ((weights @ centred.square() - means.square()).clamp(min=0) / (count - 1)).sqrt()
    usable = errors > LEAST_SPREAD * error
    low, high = (means[usable] / errors[usable]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return centre, centre - high * error, centre - low * error


@lru_cache(maxsize=8)
def _resamples(count: int, seed: int) -> Tensor:
    """How much each value weighs in each resample, float64 `(NUM_RESAMPLES, count)`: the same for every sample, so made once."""
    drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(NUM_RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full_like(drawn, 1 / count, dtype=torch.float64)
    )
