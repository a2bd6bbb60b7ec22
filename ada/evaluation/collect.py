"""From stored measurements to results: means over seeds, estimates, Fréchet distances, complexity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ada.evaluation.complexity import EDGE_DENSITY, PROMPT_LENGTH
from ada.evaluation.frechet import Array, frechet_distance
from ada.evaluation.methods import FEWER_STEPS, Method
from ada.evaluation.results import CACHE, COMPUTE_SAVED, FRECHET, MACS, MEMORY, MethodResult, estimate_all, match_latency
from ada.evaluation.run import Cases, WarmUp
from ada.evaluation.statistics import Estimate
from ada.evaluation.store import Store


@dataclass(frozen=True)
class Record:
    """A method's stored measurements, of all batches.

    Args:
        per_case: by metric and for the MACs, one value per case.
        actions: per case; None where the method takes none.
        seconds_per_image: of the timed batches.
        features: `(cases, width)`.
        cache_bytes: most that any batch kept; None where nobody knows.
    """

    per_case: dict[str, list[float]]
    actions: list[list[int]] | None
    seconds_per_image: list[float]
    features: Array
    cache_bytes: int | None


def collect_results(
    store: Store, methods: Sequence[Method], warm_ups: Mapping[str, WarmUp], cases: Cases
) -> list[MethodResult]:
    """Results of all methods, the first of which is the reference; those that do not apply carry the reason alone."""
    reference = read_record(store, methods[0], warm_ups[methods[0].name], cases)
    results = []
    for method in methods:
        warm_up = warm_ups[method.name]
        known = {name: getattr(method, name) for name in ("name", "family", "label", "note", "num_inference_steps")}
        if warm_up.reason is not None:
            results.append(MethodResult(**known, reason=warm_up.reason))
            continue
        record = read_record(store, method, warm_up, cases)
        per_prompt = _with_saved(record, reference, cases)
        estimates = estimate_all(
            per_prompt, _with_saved(reference, reference, cases), record.seconds_per_image, reference.seconds_per_image
        )
        estimates |= _single_figures(record, reference, warm_up)
        results.append(
            MethodResult(
                **known,
                estimates=estimates,
                per_prompt=per_prompt,
                seconds_per_image=record.seconds_per_image,
                actions=record.actions,
            )
        )
    metrics = [name for name in results[0].per_prompt if name not in (COMPUTE_SAVED, MACS)]
    return match_latency(results, FEWER_STEPS, metrics)


def read_record(store: Store, method: Method, warm_up: WarmUp, cases: Cases) -> Record:
    """Puts a method's batches together."""
    per_case: dict[str, list[float]] = {}
    actions: list[list[int]] = []
    seconds: list[float] = []
    caches: list[int | None] = []
    numbers = range(len(cases.batches()))
    for number, batch in enumerate(cases.batches()):
        part: dict[str, Any] = store.batch(method, number)
        macs = part["macs"] or [warm_up.macs_per_image] * (batch.stop - batch.start)
        for name, values in {**part["values"], MACS: macs}.items():
            per_case.setdefault(name, []).extend(values)
        actions += part["actions"] or []
        seconds += [part["seconds_per_image"]] if part["seconds_per_image"] is not None else []
        caches.append(part["cache_bytes"])
    features = np.concatenate([store.features(method, number) for number in numbers])
    known = [cache for cache in caches if cache is not None]
    return Record(per_case, actions or None, seconds, features, max(known) if known else None)


def read_complexity(store: Store, reference: Method, cases: Cases) -> dict[str, list[float]]:
    """Edge density of the reference images, the mean over the seeds, and number of words of the prompts."""
    edges = [value for number in range(len(cases.batches())) for value in store.batch(reference, number)["edge_density"]]
    densities = np.reshape(edges, (cases.num_seeds, -1)).mean(0).tolist()
    words = [float(len(prompt.split())) for prompt in cases.prompts[: len(densities)]]
    return {EDGE_DENSITY: densities, PROMPT_LENGTH: words}


def _with_saved(record: Record, reference: Record, cases: Cases) -> dict[str, list[float]]:
    """Means over the seeds of each prompt, and the compute saved beside the reference."""
    per_prompt = {name: np.reshape(values, (cases.num_seeds, -1)).mean(0).tolist() for name, values in record.per_case.items()}
    full = np.reshape(reference.per_case[MACS], (cases.num_seeds, -1)).mean(0)
    per_prompt[COMPUTE_SAVED] = (1 - np.array(per_prompt[MACS]) / full).tolist()
    return per_prompt


def _single_figures(record: Record, reference: Record, warm_up: WarmUp) -> dict[str, Estimate]:
    """What is one number for the whole run, and has no interval."""
    figures: dict[str, float | None] = {CACHE: record.cache_bytes, MEMORY: warm_up.peak_bytes}
    if len(record.features) > 1:
        figures[FRECHET] = frechet_distance(record.features, reference.features)
    return {name: Estimate(float(value), None, None) for name, value in figures.items() if value is not None}
