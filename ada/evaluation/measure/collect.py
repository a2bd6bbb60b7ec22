"""From stored measurements to results: means over seeds, estimates, Fréchet distances, complexity, and what stands beside what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ada.evaluation.measure import statistics
from ada.evaluation.measure.matches import Match, Sample, compare, mixture_at
from ada.evaluation.measure.metrics import BOUNDED, DISTANCE, LATENT, VISIBLE
from ada.evaluation.measure.results import (
    CACHE,
    COMPUTE_SAVED,
    COSTS,
    FRECHET,
    MACS,
    MEDIAN,
    MEMORY,
    OWN_MACS,
    SAME_COMPUTE,
    SAME_LATENCY,
    SCHEDULES,
    SECONDS,
    SECONDS_ALONE,
    SPEED_UP,
    SPEED_UP_ALONE,
    STATIC_MIXTURE,
    TAIL,
    MethodResult,
    differences_of,
)
from ada.evaluation.measure.statistics import Array, Estimate, frechet_distance
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.timing import Timing
from ada.evaluation.methods import FEWER_STEPS, FULL_COMPUTE, STATIC, Method
from ada.evaluation.subject import Cases

EDGE_DENSITY = "edge_density"
PROMPT_LENGTH = "prompt_length"
SENSITIVITY = "sensitivity"
STATIC_GROUPS = ("plain", "blockdance", "static")


@dataclass(frozen=True)
class Record:
    """A method's stored measurements, of all batches.

    Args:
        per_case: by metric and for the MACs, one value per case.
        actions: per case; None where the method takes none.
        action_names: what they mean.
        own_macs: of the decider, per image.
        features: `(cases, width)`.
        cache_bytes: most that any batch kept; None where nobody knows.
    """

    per_case: dict[str, list[float]]
    actions: list[list[int]] | None
    action_names: list[str]
    own_macs: float
    features: Array
    cache_bytes: int | None


def collect_results(
    store: Store, methods: Sequence[Method], reasons: Mapping[str, str | None], timings: Mapping[str, Timing], cases: Cases
) -> list[MethodResult]:
    """Results of all methods, the first of which is the reference; those that do not apply carry the reason alone."""
    reference = read_record(store, methods[0], cases)
    results = []
    for method in methods:
        names = ("name", "family", "group", "label", "note", "num_inference_steps")
        known: dict[str, Any] = {name: getattr(method, name) for name in names} | {"settings": dict(method.settings)}
        if reasons[method.name] is not None:
            results.append(MethodResult(**known, reason=reasons[method.name]))
            continue
        record = read_record(store, method, cases)
        timing = timings.get(method.name, Timing())
        per_prompt = _with_saved(record, reference, cases)
        estimates = _estimates(per_prompt, record.per_case.get(DISTANCE, []), cases.num_seeds)
        estimates |= differences_of(per_prompt, _with_saved(reference, reference, cases))
        estimates |= _latencies(timing, timings.get(methods[0].name, Timing()), min(cases.batch_size, len(cases.prompts)))
        estimates |= _single_figures(record, reference, timing)
        seconds = {str(size): values for size, values in timing.seconds_per_image.items() if values}
        results.append(
            MethodResult(
                **known, estimates=estimates, per_prompt=per_prompt, distances=record.per_case.get(DISTANCE, []),
                seconds_per_image=seconds, actions=record.actions, action_names=record.action_names,
            )
        )  # fmt: skip
    return with_matches(results, cases.num_seeds)


def read_record(store: Store, method: Method, cases: Cases) -> Record:
    """Puts a method's batches together."""
    numbers = range(len(cases.batches()))
    parts: list[dict[str, Any]] = [store.batch(method, number) for number in numbers]
    counted = float(np.mean(parts[0]["macs"]))
    per_case: dict[str, list[float]] = {}
    for part, batch in zip(parts, cases.batches(), strict=True):
        macs = part["macs"] or [counted] * (batch.stop - batch.start)
        for name, values in {**part["values"], MACS: [each + parts[0]["own_macs"] for each in macs]}.items():
            per_case.setdefault(name, []).extend(values)
    taken = [row for part in parts for row in part["actions"] or []]
    known = [part["cache_bytes"] for part in parts if part["cache_bytes"] is not None]
    return Record(
        per_case, taken or None, max((part["action_names"] for part in parts), key=len), parts[0]["own_macs"],
        np.concatenate([store.features(method, number) for number in numbers]), max(known) if known else None,
    )  # fmt: skip


def read_complexity(
    store: Store, reference: Method, cases: Cases, results: Sequence[MethodResult] = ()
) -> dict[str, list[float]]:
    """What images differ in: edge density of the reference, the mean over the seeds; number of words of the prompt; and sensitivity,
    the mean bounded damage over the searched static schedules among the results, which is what an oracle spends by.
    """
    edges = [value for number in range(len(cases.batches())) for value in store.batch(reference, number)["edge_density"]]
    densities = statistics.per_prompt(edges, cases.num_seeds)
    words = [float(len(prompt.split())) for prompt in cases.prompts[: len(densities)]]
    static = [method.per_prompt[BOUNDED] for method in results if method.family == STATIC and BOUNDED in method.per_prompt]
    sensitivity = {SENSITIVITY: np.mean(static, axis=0).tolist()} if static else {}
    return {EDGE_DENSITY: densities, PROMPT_LENGTH: words, **sensitivity}


