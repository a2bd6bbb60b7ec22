"""From stored measurements to results: means over seeds, estimates, and what every method is set beside.

A user gets without it: mixtures of plain pipelines that take as long, and of static ways that save as much.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ada import statistics
from ada.evaluation.measure import metrics
from ada.evaluation.measure.metrics import BOUNDED, COMPUTE_SAVED, DISTANCE, MACS, VISIBLE
from ada.evaluation.measure.results import Match, MethodResult, paired_difference
from ada.evaluation.measure.run import Timing
from ada.evaluation.measure.store import Store
from ada.evaluation.methods.base import FEWER_STEPS, FULL_COMPUTE, STATIC, Cases, Method
from ada.rewards.damage import VISIBLE_DISTANCE, bounded_damage, visibly_changed
from ada.schedules import Mixture
from ada.statistics import LEAST_DISTANCE, Estimate

Parts = Sequence[tuple[MethodResult, float]]
"""Rows on the same prompts and noise, and the share of the images that each takes."""


def collect_results(
    store: Store, methods: Sequence[Method], reasons: Mapping[str, str | None], timings: Mapping[str, Timing], cases: Cases,
    visible_damage: float = VISIBLE_DISTANCE,
) -> list[MethodResult]:  # fmt: skip
    """Results of all methods, the first of which is the reference; those that do not apply carry the reason alone.

    What is bounded and what is visible is decided here, by the stored distances: another τ (`visible_damage`) needs no new images.
    """
    batches, results, reference_timing = cases.batches(), list[MethodResult](), timings.get(methods[0].name, Timing())
    for method in methods:
        told = {name: getattr(method, name) for name in ("name", "family", "group", "note", "num_inference_steps")}
        together = cases.batch_size if method.joint else 1
        result = MethodResult(**told, settings=method.described, reason=reasons[method.name], together=together)
        results.append(result)
        if result.reason is not None:
            continue
        parts = [store.batch(method, batch) for batch in batches]
        features = np.concatenate([store.features(method, batch) for batch in batches])
        per_case, timing = _per_case(parts, batches, visible_damage), timings.get(method.name, Timing())
        per_prompt = {name: statistics.per_prompt(values, cases.num_seeds) for name, values in per_case.items()}
        if method is methods[0]:
            full, reference_features = per_prompt, features
        per_prompt[COMPUTE_SAVED] = [1 - own / theirs for own, theirs in zip(per_prompt[MACS], full[MACS], strict=True)]
        distances, actions = per_case[DISTANCE], [row for part in parts for row in part["actions"] or []]
        estimates = {
            **_estimates(per_prompt, distances, cases, method, together),
            **latencies(timing, reference_timing, min(cases.batch_size, len(cases.prompts) // cases.num_seeds)),
            **_single_figures(parts, actions, timing),
        }
        if max(distances) == 0:  # the reference, by definition, and what is the same to the bit
            estimates |= dict.fromkeys((BOUNDED, VISIBLE), Estimate(0.0, 0.0, 0.0))
        if len(features) > 1:
            estimates[metrics.FRECHET] = Estimate(metrics.frechet_distance(features, reference_features), None, None)
        results[-1] = replace(
            result, estimates=estimates, per_prompt=per_prompt, distances=distances, actions=actions or None,
            seconds_per_image={str(size): values for size, values in timing.seconds_per_image.items() if values},
            action_names=max((part["action_names"] for part in parts), key=len),
        )  # fmt: skip
    return with_matches(results)


def _per_case(parts: Sequence[Mapping[str, Any]], batches: Sequence[slice], visible_damage: float) -> dict[str, list[float]]:
    """By metric and for the MACs, the decider's included, a value per case: what was measured of all batches, put together."""
    counted, own_macs = float(np.mean(parts[0]["macs"])), parts[0]["own_macs"]
    per_case: dict[str, list[float]] = {}
    for part, batch in zip(parts, batches, strict=True):
        macs = part["macs"] or [counted] * (batch.stop - batch.start)
        for name, values in {**part["values"], MACS: [each + own_macs for each in macs]}.items():
            per_case.setdefault(name, []).extend(values)
    distances = torch.tensor(per_case[DISTANCE], dtype=torch.float64).clamp(min=0)  # rounding may leave less
    damage, changed = bounded_damage(distances, visible_damage), visibly_changed(distances, visible_damage)
    return per_case | {BOUNDED: damage.tolist(), VISIBLE: changed.tolist()}


