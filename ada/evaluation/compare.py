"""The whole evaluation: survey the policy, search static schedules, measure every method, write the reports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from ada.backbone import Backbone
from ada.evaluation import matrix
from ada.evaluation.calibrated import calibrated_methods
from ada.evaluation.collect import collect_results, read_complexity
from ada.evaluation.environment import describe_environment
from ada.evaluation.frechet import too_few_images
from ada.evaluation.methods import Method, full_method
from ada.evaluation.metrics import VIDEO_COLUMNS
from ada.evaluation.outputs import Pictures, write_reports
from ada.evaluation.peers import peer_methods
from ada.evaluation.progress import Bar, default_console
from ada.evaluation.report import terminal_table
from ada.evaluation.request import Request
from ada.evaluation.results import Results, all_columns
from ada.evaluation.run import Cases, Plan, measure
from ada.evaluation.search import default_kinds, offering_policy, run_schedules, sample_schedules, static_methods
from ada.evaluation.sources import public_name
from ada.evaluation.store import Store, fingerprint_of
from ada.evaluation.subject import Subject
from ada.evaluation.survey import Survey
from ada.policy import AdaPolicy
from ada.rollout import Denoiser
from blockdance import ReuseSchedule

GRID_PROMPTS = 8
STATIC_LEVELS = (0.15, 0.25, 0.35, 0.45)


class EvaluationError(ValueError):
    """An evaluation that was asked for and makes no sense."""


def evaluate(backbone: Backbone, policy: AdaPolicy, request: Request, console: Console | None = None) -> Results:
    """Measures a policy against everything that a user might pick instead, through the stock pipeline.

    Prints a table and writes `results.json`, `table.md`, figures, an image grid, `index.html` and TensorBoard events.

    Args:
        backbone: the pipeline and its settings, on the device to measure on.
        policy: the policy.
        request: prompts, metrics and settings.
        console: where to print.

    Returns:
        What `results.json` holds.

    Raises:
        IncompatiblePolicyError: the policy was trained on another architecture.
        EvaluationError: no prompts, a number of steps of which the policy decides none, or an unknown row to compare with.
    """
    policy.check(backbone.transformer)
    if not policy.decided_steps(backbone.num_inference_steps):
        raise EvaluationError(
            f"With {backbone.num_inference_steps} steps this policy decides none: it computes the first {policy.prefix:.0%} "
            f"and the last {policy.forced_tail:.0%} of them. Take more steps."
        )
    weights = list(request.quality_weights or default_quality_weights(policy))
    subject = Subject.of(backbone)

    def methods(store: Store, cases: Cases, bar: Bar) -> list[Method]:
        return _with_policy(backbone, policy, weights, subject, request, store, cases, bar)

    settings = {"quality_weights": weights, "budgets": list(request.budgets), "policy_weights": fingerprint_of(policy)}
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
    cases = Cases.of(request.prompts, request.indices, request.batch_size, request.seed, request.num_seeds)
    recorded = _settings(subject, request, settings or {})
    store = Store(request.output, recorded | {"prompts": list(request.prompts), "indices": list(request.indices)})
    with Bar.shown(console) as bar:
        chosen = list(methods(store, cases, bar))
        names = [method.name for method in chosen]
        if request.compare_with not in names:
            raise EvaluationError(f"No row is named {request.compare_with!r}. There are: {', '.join(names)}.")
        kept = range(len(cases.prompts)) if request.keep_images else grid_places(len(request.prompts))
        plan = Plan(subject, chosen, cases, request.metrics, request.embed, store, frozenset(kept))
        advance = bar.task("Measuring", len(chosen) * (len(cases.batches()) + 1))
        warm_ups = measure(plan, advance)
        advance("")
    measured = collect_results(store, chosen, warm_ups, cases)
    frames = store.read("frames")
    pictures = Pictures(store, {method.name: method for method in chosen}, sorted(grid_places(len(request.prompts))), frames)
    columns = {name: metric.column for name, metric in request.metrics.items()} | (VIDEO_COLUMNS if frames else {})
    width = store.features(chosen[0], 0).shape[1]
    warning = too_few_images(len(cases.prompts), width)
    results = Results(
        settings=recorded,
        environment=describe_environment(subject.device),
        columns=all_columns(columns),
        prompts=list(request.prompts),
        methods=measured,
        complexity=read_complexity(store, chosen[0], cases),
        warnings=[warning] if warning else [],
    ).compared_with(request.compare_with)
    write_reports(results, pictures, request.output)
    console.print(terminal_table(results))
    for line in results.warnings:
        console.print(f"Warning: {line}")
    console.print(
        f"Wrote results.json, table.md, figures, the grid and the page {request.output / 'index.html'}.", soft_wrap=True
    )
    return results


def default_quality_weights(policy: AdaPolicy, count: int = 3) -> list[float]:
    """`count` values of λ, log-spaced over the policy's range; one where the range is a single value."""
    low, high = policy.quality_weight_range
    if low == high:
        return [low]
    return [low * (high / low) ** (place / (count - 1)) for place in range(count)]


