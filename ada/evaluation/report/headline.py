"""Whether Ada wins, by how much, and how sure that is: one sentence, and the curve of what it has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ada.evaluation.measure import Estimate, MethodResult, Results
from ada.evaluation.measure.collect import STATIC_GROUPS
from ada.evaluation.measure.matches import Sample, mixture_at
from ada.evaluation.measure.metrics import BOUNDED, VISIBLE
from ada.evaluation.measure.results import COMPUTE_SAVED, STATIC_MIXTURE
from ada.evaluation.measure.statistics import mean, share

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
    titles = {
        "better": "Ada wins: less damage than any static schedule at the same compute",
        "worse": "Ada loses: a static schedule does less damage at the same compute",
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
