"""The whole evaluation: choose the methods, measure and time every one of them, write the reports."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ada.evaluation.measure import (
    VIDEO_COLUMNS,
    Bar,
    MethodResult,
    Plan,
    Results,
    Store,
    all_columns,
    collect_results,
    default_console,
    describe_environment,
    measure,
    public_name,
    read_complexity,
    time_methods,
    too_few_images,
)
from ada.evaluation.methods import (
    Method,
    NotApplicableError,
    ada_methods,
    blockdance,
    calibrated_methods,
    deep_cache,
    fewer_steps,
    full_method,
    ladder_methods,
    num_blocks_of,
    peer_methods,
    random_method,
    rival_methods,
    shuffled_method,
    threshold_methods,
)
from ada.evaluation.report import Pictures, terminal_table, write_reports
from ada.evaluation.request import Request
from ada.evaluation.subject import Cases, Subject
from ada.policy import AdaPolicy
from ada.rollouts import FrozenPipeline
from ada.rollouts.fingerprints import weights_digest

GRID_PROMPTS = 8


class EvaluationError(ValueError):
    """An evaluation that was asked for and makes no sense."""


def evaluate(frozen: FrozenPipeline, policy: AdaPolicy, request: Request, console: Console | None = None) -> Results:
    """Measures a policy against everything that a user might pick instead, through the stock pipeline.

    Prints a table and writes `results.json`, `table.md`, figures, an image grid, `index.html` and TensorBoard events.

    Args:
        frozen: the pipeline and how it is called, on the device to measure on.
        policy: the policy.
        request: prompts, metrics and settings.
        console: where to print.

    Returns:
        What `results.json` holds.

    Raises:
        IncompatiblePolicyError: the policy was trained on another architecture.
        EvaluationError: no prompts, a number of steps of which the policy decides none, or an unknown row to compare with.
    """
    for given in (policy, *request.rivals.values()):
        given.check(frozen.transformer)
    steps = frozen.num_inference_steps
    if steps < 3 or policy.decision_steps(steps)[0] >= steps - 1:
        raise EvaluationError(f"With {steps} steps this policy decides none: it computes the first ones. Take more steps.")
    weights = list(request.quality_weights or default_quality_weights(policy))
    subject = Subject.of(frozen)

    def methods(store: Store, cases: Cases, bar: Bar) -> list[Method]:
        return _with_policy(subject, policy.to(frozen.device).eval(), weights, request, store, cases)

    settings = {
        "quality_weights": weights, "budgets": list(request.budgets), "mean_budgets": list(request.mean_budgets),
        "policy_weights": policy.digest(),
        "rivals": {name: weights_digest(rival) for name, rival in request.rivals.items()},
    }  # fmt: skip
    return evaluate_methods(subject, methods, request, console, settings)


def evaluate_methods(
    subject: Subject,
    methods: Callable[[Store, Cases, Bar], Sequence[Method]],
    request: Request,
    console: Console | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Measures the given methods on any pipeline, images or videos; `evaluate` without a policy.

    Args:
        subject: the pipeline.
        methods: makes them, the reference first; it is called once, with the store, the cases and a progress bar.
        request: as in `evaluate`.
        console: as in `evaluate`.
        settings: what the measurements depend on besides the request.
    """
    if not request.prompts:
        raise EvaluationError("There are no prompts to evaluate on.")
    console = console or default_console()
    cases = Cases.of(request.prompts, request.indices, request.batch_size, request.seed, request.seeds)
    recorded = _settings(subject, request, settings or {})
    store = Store(request.output, recorded | {"prompts": list(request.prompts), "indices": list(request.indices)})
    with Bar.shown(console) as bar:
        chosen = _chosen(methods(store, cases, bar), request)
        kept = range(len(cases.prompts)) if request.keep_images else grid_places(len(request.prompts))
        plan = Plan(subject, chosen, cases, request.metrics, request.embed, store, frozenset(kept), request.most_images)
        measured = _measure(plan, request, bar)
    results = _results(plan, request, recorded, measured)
    pictures = Pictures(
        store, {method.name: method for method in chosen}, sorted(grid_places(len(request.prompts))), store.read("frames")
    )
    write_reports(results, pictures, request.output)
    console.print(terminal_table(results))
    for line in results.warnings:
        console.print(f"Warning: {line}")
    console.print(
        f"Wrote results.json, table.md, figures, the grid and the page {request.output / 'index.html'}.", soft_wrap=True
    )
    return results


def _chosen(methods: Sequence[Method], request: Request) -> list[Method]:
    """The methods that run."""
    names = [method.name for method in methods]
    if request.compare_with not in names:
        raise EvaluationError(f"No row is named {request.compare_with!r}. There are: {', '.join(names)}.")
    return [method for method in methods if request.wants(method)]