def with_matches(results: Sequence[MethodResult], num_seeds: int = 1) -> list[MethodResult]:
    """Sets beside every method what a user gets without it.

    The plain pipeline whose number of steps takes nearest as long; the mixture of two plain pipelines that save as much; and the
    best mixture of two static ways, which are all that do not look at the image: plain, BlockDance, searched.
    """
    measured = [method for method in results if method.reason is None]
    samples = {method.name: _sample(method, num_seeds) for method in measured}
    plain = [method for method in measured if method.family in (FULL_COMPUTE, FEWER_STEPS)]
    static = [method for method in measured if method.group in STATIC_GROUPS]

    def matched(method: MethodResult) -> MethodResult:
        if method.reason is not None or method.family == FULL_COMPUTE or BOUNDED not in method.per_prompt:
            return method
        own, matches = samples[method.name], dict[str, Match]()
        others = [row for row in plain if row is not method]
        column = SECONDS if SECONDS in method.estimates else SECONDS_ALONE
        timed = [row for row in others if column in row.estimates]
        if column in method.estimates and timed and method not in plain:
            latency = method.estimates[column].value
            nearest = min(timed, key=lambda row: abs(row.estimates[column].value - latency))
            matches[SAME_LATENCY] = compare(own, [(samples[nearest.name], 1.0)])
        if method not in plain:
            matches |= _mixed(own, SAME_COMPUTE, [samples[row.name] for row in others])
        if method not in static:
            matches |= _mixed(own, STATIC_MIXTURE, [samples[row.name] for row in static])
        return replace(method, matches=matches)

    return [matched(method) for method in results]


def _mixed(own: Sample, kind: str, rows: Sequence[Sample]) -> dict[str, Match]:
    mixture = mixture_at(own.saved, rows)
    return {} if mixture is None else {kind: compare(own, mixture)}


def _sample(method: MethodResult, num_seeds: int) -> Sample:
    values = {name: values for name, values in method.per_prompt.items() if name not in (*COSTS, LATENT)}
    return Sample(method.name, float(np.mean(method.per_prompt[COMPUTE_SAVED])), values, method.distances, num_seeds)


def _with_saved(record: Record, reference: Record, cases: Cases) -> dict[str, list[float]]:
    """Means over the seeds of each prompt, and the compute saved beside the reference."""
    means = {name: statistics.per_prompt(values, cases.num_seeds) for name, values in record.per_case.items()}
    full = statistics.per_prompt(reference.per_case[MACS], cases.num_seeds)
    means[COMPUTE_SAVED] = [1 - own / theirs for own, theirs in zip(means[MACS], full, strict=True)]
    return means


def _estimates(per_prompt: Mapping[str, list[float]], distances: Sequence[float], num_seeds: int) -> dict[str, Estimate]:
    """Each quantity with the interval that holds for its kind."""
    kinds = {VISIBLE: statistics.share, DISTANCE: statistics.raw_mean, LATENT: statistics.raw_mean}
    estimates = {name: kinds.get(name, statistics.mean)(values) for name, values in per_prompt.items()}
    if len(distances) and max(distances) <= statistics.LEAST_DISTANCE:  # the reference, by definition
        estimates |= {name: Estimate(0.0, 0.0, 0.0) for name in (BOUNDED, VISIBLE) if name in per_prompt}
    if len(distances):
        estimates[MEDIAN] = statistics.quantile(distances, 0.5, num_seeds)
        estimates[TAIL] = statistics.quantile(distances, 0.9, num_seeds)
    return estimates


def _latencies(timing: Timing, reference: Timing, batch_size: int) -> dict[str, Estimate]:
    """Medians over the rounds; a speed-up is that of the rounds' ratios: both ran within minutes of each other."""
    estimates: dict[str, Estimate] = {}
    for size, seconds, speed_up in ((1, SECONDS_ALONE, SPEED_UP_ALONE), (batch_size, SECONDS, SPEED_UP)):
        own = timing.seconds_per_image.get(size)
        if own:
            ratios = [theirs / ours for ours, theirs in zip(own, reference.seconds_per_image[size], strict=True)]
            estimates |= {seconds: statistics.quantile(own, 0.5), speed_up: statistics.quantile(ratios, 0.5)}
    return estimates


def _single_figures(record: Record, reference: Record, timing: Timing) -> dict[str, Estimate]:
    """What is one number for the whole run, and has no interval."""
    cache_bytes = timing.cache_bytes if record.cache_bytes is None else record.cache_bytes
    figures: dict[str, float | None] = {CACHE: cache_bytes, MEMORY: timing.peak_bytes, OWN_MACS: record.own_macs}
    if record.actions:
        figures[SCHEDULES] = len({tuple(row) for row in record.actions})
    if len(record.features) > 1:
        figures[FRECHET] = frechet_distance(record.features, reference.features)
    return {name: Estimate(float(value), None, None) for name, value in figures.items() if value is not None}