def grid_places(num_prompts: int) -> frozenset[int]:
    """The prompts that the grid shows, spread evenly."""
    return frozenset(place * num_prompts // GRID_PROMPTS for place in range(GRID_PROMPTS))


def _with_policy(
    backbone: Backbone,
    policy: AdaPolicy,
    weights: Sequence[float],
    subject: Subject,
    request: Request,
    store: Store,
    cases: Cases,
    bar: Bar,
) -> list[Method]:
    """Every method of the default matrix."""
    steps = backbone.num_inference_steps
    decisions = _decisions(policy, weights, subject, store, cases, bar)
    favourite = matrix.most_used_kind(list(decisions.values())) or policy.kinds[0]
    methods = [
        full_method(steps),
        *matrix.fewer_steps(steps),
        *matrix.blockdance(len(backbone.cost().blocks), steps, favourite.boundary),
        *_static(backbone, policy, request, store, bar),
        *matrix.random_schedules(policy, decisions, steps, request.seed),
        *matrix.ada(policy, weights, request.budgets, steps),
    ]
    if request.search_prompts:
        some = slice(0, request.batch_size)
        seeds = Cases.of(request.search_prompts, request.search_indices, 1, request.seed).seeds[some]
        methods += calibrated_methods(subject, request.search_prompts[some], seeds)
        methods += peer_methods(subject, request.search_prompts[some], seeds) if request.peers else []
    return [*methods, *request.extra_methods]


def _decisions(
    policy: AdaPolicy, weights: Sequence[float], subject: Subject, store: Store, cases: Cases, bar: Bar
) -> dict[float, ReuseSchedule]:
    """What the policy decides for every case at every λ."""
    known = store.read("decisions")
    if known is None:
        survey = Survey(policy, weights)
        advance = bar.task("What the policy decides", len(cases.batches()))
        for _ in survey.run(subject, cases):
            advance("")
        known = [schedule.actions.tolist() for schedule in survey.decisions().values()]
        store.write("decisions", known)
    return {weight: ReuseSchedule(torch.tensor(rows), policy.kinds) for weight, rows in zip(weights, known, strict=True)}


def _static(backbone: Backbone, policy: AdaPolicy, request: Request, store: Store, bar: Bar) -> list[Method]:
    """The best static schedules, searched on prompts that are not evaluated."""
    if not request.search_prompts:
        return []
    steps, cost = backbone.num_inference_steps, backbone.cost()
    kinds = tuple(dict.fromkeys((*policy.kinds, *default_kinds(len(cost.blocks)))))
    generator = torch.Generator().manual_seed(request.seed)
    offer = sample_schedules(kinds, policy.decided_steps(steps), steps, request.search_schedules, cost, generator)
    errors = store.read("static-search")
    if errors is None:
        denoiser = Denoiser(backbone, offering_policy(backbone, kinds, policy), request.seed)
        advance = bar.task("Searching static schedules", len(request.search_prompts))
        found = run_schedules(
            denoiser, request.search_prompts, request.search_indices, offer.actions, {}, advance=lambda done: advance("")
        )
        errors = found["latent_distance"].tolist()
        store.write("static-search", errors)
    searched_on = f"{len(request.search_prompts)} other prompts"
    return static_methods(offer, torch.tensor(errors), STATIC_LEVELS, searched_on)


def _settings(subject: Subject, request: Request, others: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded, and what stored measurements must agree with."""
    sources = request.sources or {"base_model": subject.model}
    return {
        **{name: public_name(source) for name, source in sources.items()},
        **request.settings,
        **others,
        "base_weights": fingerprint_of(subject.pipeline.transformer),
        "num_prompts": len(request.prompts),
        "num_inference_steps": subject.num_inference_steps,
        "arguments": dict(subject.arguments),
        "scheduler": type(subject.pipeline.scheduler).__name__,
        "dtype": str(subject.pipeline.transformer.dtype).removeprefix("torch."),
        "batch_size": request.batch_size,
        "seed": request.seed,
        "num_seeds": request.num_seeds,
        "search_prompts": list(request.search_prompts),
        "search_schedules": request.search_schedules,
    }
