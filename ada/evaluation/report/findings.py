"""What the results say: whether Ada wins, by how much, and how sure that is; the curve of what it has to beat; where it spends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ada.evaluation.measure import MethodResult, Results, mixed, mixture_at
from ada.evaluation.measure.metrics import BOUNDED, COMPUTE_SAVED, DISTANCE, STATIC_MIXTURE, VISIBLE
from ada.evaluation.methods.base import ADA, FULL_COMPUTE
from ada.statistics import Estimate, mean, rank_correlation, share

TYPICAL_SAVING = 0.2
"""The headline is about the row of Ada, of those that decide about each image alone, that saves nearest to this: decided before anything
is measured."""
COMPARABLE_SAVING = 0.3
"""Where one method of each family or group stands for the others, it is the one that saves nearest to this."""
NUM_LEVELS = 24
MIXTURE = "Best static mixture"


def nearest_to(saving: float, methods: Sequence[MethodResult]) -> MethodResult:
    """The method whose saving is nearest to one."""
    return min(methods, key=lambda method: abs(method.estimates[COMPUTE_SAVED].value - saving))


def comparable(methods: Sequence[MethodResult], by: Callable[[MethodResult], str]) -> list[MethodResult]:
    """The reference and, of each family or group, the method that saves nearest to 30 %: all of them are too many to look at."""
    reference, *others = sorted(methods, key=lambda method: method.family != FULL_COMPUTE)
    kinds = dict.fromkeys(by(method) for method in others)
    return [reference, *(nearest_to(COMPARABLE_SAVING, [method for method in others if by(method) == kind]) for kind in kinds)]


@dataclass(frozen=True)
class Headline:
    """What a reader sees first: the row that it is about, the verdict in a few words, and the same with figures and intervals."""

    method: str
    title: str
    sentence: str


def headline_of(results: Results) -> Headline | None:
    """The verdict on Ada beside the best mixture of static ways at the same mean compute; None without such a pair."""
    rows = [method for method in results.measured if method.family == ADA and STATIC_MIXTURE in method.matches]
    if not rows:
        return None
    ada = nearest_to(TYPICAL_SAVING, rows)
    match = ada.matches[STATIC_MIXTURE]
    delta, changed = match.differences[BOUNDED], ada.estimates[VISIBLE]
    part = f"{abs(delta.value) / max(match.expected[BOUNDED], 1e-12):.0%}"
    if delta.low is None or delta.high is None or delta.low <= 0 <= delta.high:
        verdict, title = "no clear difference", "No clear difference between Ada and the best static schedules"
    elif delta.value < 0:
        verdict, title = "better", f"Ada wins: {part} less damage than the best static schedules at the same compute"
    else:
        verdict, title = "worse", f"Ada loses: {part} more damage than the best static schedules at the same compute"
    sentence = (
        f"Saving {ada.estimates[COMPUTE_SAVED].value:.0%} of the compute, {ada.name} does {ada.estimates[BOUNDED].value:.3f} of "
        f"bounded damage; the best mixture of static ways that save as much does {match.expected[BOUNDED]:.3f}. Difference "
        f"{_signed(delta.value)} (95 % interval {_signed(delta.low)} to {_signed(delta.high)}): {verdict}. Visibly changed: "
        f"{changed.value:.1%} of the images ({_share(changed.low)} to {_share(changed.high)}), with the mixture "
        f"{match.expected[VISIBLE]:.1%}."
    )
    return Headline(ada.name, title, sentence)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


@dataclass(frozen=True)
class CurvePoint:
    """The best mixture of static ways at one saving."""

    saved: float
    estimates: dict[str, Estimate]


def static_curve(results: Results) -> list[CurvePoint]:
    """Bounded damage and visibly changed share of the best static mixture at evenly spaced savings, with intervals."""
    static = [method for method in results.measured if method.is_static]
    most = min(0.6, max((method.saved for method in static), default=0.0))
    points = []
    for saved in np.linspace(0, most, NUM_LEVELS).tolist() if most > 0 else []:
        parts = mixture_at(saved, static)
        if parts is not None:
            estimates = {BOUNDED: mean(mixed(parts, BOUNDED)), VISIBLE: share(mixed(parts, VISIBLE))}
            points.append(CurvePoint(saved, estimates))
    return points


@dataclass(frozen=True)
class Spending:
    """How one method spent its compute.

    Args:
        name: the method.
        correlations: by measure of complexity, Spearman's rank correlation with the compute spent, with its interval; None where one
            of them is the same for every prompt.
        easiest: places of the prompts that took least compute, least first.
        hardest: places of those that took most, most first.
    """

    name: str
    correlations: dict[str, Estimate | None]
    easiest: list[int]
    hardest: list[int]


def spending(results: Results, num_extremes: int = 4) -> list[Spending]:
    """How the methods that decide per image spent their compute: its correlation with complexity, and the extremes. Prompts of equal
    compute are in the order of their distance to the reference."""
    found = []
    for method in results.measured:
        if method.group == "ada":
            spent = 1 - np.asarray(method.per_prompt[COMPUTE_SAVED])
            correlations = {measure: rank_correlation(spent, values) for measure, values in results.complexity.items()}
            order = np.lexsort((np.asarray(method.per_prompt[DISTANCE]), spent)).tolist()
            found.append(Spending(method.name, correlations, order[:num_extremes], order[::-1][:num_extremes]))
    return found