def _estimates(
    per_prompt: Mapping[str, list[float]], distances: Sequence[float], cases: Cases, method: Method, together: int
) -> dict[str, Estimate]:
    """Each quantity with the interval that holds for its kind. What decides for a batch as a whole does alike to all of it, and work that
    depends on the images is counted by batches: then a batch counts as one prompt."""
    kinds = {VISIBLE: statistics.share, **dict.fromkeys(metrics.RAW, statistics.raw_mean)}
    found = {}
    for name, values in per_prompt.items():
        is_counted = method.data_dependent and name in (MACS, COMPUTE_SAVED)
        size = cases.batch_size if is_counted else together
        found[name] = statistics.by_groups(kinds.get(name, statistics.mean), size, values)
    quantiles = {metrics.MEDIAN: 0.5, metrics.TAIL: 0.9}
    return found | {
        name: statistics.quantile(distances, probability, cases.num_seeds, together) for name, probability in quantiles.items()
    }


def _single_figures(
    parts: Sequence[Mapping[str, Any]], actions: Sequence[Sequence[int]], timing: Timing
) -> dict[str, Estimate]:
    """What is one number for the whole run, and has no interval."""
    kept = [timing.cache_bytes, *(part["cache_bytes"] for part in parts)]
    figures = {
        metrics.CACHE: max((size for size in kept if size is not None), default=None),
        metrics.MEMORY: timing.peak_bytes,
        metrics.OWN_MACS: parts[0]["own_macs"],
        metrics.SCHEDULES: len(set(map(tuple, actions))) or None,
    }
    return {name: Estimate(float(value), None, None) for name, value in figures.items() if value is not None}


def latencies(timing: Timing, reference: Timing, batch_size: int) -> dict[str, Estimate]:
    """Medians over the rounds; a speed-up is that of the rounds' ratios: both ran within minutes of each other."""
    estimates: dict[str, Estimate] = {}
    kinds = ((1, metrics.SECONDS_ALONE, metrics.SPEED_UP_ALONE), (batch_size, metrics.SECONDS, metrics.SPEED_UP))
    for size, seconds, speed_up in kinds:
        own = timing.seconds_per_image.get(size)
        if own:
            ratios = [theirs / ours for ours, theirs in zip(own, reference.seconds_per_image[size], strict=True)]
            estimates |= {seconds: statistics.quantile(own, 0.5), speed_up: statistics.quantile(ratios, 0.5)}
    return estimates


def read_complexity(
    store: Store, reference: Method, cases: Cases, results: Sequence[MethodResult] = ()
) -> dict[str, list[float]]:
    """What images differ in: edge density of the reference, the mean over the seeds; number of words of the prompt; and sensitivity,
    the mean bounded damage over the searched static schedules among the results, which is what an oracle spends by.
    """
    edges = [value for batch in cases.batches() for value in store.batch(reference, batch)["edge_density"]]
    densities = statistics.per_prompt(edges, cases.num_seeds)
    words = [float(len(str(prompt).split())) for prompt in cases.prompts[: len(densities)]]
    static = [method.per_prompt[BOUNDED] for method in results if method.family == STATIC and method.reason is None]
    sensitivity = {metrics.SENSITIVITY: np.mean(static, axis=0).tolist()} if static else {}
    return {metrics.EDGE_DENSITY: densities, metrics.PROMPT_LENGTH: words, **sensitivity}


