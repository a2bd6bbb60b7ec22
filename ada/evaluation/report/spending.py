"""Where a method that decides per image spent its compute, and whether on the complex images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ada.evaluation.measure import EDGE_DENSITY, PROMPT_LENGTH, SENSITIVITY, Estimate
from ada.evaluation.measure.statistics import rank_correlation

TITLES = {
    SENSITIVITY: "the damage of searched schedules, by which an oracle spends",
    EDGE_DENSITY: "edge density of the reference",
    PROMPT_LENGTH: "words in the prompt",
}


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
    correlations = {measure: rank_correlation(spent, list(values)) for measure, values in complexity.items()}
    order = np.lexsort((np.asarray(errors), spent)).tolist()
    return Spending(name, correlations, order[:count], order[::-1][:count])
