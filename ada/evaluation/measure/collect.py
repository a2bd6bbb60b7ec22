"""From stored measurements to results: means over seeds, estimates, Fréchet distances, complexity, and what stands beside what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ada.evaluation.cases import Cases
from ada.evaluation.measure import columns, statistics
from ada.evaluation.measure.columns import BOUNDED, COMPUTE_SAVED, DISTANCE, LATENT, MACS, VISIBLE
from ada.evaluation.measure.matches import with_matches
from ada.evaluation.measure.results import MethodResult, differences_of
from ada.evaluation.measure.statistics import Array, Estimate
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.timing import Timing
from ada.evaluation.methods import STATIC, Method


@dataclass(frozen=True)
class Record:
    """A method's stored measurements, of all batches.

    Args:
        per_prompt: by metric and for the MACs, the mean over the noise seeds of each prompt.
        distances: one per case.
        actions: per case; empty where the method takes none.
        action_names: what they mean.
        own_macs: of the decider, per image.
        features: `(cases, width)`.
        cache_bytes: most that any batch kept; None where nobody knows.
    """

    per_prompt: dict[str, list[float]]
    distances: list[float]
    actions: list[list[int]]
    action_names: list[str]
    own_macs: float
    features: Array
    cache_bytes: int | None

    @classmethod
    def read(cls, store: Store, method: Method, cases: Cases) -> "Record":
        """Puts a method's batches together."""
        numbers = range(len(cases.batches()))
        parts: list[dict[str, Any]] = [store.batch(method, number) for number in numbers]
        counted, own_macs = float(np.mean(parts[0]["macs"])), parts[0]["own_macs"]
        per_case: dict[str, list[float]] = {}
        for part, batch in zip(parts, cases.batches(), strict=True):
            macs = part["macs"] or [counted] * (batch.stop - batch.start)
            for name, values in {**part["values"], MACS: [each + own_macs for each in macs]}.items():
                per_case.setdefault(name, []).extend(values)
        return cls(
            {name: statistics.per_prompt(values, cases.num_seeds) for name, values in per_case.items()},
            per_case.get(DISTANCE, []),
            [row for part in parts for row in part["actions"] or []],
            max((part["action_names"] for part in parts), key=len),
            own_macs,
            np.concatenate([store.features(method, number) for number in numbers]),
            max((part["cache_bytes"] for part in parts if part["cache_bytes"] is not None), default=None),
        )


def collect_results(
    store: Store, methods: Sequence[Method], reasons: Mapping[str, str | None], timings: Mapping[str, Timing], cases: Cases
) -> list[MethodResult]:
    """Results of all methods, the first of which is the reference; those that do not apply carry the reason alone."""
    reference = Record.read(store, methods[0], cases)
    full = reference.per_prompt[MACS]
    reference.per_prompt[COMPUTE_SAVED] = [0.0] * len(full)
    reference_timing = timings.get(methods[0].name, Timing())
    results = []
    for method in methods:
        names = ("name", "family", "group", "label", "note", "num_inference_steps")
        known: dict[str, Any] = {name: getattr(method, name) for name in names} | {"settings": dict(method.settings)}
        if reasons[method.name] is not None:
            results.append(MethodResult(**known, reason=reasons[method.name]))
            continue
        record, timing = Record.read(store, method, cases), timings.get(method.name, Timing())
        record.per_prompt[COMPUTE_SAVED] = [1 - own / theirs for own, theirs in zip(record.per_prompt[MACS], full, strict=True)]
        estimates = {
            **_estimates(record, cases.num_seeds),
            **differences_of(record.per_prompt, reference.per_prompt),
            **latencies(timing, reference_timing, min(cases.batch_size, len(cases.prompts))),
            **_single_figures(record, reference, timing),
        }
        seconds = {str(size): values for size, values in timing.seconds_per_image.items() if values}
        results.append(
            MethodResult(
                **known, estimates=estimates, per_prompt=record.per_prompt, distances=record.distances, seconds_per_image=seconds,
                actions=record.actions or None, action_names=record.action_names,
            )
        )  # fmt: skip
    return with_matches(results)


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
    sensitivity = {columns.SENSITIVITY: np.mean(static, axis=0).tolist()} if static else {}
    return {columns.EDGE_DENSITY: densities, columns.PROMPT_LENGTH: words, **sensitivity}


def _estimates(record: Record, num_seeds: int) -> dict[str, Estimate]:
    """Each quantity with the interval that holds for its kind."""
    kinds = {VISIBLE: statistics.share, DISTANCE: statistics.raw_mean, LATENT: statistics.raw_mean}
    estimates = {name: kinds.get(name, statistics.mean)(values) for name, values in record.per_prompt.items()}
    if record.distances:
        if max(record.distances) <= statistics.LEAST_DISTANCE:  # the reference, by definition
            estimates |= dict.fromkeys((BOUNDED, VISIBLE), Estimate(0.0, 0.0, 0.0))
        estimates[columns.MEDIAN] = statistics.quantile(record.distances, 0.5, num_seeds)
        estimates[columns.TAIL] = statistics.quantile(record.distances, 0.9, num_seeds)
    return estimates


def latencies(timing: Timing, reference: Timing, batch_size: int) -> dict[str, Estimate]:
    """Medians over the rounds; a speed-up is that of the rounds' ratios: both ran within minutes of each other."""
    estimates: dict[str, Estimate] = {}
    kinds = ((1, columns.SECONDS_ALONE, columns.SPEED_UP_ALONE), (batch_size, columns.SECONDS, columns.SPEED_UP))
    for size, seconds, speed_up in kinds:
        own = timing.seconds_per_image.get(size)
        if own:
            ratios = [theirs / ours for ours, theirs in zip(own, reference.seconds_per_image[size], strict=True)]
            estimates |= {seconds: statistics.quantile(own, 0.5), speed_up: statistics.quantile(ratios, 0.5)}
    return estimates


def _single_figures(record: Record, reference: Record, timing: Timing) -> dict[str, Estimate]:
    """What is one number for the whole run, and has no interval."""
    figures: dict[str, float | None] = {
        columns.CACHE: timing.cache_bytes if record.cache_bytes is None else record.cache_bytes,
        columns.MEMORY: timing.peak_bytes,
        columns.OWN_MACS: record.own_macs,
        columns.SCHEDULES: len(set(map(tuple, record.actions))) or None,
    }
    if len(record.features) > 1:
        figures[columns.FRECHET] = statistics.frechet_distance(record.features, reference.features)
    return {name: Estimate(float(value), None, None) for name, value in figures.items() if value is not None}