def _measure(plan: Plan, request: Request, bar: Bar) -> list[MethodResult]:
    """Everything that is measured, then everything that is timed."""
    advance = bar.task("Measuring", len(plan.methods) * len(plan.cases.batches()))
    reasons = measure(plan, advance)
    advance("")
    timed = [method for method in plan.methods if method.main and method.timed and reasons[method.name] is None]
    timing = request.timing(len(plan.cases.prompts))
    advance = bar.task("Timing", len(timed) * len(timing.batch_sizes) * (timing.rounds + 1))
    timings = time_methods(plan, timed, timing, advance)
    advance("")
    return collect_results(plan.store, plan.methods, reasons, timings, plan.cases)


def _results(plan: Plan, request: Request, recorded: Mapping[str, Any], measured: list[MethodResult]) -> Results:
    """What `results.json` holds."""
    columns = {name: metric.column for name, metric in request.metrics.items()}
    columns |= VIDEO_COLUMNS if plan.store.read("frames") else {}
    warnings = [too_few_images(len(plan.cases.prompts), plan.store.features(plan.methods[0], 0).shape[1])]
    if request.is_quick_look:
        warnings.insert(
            0, f"A quick look: {len(request.prompts)} prompts are too few to publish, whose tables take 128 or more."
        )  # fmt: skip
    return Results(
        settings=dict(recorded),
        environment=describe_environment(plan.subject.device),
        columns=all_columns(columns),
        prompts=list(request.prompts),
        methods=measured,
        complexity=read_complexity(plan.store, plan.methods[0], plan.cases, measured),
        warnings=[warning for warning in warnings if warning],
    ).compared_with(request.compare_with)


def default_quality_weights(policy: AdaPolicy, count: int = 3) -> list[float]:
    """`count` values of λ, log-spaced over the policy's range; one where the range is a single value."""
    low, high = policy.config["quality_weight_range"]
    if low == high:
        return [low]
    return [low * (high / low) ** (place / (count - 1)) for place in range(count)]


def grid_places(num_prompts: int) -> frozenset[int]:
    """The prompts that the grid shows, spread evenly."""
    return frozenset(place * num_prompts // GRID_PROMPTS for place in range(GRID_PROMPTS))


def _with_policy(
    subject: Subject, policy: AdaPolicy, weights: Sequence[float], request: Request, store: Store, cases: Cases
) -> list[Method]:
    """Every method of the default matrix."""
    steps, num_blocks = subject.num_inference_steps, num_blocks_of(subject)
    boundary = max(kind.boundary for kind in policy.kinds)
    ours = ada_methods(policy, weights, request.budgets, request.mean_budgets, steps)
    middle = ours[len(weights) // 2]
    rivals = [
        row
        for name, rival in request.rivals.items()
        for row in rival_methods(name, rival.to(subject.device).eval(), request.mean_budgets, steps)
    ]
    methods = [
        full_method(steps),
        *fewer_steps(steps),
        *blockdance(num_blocks, steps, boundary),
        *(ladder_methods(request.ladder, steps) if request.ladder is not None else []),
        *ours,
        *(random_method(like, _actions_of(store, like, cases), policy, request.seed, main=like is middle) for like in ours[: len(weights)]),
        *(shuffled_method(like, policy, main=like is middle) for like in ours[: len(weights)]),
        *rivals,
        *deep_cache(num_blocks, steps),
    ]  # fmt: skip
    if request.search_prompts:
        some = slice(0, request.batch_size)
        seeds = Cases.of(request.search_prompts, request.search_indices, 1, request.seed).seeds[some]
        methods += calibrated_methods(subject, request.search_prompts[some], seeds)
        methods += threshold_methods(subject, request.search_prompts[some], seeds, boundary)
        methods += peer_methods(subject, request.search_prompts[some], seeds) if request.peers else []
    return [*methods, *request.extra_methods]


def _actions_of(store: Store, method: Method, cases: Cases) -> Callable[[slice], Tensor]:
    """Reads the actions that a method took, of the cases at the given places."""

    @lru_cache(maxsize=2)
    def batch(number: int) -> list[list[int]]:
        measured = store.batch(method, number)
        if measured is None:
            raise NotApplicableError(f"{method.name}, whose rate it takes, does not apply.")
        actions: list[list[int]] = measured["actions"]
        return actions

    def actions_of(images: slice) -> Tensor:
        places = [divmod(place, cases.batch_size) for place in range(images.start, images.stop)]
        return torch.tensor([batch(number)[place] for number, place in places])

    return actions_of


def _settings(subject: Subject, request: Request, others: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded, and what stored measurements must agree with."""
    sources = request.sources or {"base_model": subject.model}
    return {
        **{name: public_name(source) for name, source in sources.items()},
        **request.settings,
        **others,
        "base_weights": weights_digest(subject.pipeline.transformer),
        "num_prompts": len(request.prompts),
        "num_inference_steps": subject.num_inference_steps,
        "arguments": dict(subject.arguments),
        "scheduler": type(subject.pipeline.scheduler).__name__,
        "dtype": str(subject.pipeline.transformer.dtype).removeprefix("torch."),
        "batch_size": request.batch_size,
        "seed": request.seed,
        "seeds": request.seeds,
        "search_prompts": list(request.search_prompts),
        "ladder": None if request.ladder is None else request.ladder.to_dict(),
    }
