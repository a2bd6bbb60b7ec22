"""How complex an image and its prompt are, and whether a policy spends more compute on the complex ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ada.evaluation.statistics import Estimate

EDGE_DENSITY = "edge_density"
PROMPT_LENGTH = "prompt_length"
TITLES = {EDGE_DENSITY: "edge density of the reference", PROMPT_LENGTH: "words in the prompt"}
EDGE = 0.1


def edge_density(images: Tensor, threshold: float = EDGE) -> Tensor:
    """Share of the pixels where the brightness changes by more than `threshold` a pixel (Sobel gradient), without the border.

    Args:
        images: `(images, 3, height, width)` in [0, 1]; of videos `(videos, frames, 3, height, width)` the first frame counts.
        threshold: of the gradient's magnitude, in brightness per pixel.

    Returns:
        `(images,)` in [0, 1].
    """
    images = images[:, 0] if images.ndim == 5 else images
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    gradient = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return (gradient.square().sum(1).sqrt() > threshold).float().flatten(1).mean(1)


@dataclass(frozen=True)
class Spending:
    """How one method spent its compute.

    Args:
        name: the method.
        correlations: by measure of complexity, Spearman's rank correlation with the compute spent, with its interval; None where
            the compute is the same for every prompt.
        easiest: places of the prompts that took least compute, least first.
        hardest: places of those that took most, most first.
    """

    name: str
    correlations: dict[str, Estimate | None]
    easiest: list[int]
    hardest: list[int]


def spending(
    name: str, saved: Sequence[float], errors: Sequence[float], complexity: Mapping[str, Sequence[float]], count: int = 4
) -> Spending:
    """Correlates compute with complexity and picks the extremes.

    Args:
        name: the method.
        saved: compute saved per prompt.
        errors: distance to the reference per prompt, which orders prompts of equal compute.
        complexity: by measure, a value per prompt.
        count: how many easiest and hardest prompts to pick.
    """
    spent = 1 - np.asarray(saved)
    correlations = {measure: rank_correlation(spent, values) for measure, values in complexity.items()}
    order = np.lexsort((np.asarray(errors), spent)).tolist()
    return Spending(name, correlations, order[:count], order[::-1][:count])


def rank_correlation(values: Any, others: Any, resamples: int = 2000, seed: int = 0) -> Estimate | None:
    """Spearman's rank correlation with its 95 % bootstrap interval; None where one side is constant."""
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    value = _spearman(first, second)
    if value is None:
        return None
    chosen = np.random.default_rng(seed).integers(len(first), size=(resamples, len(first)))
    drawn = [_spearman(first[places], second[places]) for places in chosen]
    known = [other for other in drawn if other is not None]
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _spearman(first: Any, second: Any) -> float | None:
    ranks = [_ranks(np.round(values, 9)) for values in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Any) -> Any:
    """Ranks with ties shared."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[places]
