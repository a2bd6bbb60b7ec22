"""The whole evaluation: survey the policy, measure every method, write the reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ada.backbone import Backbone
from ada.evaluation.environment import describe_environment
from ada.evaluation.grid import save_grid
from ada.evaluation.methods import Method, default_methods
from ada.evaluation.metrics import DISTANCE, QUALITY, Metric
from ada.evaluation.pareto import draw_pareto
from ada.evaluation.report import save_markdown, terminal_table
from ada.evaluation.results import COMPUTE_SAVED, SECONDS, Results, all_columns, difference_of
from ada.evaluation.run import Cases, Record, Survey, measure
from ada.evaluation.sources import public_name
from ada.policy import AdaPolicy
from ada.rollout import prompt_seed

GRID_PROMPTS = 8
LOG_WIDTH = 160


class EvaluationError(ValueError):
    """An evaluation that was asked for and makes no sense."""


def evaluate(
    *,
    backbone: Backbone,
    policy: AdaPolicy,
    prompts: Sequence[str],
    indices: Sequence[int],
    metrics: Mapping[str, Metric],
    output: Path,
    quality_weights: Sequence[float] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    extra_methods: Sequence[Method] = (),
    sources: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Results:
    """Measures full compute, fewer steps, BlockDance-N in both orders, random schedules and Ada through the stock pipeline.

    Prints a table and writes `results.json`, `table.md`, `pareto.png` (over latency), `pareto-compute.png` and `grid.png`.

    Args:
        backbone: the pipeline and its settings, on the device to measure on.
        policy: the policy.
        prompts: held-out prompts.
        indices: each prompt's index in its split, which its noise depends on.
        metrics: by name, with `quality` first and `perceptual_distance` among them; see `default_metrics`.
        output: folder to write to; made if it is not there.
        quality_weights: λ at which the policy runs; by default three, log-spaced over the range that it was trained on.
        batch_size: images per call of the pipeline.
        seed: seed of the noise and of the random schedules.
        extra_methods: further methods to compare.
        sources: folders and Hub ids to name in `results.json`, such as the policy's; of a folder, only its last part is kept.
        settings: what else to record there.
        console: where to print.

    Returns:
        What `results.json` holds.

    Raises:
        IncompatiblePolicyError: the policy was trained on another architecture.
        EvaluationError: no prompts, or a number of steps of which the policy decides none.
    """
    _check(backbone, policy, prompts)
    console = console or default_console()
    weights = list(quality_weights or default_quality_weights(policy))
    cases = Cases(prompts, [prompt_seed(seed, index) for index in indices], batch_size)
    records = _run(backbone, policy, weights, cases, metrics, seed, extra_methods, console)
    results = Results(
        settings={
            **{name: public_name(source) for name, source in (sources or {"base_model": backbone.model}).items()},
            **(settings or {}),
            "num_prompts": len(prompts),
            "num_inference_steps": backbone.num_inference_steps,
            "guidance_scale": backbone.guidance_scale,
            "max_sequence_length": backbone.max_sequence_length,
            "batch_size": batch_size,
            "seed": seed,
            "quality_weights": weights,
        },
        environment=describe_environment(backbone.device),
        columns=all_columns({name: metric.column for name, metric in metrics.items()}),
        prompts=list(prompts),
        methods=[record.result(records[0]) for record in records],
    )
    write_reports(results, records, output)
    console.print(terminal_table(results))
    console.print(f"Wrote results.json, table.md, pareto.png, pareto-compute.png and grid.png to {output}.")
    return results


def default_console() -> Console:
    """The terminal; where there is none, as in a log file, lines are long enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def write_reports(results: Results, records: Sequence[Record], output: Path) -> None:
    """Writes every file; `output` is made if it is not there."""
    output.mkdir(parents=True, exist_ok=True)
    results.save(output / "results.json")
    save_markdown(results, output / "table.md")
    for file, across in (("pareto.png", SECONDS), ("pareto-compute.png", COMPUTE_SAVED)):
        draw_pareto(results, across, (difference_of(QUALITY), DISTANCE)).savefig(output / file)
    save_grid(fastest_of_families(records), results.prompts, output / "grid.png")


def fastest_of_families(records: Sequence[Record]) -> list[Record]:
    """The reference and, of each family of methods, the one that saves most: a grid of all of them is too tall to look at."""
    saved = {record.method.name: float(np.mean(record.per_prompt[COMPUTE_SAVED])) for record in records}
    families = dict.fromkeys(record.method.family for record in records)
    return [
        max((record for record in records if record.method.family == family), key=lambda record: saved[record.method.name])
        for family in families
    ]


def default_quality_weights(policy: AdaPolicy, count: int = 3) -> list[float]:
    """`count` values of λ, log-spaced over the policy's range; one where the range is a single value."""
    low, high = policy.quality_weight_range
    if low == high:
        return [low]
    return [low * (high / low) ** (place / (count - 1)) for place in range(count)]


def _check(backbone: Backbone, policy: AdaPolicy, prompts: Sequence[str]) -> None:
    policy.check(backbone.transformer)
    if not prompts:
        raise EvaluationError("There are no prompts to evaluate on.")
    if not policy.decided_steps(backbone.num_inference_steps):
        raise EvaluationError(
            f"With {backbone.num_inference_steps} steps this policy decides none: it computes the first {policy.prefix:.0%} "
            f"and the last {policy.forced_tail:.0%} of them. Take more steps."
        )


def _run(
    backbone: Backbone,
    policy: AdaPolicy,
    weights: Sequence[float],
    cases: Cases,
    metrics: Mapping[str, Metric],
    seed: int,
    extra_methods: Sequence[Method],
    console: Console,
) -> list[Record]:
    """Surveys what the policy decides, then measures every method, with a bar and an estimate of the time left."""
    survey, batches = Survey(policy, weights), len(cases.batches())
    bar = Progress(
        TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    with bar:
        task = bar.add_task("What the policy decides", total=batches)
        for done in survey.run(backbone, cases):
            bar.update(task, completed=done)
        steps = backbone.num_inference_steps
        methods = [*default_methods(policy, survey.decisions(), backbone.cost(), steps, seed), *extra_methods]
        task = bar.add_task("Measuring", total=len(methods) * (batches + 1))
        started = -1

        def advance(name: str) -> None:
            nonlocal started
            started += 1
            bar.update(task, description=name, completed=started)

        kept = sorted({place * len(cases.prompts) // GRID_PROMPTS for place in range(GRID_PROMPTS)})
        records = measure(backbone, methods, cases, metrics, kept=kept, advance=advance)
        bar.update(task, description="Measured", completed=len(methods) * (batches + 1))
    return records
