"""The whole evaluation: choose the methods, measure and time every one of them, write the reports."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ada.data import load_prompts
from ada.evaluation import measure
from ada.evaluation import methods as ways
from ada.evaluation.measure import PUBLISHED, Column, Embedding, Metric, Plan, Results, Store
from ada.evaluation.measure.metrics import VIDEO_COLUMNS
from ada.evaluation.measure.store import key_of
from ada.evaluation.methods import Cases, Method, NotApplicableError
from ada.evaluation.report import write_reports
from ada.evaluation.report.table import terminal_table
from ada.evaluation.request import GATES, EvaluationOptions, Request, Settings, ladder_of
from ada.noise import EVALUATION, SEARCH
from ada.policy import AdaPolicy
from ada.processes import num_processes
from ada.processor import fast_linear
from ada.rollouts import EMBEDDED, FrozenPipeline
from ada.rollouts.fingerprints import networks_digest, parts_digest, qualified_name
from ada.schedules import Ladder

GRID_PROMPTS = 8
QUICK_SEARCH_PROMPTS = 2
LOG_WIDTH = 180


class EvaluationError(ValueError):
    """An evaluation that was asked for and makes no sense."""


def run_options(options: EvaluationOptions) -> Results:
    """Loads everything that the options name, and evaluates.

    Raises:
        FileNotFoundError: a folder that is not there.
        EvaluationError, BlockDanceError: a policy or settings that do not fit the model.
        ValueError: prompts without the column.
    """
    device = str(torch.accelerator.current_accelerator() or "cpu") if options.device == "auto" else options.device
    policy = AdaPolicy.from_pretrained(options.policy)
    prompts, others = load_prompts(options.prompts, options.split, options.column, options.limit), {"prompt": (), "index": ()}
    if options.search_prompts:
        few = QUICK_SEARCH_PROMPTS if len(prompts) < PUBLISHED else options.batch_size
        others = load_prompts(options.search_prompts, options.search_split, options.search_column, options.search_limit or few)
    frozen = FrozenPipeline(options.base_model, options.num_inference_steps, options.arguments, dtype=options.dtype).to(device)
    metrics = measure.default_metrics(options.scorer, device, options.perceptual)
    for name, reward in (options.rewards or {}).items():
        metrics[name] = Metric(reward.to(device), Column(name.replace("_", " ").capitalize()))
    known = GATES if options.base_model == EMBEDDED else {}
    rivals, ladder = known if options.rivals is None else options.rivals, ladder_of(options)
    request = Request(
        **{known.name: getattr(options, known.name) for known in fields(Settings)},
        prompts=list(prompts["prompt"]), indices=list(prompts["index"]),
        metrics=metrics, embed=Embedding(options.scorer),
        search_prompts=list(others["prompt"]), search_indices=list(others["index"]),
        ladder=Ladder.load(ladder) if ladder else None,
        rivals={name: AdaPolicy.from_pretrained(source) for name, source in rivals.items()},
        sources={name: getattr(options, name) for name in ("policy", "base_model", "scorer", "prompts")}
        | ({"perceptual": options.perceptual} if options.perceptual else {}),
        settings={"split": options.split},
    )  # fmt: skip
    return evaluate(frozen, policy, request)


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
        EvaluationError: a number of steps of which the policy decides none, or an unknown row to compare with.
    """
    policy.check(frozen.transformer)
    steps = frozen.num_inference_steps
    if steps < 3 or policy.decision_steps(steps)[0] >= steps - 1:
        raise EvaluationError(f"With {steps} steps this policy decides none: it computes the first ones. Take more steps.")
    low, high = policy.config["quality_weight_range"]
    weights = request.quality_weights or ([low] if low == high else [low, (low * high) ** 0.5, high])
    store, recorded = open_store(frozen, request, ways.full_method(steps))
    recorded |= {
        "quality_weights": weights, "budgets": list(request.budgets), "mean_budgets": list(request.mean_budgets),
        "batch_budgets": list(request.batch_budgets),
        "policy_weights": policy.digest(), "policy_digest": ways.policy_digest(policy),
        "rivals": {name: ways.policy_digest(rival) for name, rival in request.rivals.items()},
    }  # fmt: skip
    with fast_linear(frozen.device):  # rows are calibrated
        methods = _with_policy(frozen, policy.to(frozen.device).eval(), weights, request, store)
    return _evaluate(frozen, methods, request, store, recorded, console)


def evaluate_methods(
    frozen: FrozenPipeline, methods: Sequence[Method], request: Request, console: Console | None = None
) -> Results:
    """Measures the given methods, the reference first, on any pipeline, images or videos; `evaluate` without a policy."""
    return _evaluate(frozen, methods, request, *open_store(frozen, request, methods[0]), console)


