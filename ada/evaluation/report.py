"""The table: in the terminal and in Markdown."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ada.evaluation.results import Column, MethodResult, Results
from ada.evaluation.statistics import Estimate

CAPTION = (
    "Means over {prompts} prompts, latency and speed-up medians over {batches} batches of {batch_size}; "
    "± is half the width of the 95 % bootstrap interval. ↑ higher is better, ↓ lower is better."
)


def terminal_table(results: Results) -> Table:
    """The table for a rich console; a rule parts the families."""
    table = Table(
        title="Held-out prompts",
        caption=_caption(results),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("Method")
    for column in _shown(results).values():
        table.add_column(column.heading_with_arrow, justify="right")
    for _, family in groupby(results.methods, key=lambda method: method.family):
        rows = list(family)
        for method in rows:
            table.add_row(method.name, *_cells(results, method), end_section=method is rows[-1])
    return table


def markdown_table(results: Results) -> str:
    """The same table in Markdown."""
    columns = _shown(results)
    lines = [
        "| Method | " + " | ".join(column.heading_with_arrow for column in columns.values()) + " |",
        "| :--- |" + " ---: |" * len(columns),
        *(f"| {method.name} | " + " | ".join(_cells(results, method)) + " |" for method in results.methods),
    ]
    return "\n".join([*lines, "", _caption(results), ""])


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


def _cells(results: Results, method: MethodResult) -> Iterator[str]:
    return (format_estimate(method.estimates[name], column) for name, column in _shown(results).items())


def _caption(results: Results) -> str:
    batches = len(results.methods[0].seconds_per_image)
    return CAPTION.format(prompts=len(results.prompts), batches=batches, batch_size=results.settings["batch_size"])
