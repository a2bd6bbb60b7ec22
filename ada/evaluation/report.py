"""The table: in the terminal and in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ada.evaluation.results import Column, MethodResult, Results
from ada.evaluation.statistics import Estimate

CAPTION = (
    "Means over {prompts} prompts, latency and speed-up medians over {batches} batches of {batch_size}; ± is half the width of the "
    "95 % bootstrap interval; Δ is paired, to {compared_with}. ↑ higher is better, ↓ lower is better."
)


def terminal_table(results: Results) -> Table:
    """The table for a rich console; a rule parts the families."""
    table = Table(
        title=f"{len(results.prompts)} held-out prompts",
        caption=_caption(results),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("Method")
    columns = {name: column for name, column in _shown(results).items() if column.in_terminal}
    for column in columns.values():
        table.add_column(column.heading_with_arrow, justify="right")
    for _, family in groupby(results.methods, key=lambda method: method.family):
        rows = list(family)
        for method in rows:
            cells = ["not applicable"] if method.reason else _cells(columns, method)
            table.add_row(method.name, *cells, end_section=method is rows[-1])
    return table


def markdown_table(results: Results) -> str:
    """The same table in Markdown."""
    lines = _rows(_shown(results), results.measured)
    left_out = [f"- {method.name}: {method.reason}" for method in results.methods if method.reason]
    notes = ["Not applicable here:", "", *left_out, ""] if left_out else []
    warnings = [f"Warning: {warning}" for warning in results.warnings]
    return "\n".join([*lines, "", _caption(results), "", *warnings, "", *notes, *_latency_table(results)])


def short_table(results: Results, methods: Sequence[MethodResult]) -> str:
    """A few methods and the columns of the terminal, in Markdown."""
    columns = {name: column for name, column in _shown(results).items() if column.in_terminal}
    lines = _rows(columns, methods)
    return "\n".join([*lines, "", _caption(results), ""])


def _rows(columns: Mapping[str, Column], methods: Sequence[MethodResult]) -> list[str]:
    return [
        "| Method | " + " | ".join(column.heading_with_arrow for column in columns.values()) + " |",
        "| :--- |" + " ---: |" * len(columns),
        *(f"| {method.name} | " + " | ".join(_cells(columns, method)) + " |" for method in methods),
    ]


def _latency_table(results: Results) -> list[str]:
    """Every method beside the plain pipeline with the number of steps that takes nearest as long."""
    rows = [(method, method.same_latency) for method in results.measured if method.same_latency is not None]
    if not rows:
        return []
    metrics = [name for name in rows[0][1].differences if results.columns.get(name) and results.columns[name].in_table]
    heads = [f"Δ {results.columns[name].heading.lower()}" for name in metrics]
    lines = [
        "At the same latency: paired differences to the plain pipeline whose number of steps takes nearest as long.",
        "",
        "| Method | as fast as | " + " | ".join(heads) + " |",
        "| :--- | :--- |" + " ---: |" * len(heads),
    ]
    for method, match in rows:
        cells = [format_estimate(match.differences[name], results.columns[name]) for name in metrics]
        lines.append(f"| {method.name} | {match.name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def save_markdown(results: Results, path: Path) -> None:
    """Writes the Markdown table."""
    path.write_text(markdown_table(results), encoding="utf-8")


def format_estimate(estimate: Estimate, column: Column) -> str:
    """An estimate and half the width of its interval, such as `23.4 ±1.2`; without the latter where there is no interval."""
    value = _rounded(estimate.value * column.scale, column.decimals)
    if estimate.half_width is not None:
        value += f" ±{estimate.half_width * column.scale:.{column.decimals}f}"
    return value


def _rounded(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _shown(results: Results) -> dict[str, Column]:
    return {name: column for name, column in results.columns.items() if column.in_table}


def _cells(columns: Mapping[str, Column], method: MethodResult) -> Iterator[str]:
    for name, column in columns.items():
        estimate = method.estimates.get(name)
        yield "–" if estimate is None else format_estimate(estimate, column)


def _caption(results: Results) -> str:
    batches = len(results.methods[0].seconds_per_image)
    return CAPTION.format(
        prompts=len(results.prompts),
        batches=batches,
        batch_size=results.settings["batch_size"],
        compared_with=results.settings["compared_with"],
    )
