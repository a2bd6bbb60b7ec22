"""What a method is set beside: the plain pipeline that is just as fast, and mixtures of static ways that save as much."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from ada.evaluation.measure.columns import (
    BOUNDED,
    COSTS,
    DISTANCE,
    LATENT,
    SAME_COMPUTE,
    SAME_LATENCY,
    SECONDS,
    SECONDS_ALONE,
    STATIC_MIXTURE,
)
from ada.evaluation.measure.results import Match, MethodResult
from ada.evaluation.measure.statistics import LEAST_DISTANCE, Estimate, log_distances, mean, per_prompt, share, wins
from ada.evaluation.methods import FEWER_STEPS, FULL_COMPUTE, STATIC_GROUPS
from ada.schedules import Mixture

Parts = Sequence[tuple[MethodResult, float]]
"""Rows on the same prompts and noise, and the share of the images that each takes."""


def with_matches(results: Sequence[MethodResult]) -> list[MethodResult]:
    """Sets beside every method what a user gets without it.

    The plain pipeline whose number of steps takes nearest as long; the mixture of two plain pipelines that save as much; and the
    best mixture of two static ways, which are all that do not look at the image: plain, BlockDance, searched.
    """
    measured = [method for method in results if method.reason is None]
    plain = [method for method in measured if method.family in (FULL_COMPUTE, FEWER_STEPS)]
    static = [method for method in measured if method.group in STATIC_GROUPS]

    def matched(method: MethodResult) -> MethodResult:
        if method.reason is not None or method.family == FULL_COMPUTE or BOUNDED not in method.per_prompt:
            return method
        column = SECONDS if SECONDS in method.estimates else SECONDS_ALONE
        timed = [row for row in plain if column in row.estimates]
        beside: dict[str, Parts | None] = {}
        if method not in plain:
            if column in method.estimates and timed:
                latency = method.estimates[column].value
                beside[SAME_LATENCY] = [(min(timed, key=lambda row: abs(row.estimates[column].value - latency)), 1.0)]
            beside[SAME_COMPUTE] = mixture_at(method.saved, plain)
        if method not in static:
            beside[STATIC_MIXTURE] = mixture_at(method.saved, static)
        return replace(method, matches={kind: compare(method, parts) for kind, parts in beside.items() if parts})

    return [matched(method) for method in results]


def mixture_at(saved: float, rows: Sequence[MethodResult], metric: str = BOUNDED) -> Parts | None:
    """The two rows whose mixture saves `saved` at the smallest mean of a metric: what a mean budget gives without looking at images.

    The rows are chosen by the very figures that they are then compared with, which flatters the mixture, not the method beside it.

    Args:
        saved: mean share of the compute to save.
        rows: the rows to choose from.
        metric: lower is better.

    Returns:
        One row or two with their shares; None where no mixture saves exactly as much.
    """
    gains = [row.saved for row in rows]
    if not rows or not min(gains) <= saved <= max(gains):
        return None
    errors = torch.tensor([row.per_prompt[metric] for row in rows], dtype=torch.float64).T
    shares = Mixture.of(errors, torch.tensor(gains, dtype=torch.float64)).shares(saved, len(rows))
    return [(row, part) for row, part in zip(rows, shares.tolist(), strict=True) if part > 0]


def mixed(parts: Parts, metric: str) -> list[float]:
    """What is expected of each prompt where every image takes a row at random, with the given probabilities."""
    values: list[float] = sum(part * np.asarray(row.per_prompt[metric]) for row, part in parts).tolist()  # type: ignore[union-attr]
    return values


def compare(own: MethodResult, parts: Parts) -> Match:
    """Sets a method beside one row or a mixture."""
    expected, differences = {}, {}
    for metric, values in own.per_prompt.items():
        if metric in (*COSTS, LATENT):
            continue
        others = mixed(parts, metric)
        expected[metric] = fmean(others)
        if metric != DISTANCE:  # for whose mean no interval holds
            differences[metric] = mean((np.asarray(values) - others).tolist())
    match = Match([(row.name, part) for row, part in parts], expected, differences)
    if not own.distances:
        return match
    num_seeds = len(own.distances) // len(own.per_prompt[BOUNDED])
    logs, better = log_distances(own.distances), np.zeros(len(own.distances))
    for row, part in parts:
        logs = logs - part * log_distances(row.distances)
        better += part * wins(own.distances, row.distances)
    match = replace(match, better=share(per_prompt(better, num_seeds)))
    if any(max(row.distances) <= LEAST_DISTANCE for row, _ in parts):
        return match
    log_ratio = mean(per_prompt(logs, num_seeds))
    ends = [None if end is None else float(np.exp(end)) for end in (log_ratio.low, log_ratio.high)]
    return replace(match, ratio=Estimate(float(np.exp(log_ratio.value)), *ends))