def _evaluate(
    frozen: FrozenPipeline, methods: Sequence[Method], request: Request, store: Store, recorded: dict[str, Any],
    console: Console | None,
) -> Results:  # fmt: skip
    console, names = console or _default_console(), [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(
            f"Several rows are named {', '.join(map(repr, twice))}: budgets are told apart by whole percents, so give others, and other "
            "names to rivals and further methods."
        )
    if request.compare_with not in names:
        raise EvaluationError(f"No row is named {request.compare_with!r}. There are: {', '.join(names)}.")
    remarks, cases, methods = request.remarks(methods), request.cases, [each for each in methods if request.wants(each)]
    # the prompts that the grid shows, spread evenly
    shown = frozenset(place * len(request.prompts) // GRID_PROMPTS for place in range(GRID_PROMPTS))
    kept = frozenset(range(len(cases.prompts))) if request.keep_images else shown
    processes = num_processes(frozen.device, request.processes)
    plan = Plan(frozen, methods, cases, request.measured, request.embed, store, kept, request.most_images, processes)
    reasons = measure.measure_methods(plan, console)
    if reason := reasons[request.compare_with]:
        raise EvaluationError(f"The row {request.compare_with!r} that all are compared with does not apply: {reason}")
    timed = [method for method in methods if (request.times(method) or method is methods[0]) and reasons[method.name] is None]
    timings = measure.time_methods(plan, timed, request.timing(), console)
    found = measure.collect_results(store, methods, reasons, timings, cases, request.visible_damage)
    results = _results(plan, request, recorded, found, remarks)
    frames, named = store.read("frames"), {method.name: method for method in methods}
    write_reports(results, lambda name, place: store.image(named[name], place, frames), sorted(shown), request.output)
    console.print(terminal_table(results))
    for line in results.warnings:
        console.print(f"Note: {line}")
    console.print(
        f"Wrote results.json, tables, figures, the grid and the page {request.output / 'index.html'}.", soft_wrap=True
    )
    return results


def _results(
    plan: Plan, request: Request, recorded: dict[str, Any], measured: list[measure.MethodResult], remarks: list[str]
) -> Results:
    """What `results.json` holds."""
    shown = {name: metric.column for name, metric in request.measured.items()}
    shown |= VIDEO_COLUMNS if plan.store.read("frames") else {}
    few = measure.too_few_images(
        len(plan.cases.prompts), plan.store.features(plan.methods[0], plan.cases.batches()[0]).shape[1]
    )
    return Results(
        settings=recorded,
        environment=measure.describe_environment(plan.frozen.device),
        columns=measure.all_columns(shown),
        prompts=[str(prompt) for prompt in request.prompts],
        methods=measured,
        complexity=measure.read_complexity(plan.store, plan.methods[0], plan.cases, measured),
        warnings=[*remarks, *([few] if few else [])],
    ).compared_with(request.compare_with)


def _with_policy(
    frozen: FrozenPipeline, policy: AdaPolicy, weights: Sequence[float], request: Request, store: Store
) -> list[Method]:
    """Every method of the default matrix."""
    steps, num_blocks = frozen.num_inference_steps, frozen.num_blocks
    boundary = max(kind.boundary for kind in policy.kinds)
    ours = ways.ada_methods(policy, weights, request.budgets, request.mean_budgets, request.batch_budgets, steps)
    controls = [
        ways.control_methods(
            row, policy, partial(actions_of, store, row), request.seed, request.cases, main=place == len(weights) // 2
        )
        for place, row in enumerate(ours[: len(weights)])
    ]
    rows = [
        ways.full_method(steps),
        *ways.fewer_steps(steps),
        *ways.blockdance(num_blocks, steps, boundary),
        *(ways.ladder_methods(request.ladder, steps, num_blocks) if request.ladder is not None else []),
        *ours,
        *(control for kind in zip(*controls, strict=True) for control in kind),
    ]
    for name, rival in request.rivals.items():
        rows += ways.rival_methods(name, rival.to(frozen.device).eval(), frozen.transformer, request.mean_budgets, steps)
    rows += ways.deep_cache(num_blocks, steps)
    others = Cases.of(request.search_prompts, request.search_indices, 1, request.seed, use=SEARCH)
    if others.prompts:
        rows += ways.calibrated_methods(frozen, others.prompts, others.seeds)
        rows += ways.threshold_methods(frozen, others.prompts, others.seeds, boundary)
    rows += ways.peer_methods(frozen, others.prompts, others.seeds) if request.peers else []
    return [*rows, *request.extra_methods]


def actions_of(store: Store, method: Method, batch: slice) -> Tensor:
    """The actions that a method took, of a batch that was measured."""
    measured = store.batch(method, batch)
    if measured is None:
        raise NotApplicableError(f"{method.name}, whose rate it takes, does not apply.")
    return torch.tensor(measured["actions"])


def open_store(frozen: FrozenPipeline, request: Request, reference: Method) -> tuple[Store, dict[str, Any]]:
    """Where measurements are kept, that another policy, further methods and more noise seeds may use as well; and what `results.json`
    says of the run."""
    drawn = frozen.fingerprint()
    shared = {
        **request.settings,
        "dtype": str(frozen.transformer.dtype).removeprefix("torch."),
        "batch_size": request.batch_size,
        "seed": request.seed,
        "search_prompts": list(request.search_prompts),
    }
    rewards = {name: metric.reward for name, metric in request.measured.items()}
    kept = {
        "prompts": list(request.prompts), "indices": list(request.indices), "search_indices": list(request.search_indices),
        "noise": [EVALUATION, SEARCH], "reference": key_of(reference),
        "metrics": {name: reward.describe() for name, reward in rewards.items()}, "embed": qualified_name(request.embed),
        "networks": networks_digest([rewards, request.embed]),
        "pipeline": drawn, "parts": parts_digest(frozen.pipeline), "environment": measure.describe_environment(frozen.device),
    }  # fmt: skip
    sources = request.sources or {"base_model": frozen.model}
    recorded = {
        # a Hub id as it is, a folder by its last part, for paths are private
        **{name: Path(source).resolve().name if Path(source).exists() else source for name, source in sources.items()},
        "base_weights": drawn["weights"],
        "scheduler": type(frozen.pipeline.scheduler).__name__,
        **{name: drawn[name] for name in ("num_inference_steps", "arguments")},
        **shared,
        "num_prompts": len(request.prompts),
        "seeds": request.seeds,
        "visible_damage": request.visible_damage,
        "ladder": None if request.ladder is None else request.ladder.to_dict(),
    }
    return Store(request.output, shared | kept), recorded


def _default_console() -> Console:
    """The terminal; where there is none, as in a log file, lines are long enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)
