"""What a method is set beside: the plain pipeline that is just as fast, and mixtures of static ways that save as much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ada.evaluation.measure.metrics import BOUNDED, DISTANCE
from ada.evaluation.measure.statistics import LEAST_DISTANCE, Array, Estimate, log_distances, mean, per_prompt, share, wins


@dataclass(frozen=True)
class Sample:
    """What a method is compared by.

    Args:
        name: of its row.
        saved: mean share of the compute that it saves.
        values: by metric, one value per prompt.
        distances: per case; empty where no distance was measured.
        num_seeds: how often each prompt occurs among the cases.
    """

    name: str
    saved: float
    values: Mapping[str, Sequence[float]]
    distances: Sequence[float]
    num_seeds: int


@dataclass(frozen=True)
class Match:
    """One row, or a mixture of two, and paired differences to it.

    Args:
        rows: names, and the share of the images that each takes.
        expected: by metric, what this side has on average.
        differences: by metric, the method minus this side.
        ratio: the method's distance over this side's: the geometric mean over the cases; None without distances, and where the
            reference takes part, whose distance is 0.
        better: the share of cases on which the method is nearer to the reference; ties count half.
    """

    rows: list[tuple[str, float]]
    expected: dict[str, float]
    differences: dict[str, Estimate]
    ratio: Estimate | None = None
    better: Estimate | None = None

    @property
    def name(self) -> str:
        """For a table."""
        return " + ".join(name if part > 0.995 else f"{part:.0%} {name}" for name, part in self.rows)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Match":
        """Of what `dataclasses.asdict` made."""
        known = {name: fields[name] and Estimate(**fields[name]) for name in ("ratio", "better")}
        differences = {name: Estimate(**estimate) for name, estimate in fields["differences"].items()}
        return cls([(name, part) for name, part in fields["rows"]], fields["expected"], differences, **known)


def compare(own: Sample, others: Sequence[tuple[Sample, float]]) -> Match:
    """Sets a method beside one row, or beside a mixture: each image takes a row at random, with the given probabilities.

    Args:
        own: the method.
        others: rows on the same prompts and noise, and the share of the images that each takes.
    """
    differences, expected = {}, {}
    for metric, values in own.values.items():
        mixed = sum((part * np.asarray(other.values[metric]) for other, part in others), np.zeros(len(values)))
        expected[metric] = float(mixed.mean())
        if metric != DISTANCE:  # for whose mean no interval holds
            differences[metric] = mean((np.asarray(values) - mixed).tolist())
    rows = [(other.name, part) for other, part in others]
    if not len(own.distances):
        return Match(rows, expected, differences)
    logs: Array = log_distances(own.distances)
    better = np.zeros_like(logs)
    for other, part in others:
        logs = logs - part * log_distances(other.distances)
        better += part * wins(own.distances, other.distances)
    better_share = share(per_prompt(better, own.num_seeds))
    if any(max(other.distances) <= LEAST_DISTANCE for other, _ in others):
        return Match(rows, expected, differences, None, better_share)
    log_ratio = mean(per_prompt(logs, own.num_seeds))
    ends = [None if end is None else float(np.exp(end)) for end in (log_ratio.low, log_ratio.high)]
    ratio = Estimate(float(np.exp(log_ratio.value)), *ends)
    return Match(rows, expected, differences, ratio, better_share)


def mixture_at(saved: float, samples: Sequence[Sample], metric: str = BOUNDED) -> list[tuple[Sample, float]] | None:
    """The two rows whose mixture saves `saved` at the smallest mean of a metric: what a mean budget gives without looking at images.

    The rows are chosen by the very figures that they are then compared with, which flatters the mixture, not the method beside it.

    Args:
        saved: mean share of the compute to save.
        samples: the rows to choose from.
        metric: lower is better.

    Returns:
        One row or two with their shares; None where no mixture saves exactly as much.
    """
    points = [(sample.saved, float(np.mean(sample.values[metric])), sample) for sample in samples]
    best: tuple[float, list[tuple[Sample, float]]] | None = None
    for place, (low, low_value, first) in enumerate(points):
        for high, high_value, second in points[:place] + points[place + 1 :]:
            if not low <= saved <= high:
                continue
            part = 0.0 if high == low else (saved - low) / (high - low)
            value = (1 - part) * low_value + part * high_value
            if best is None or value < best[0]:
                best = value, [(row, share) for row, share in ((first, 1 - part), (second, part)) if share > 0]
    return None if best is None else best[1]