def with_matches(results: Sequence[MethodResult]) -> list[MethodResult]:
    """Sets beside every method what a user gets without it.

    The mixtures of two plain pipelines that take as long, and that save as much; and the best mixture of two static ways, of those that
    do not look at the image: plain, BlockDance, searched.
    """
    measured = [method for method in results if method.reason is None]
    plain = [method for method in measured if method.family in (FULL_COMPUTE, FEWER_STEPS)]
    static = [method for method in measured if method.is_static]

    def matched(method: MethodResult) -> MethodResult:
        if method.reason is not None or method.family == FULL_COMPUTE:
            return method
        column = metrics.SECONDS if metrics.SECONDS in method.estimates else metrics.SECONDS_ALONE
        timed = [row for row in plain if column in row.estimates]

        def speed(row: MethodResult) -> float:
            return -row.estimates[column].value

        beside: dict[str, Parts | None] = {}
        if method not in plain:
            if column in method.estimates:
                beside[metrics.SAME_LATENCY] = mixture_at(speed(method), timed, speed)
            beside[metrics.SAME_COMPUTE] = mixture_at(method.saved, plain)
        if method not in static:
            beside[metrics.STATIC_MIXTURE] = mixture_at(method.saved, static)
        return replace(method, matches={kind: compare(method, parts) for kind, parts in beside.items() if parts})

    return [matched(method) for method in results]


def mixture_at(
    saved: float, rows: Sequence[MethodResult], saving: Callable[[MethodResult], float] = lambda row: row.saved
) -> Parts | None:
    """The two rows whose mixture saves `saved` at the smallest bounded damage: what a mean budget gives without looking at images.

    They are chosen by the very figures that they are shown with: the mixture looks a little better than it is, and nothing that beats it
    does. Chosen prompt by prompt by the figures of the others it would look worse: of two rows that are nearly level, each prompt would get
    the one that does it more harm, and intervals of 95 % would hold 84 (`test_results.py` simulates both).

    Returns:
        The rows and their shares; None where no mixture saves exactly as much.
    """
    gains = torch.tensor([saving(row) for row in rows], dtype=torch.float64)
    if not rows or not gains.min() <= saved <= gains.max():
        return None
    errors = torch.tensor([row.per_prompt[BOUNDED] for row in rows], dtype=torch.float64).T
    shares = Mixture.of(errors, gains).shares(saved, len(rows))
    return [(row, part) for row, part in zip(rows, shares.tolist(), strict=True) if part]


def mixed(parts: Parts, metric: str) -> list[float]:
    """What is expected of each prompt where every image takes a row at random, with the given probabilities."""
    values: list[float] = sum(part * np.array(row.per_prompt[metric]) for row, part in parts).tolist()  # type: ignore[union-attr]
    return values


def compare(own: MethodResult, parts: Parts) -> Match:
    """Sets a method beside one row or a mixture."""
    expected, differences = {}, {}
    for metric, values in own.per_prompt.items():
        if metric not in metrics.COSTS:
            others = mixed(parts, metric)
            expected[metric] = fmean(others)
            if metric not in metrics.RAW:
                differences[metric] = paired_difference(metric, values, others, own.together)
    num_seeds = len(own.distances) // len(own.per_prompt[BOUNDED])
    logs, better = statistics.log_distances(own.distances), np.zeros(len(own.distances))
    for row, part in parts:
        logs = logs - part * statistics.log_distances(row.distances)
        better += part * statistics.wins(own.distances, row.distances)
    won = statistics.by_groups(statistics.share, own.together, statistics.per_prompt(better, num_seeds))
    match = Match([(row.name, part) for row, part in parts], expected, differences, won)
    if any(max(row.distances) <= LEAST_DISTANCE for row, _ in parts):
        return match
    log_ratio = statistics.by_groups(statistics.mean, own.together, statistics.per_prompt(logs, num_seeds))
    ends = [None if end is None else float(np.exp(end)) for end in (log_ratio.low, log_ratio.high)]
    return replace(match, ratio=Estimate(float(np.exp(log_ratio.value)), *ends))
