"""What the results say: whether Ada wins, by how much, and how sure that is; the curve of what it has to beat; where it spends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ada.evaluation.measure import EDGE_DENSITY, PROMPT_LENGTH, SENSITIVITY, Estimate, MethodResult, Results
from ada.evaluation.measure.collect import STATIC_GROUPS
from ada.evaluation.measure.matches import Sample, mixture_at
from ada.evaluation.measure.metrics import BOUNDED, VISIBLE
from ada.evaluation.measure.results import COMPUTE_SAVED, STATIC_MIXTURE
from ada.evaluation.measure.statistics import mean, rank_correlation, share

TYPICAL_SAVING = 0.2
"""The headline is about the row of Ada that saves nearest to this, decided before anything is measured."""
NUM_LEVELS = 24
MIXTURE = "Best static mixture"


@dataclass(frozen=True)
class Headline:
    """What a reader sees first.

    Args:
        title: the verdict in a few words.
        sentence: the same with figures and intervals.
    """

    title: str
    sentence: str


def headline_of(results: Results) -> Headline | None:
    """The verdict on Ada beside the best mixture of static ways at the same mean compute; None without such a pair."""
    rows = [method for method in results.measured if method.group == "ada" and STATIC_MIXTURE in method.matches]
    if not rows:
        return None
    ada = min(rows, key=lambda method: abs(method.estimates[COMPUTE_SAVED].value - TYPICAL_SAVING))
    match = ada.matches[STATIC_MIXTURE]
    delta, changed = match.differences[BOUNDED], ada.estimates[VISIBLE]
    verdict = verdict_of(delta)
    part = f"{abs(delta.value) / max(match.expected[BOUNDED], 1e-12):.0%}"
    titles = {
        "better": f"Ada wins: {part} less damage than the best static schedules at the same compute",
        "worse": f"Ada loses: {part} more damage than the best static schedules at the same compute",
        "no clear difference": "No clear difference between Ada and the best static schedules",
    }
    saved = ada.estimates[COMPUTE_SAVED].value
    sentence = (
        f"Saving {saved:.0%} of the compute, {ada.name} does {ada.estimates[BOUNDED].value:.3f} of bounded damage; the best mixture "
        f"of static ways that save as much does {match.expected[BOUNDED]:.3f}. Difference {_signed(delta.value)} (95 % interval "
        f"{_signed(delta.low)} to {_signed(delta.high)}): {verdict}. Visibly changed: {changed.value:.1%} of the images "
        f"({_share(changed.low)} to {_share(changed.high)}), with the mixture {match.expected[VISIBLE]:.1%}."
    )
    return Headline(titles[verdict], sentence)


def verdict_of(delta: Estimate) -> str:
    """Of a difference of which less is better: better, worse, or no clear difference."""
    if delta.low is None or delta.high is None or delta.low <= 0 <= delta.high:
        return "no clear difference"
    return "better" if delta.value < 0 else "worse"


@dataclass(frozen=True)
class CurvePoint:
    """The best mixture of static ways at one saving."""

    saved: float
    estimates: dict[str, Estimate]
    rows: list[str]


def static_curve(results: Results) -> list[CurvePoint]:
    """Bounded damage and visibly changed share of the best static mixture at evenly spaced savings, with intervals."""
    static = [method for method in results.measured if method.group in STATIC_GROUPS and BOUNDED in method.per_prompt]
    samples = [_sample(method) for method in static]
    most = min(0.6, max((sample.saved for sample in samples), default=0.0))
    points = []
    for saved in np.linspace(0, most, NUM_LEVELS).tolist() if most > 0 else []:
        mixture = mixture_at(saved, samples)
        if mixture is None:
            continue
        mixed = {name: _mixed(mixture, name) for name in (BOUNDED, VISIBLE)}
        estimates = {BOUNDED: mean(mixed[BOUNDED]), VISIBLE: share(mixed[VISIBLE])}
        points.append(CurvePoint(saved, estimates, [sample.name for sample, _ in mixture]))
    return points


def _sample(method: MethodResult) -> Sample:
    values = {name: method.per_prompt[name] for name in (BOUNDED, VISIBLE)}
    return Sample(method.name, method.estimates[COMPUTE_SAVED].value, values, [], 1)


def _mixed(mixture: Sequence[tuple[Sample, float]], name: str) -> list[float]:
    mixed: list[float] = sum(part * np.asarray(sample.values[name]) for sample, part in mixture).tolist()  # type: ignore[union-attr]
    return mixed


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


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
