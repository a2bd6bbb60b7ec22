"""The table: in the terminal and in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ada.evaluation.measure import Column, Match, MethodResult, Results
from ada.evaluation.measure.metrics import BOUNDED, SAME_COMPUTE, SAME_LATENCY, STATIC_MIXTURE, VISIBLE
from ada.evaluation.report.findings import comparable, headline_of
from ada.statistics import Estimate

CAPTION = (
    "{prompts} prompts, {seeds} noise seed(s) each; ± is half the width of the 95 % interval over prompts. Bounded damage is "
    "d / (d + {tau:g}) of the perceptual distance d to the image of full compute, visibly changed are images with d > {tau:g}. Raw mean "
    "distances have no interval: none holds on so heavy a tail. Latency and speed-up are medians over rounds in random order: {rounds}. "
    "Δ is paired, to {compared_with}. ↑ higher is better, ↓ lower is better."
)
BESIDE = {
    STATIC_MIXTURE: "Beside the best mixture of static ways that saves as much on average (what a mean budget gives without looking at "
    "the image)",
    SAME_COMPUTE: "Beside the mixture of plain pipelines with fewer steps that saves as much on average",
    SAME_LATENCY: "Beside the mixture of plain pipelines with fewer steps that takes as long",
}


def terminal_table(results: Results) -> Table:
    """The table for a rich console, the verdict below it; a rule parts the families."""
    look = " (a quick look)" if results.is_quick_look else ""
    title, headline = f"{len(results.prompts)} held-out prompts{look}", headline_of(results)
    verdict = Text(f"{headline.title}. {headline.sentence}\n\n" if headline else "", "bold not dim not italic")
    caption = verdict + Text(_caption(results))
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Method", no_wrap=True)
    columns = _shown(results, in_terminal=True)
    for column in columns.values():
        table.add_column(column.heading_with_arrow, justify="right")
    for _, family in groupby(results.methods, key=lambda method: method.family):
        for method in (rows := list(family)):
            cells = ["not applicable"] if method.reason else _cells(columns, method)
            table.add_row(method.name, *cells, end_section=method is rows[-1])
    return table


def markdown_table(results: Results) -> str:
    """The same table in Markdown."""
    lines, headline = _rows(_shown(results), results.measured), headline_of(results)
    first = [f"**{headline.title}.** {headline.sentence}", ""] if headline else []
    warnings = [f"Note: {warning}" for warning in results.warnings]
    left_out = [f"- {method.name}: {method.reason}" for method in results.methods if method.reason]
    notes = ["Not applicable here:", "", *left_out, ""] if left_out else []
    return "\n".join([*first, *lines, "", _caption(results), "", *warnings, "", *notes, *_beside_tables(results)])


def short_table(results: Results) -> str:
    """A method of each family and the columns of the terminal, in Markdown."""
    lines = _rows(_shown(results, in_terminal=True), comparable(results.measured, lambda method: method.family))
    return "\n".join([*lines, "", _caption(results), ""])


def _rows(columns: Mapping[str, Column], methods: Sequence[MethodResult]) -> list[str]:
    return [
        "| Method | " + " | ".join(column.heading_with_arrow for column in columns.values()) + " |",
        "| :--- |" + " ---: |" * len(columns),
        *(f"| {method.name} | " + " | ".join(_cells(columns, method)) + " |" for method in methods),
    ]


def _beside_tables(results: Results) -> list[str]:
    """For every kind of match, each method beside what it is matched with."""
    lines = []
    for kind, title in BESIDE.items():
        rows = [(method, method.matches[kind]) for method in results.measured if kind in method.matches]
        if rows:
            lines += [f"{title}; paired, ± half the 95 % interval.", "", *_match_rows(results, rows), ""]
    return lines


def _match_rows(results: Results, rows: Sequence[tuple[MethodResult, Match]]) -> Iterator[str]:
    known = [name for name in (BOUNDED, VISIBLE, *results.columns) if name in rows[0][1].differences]
    columns = {name: results.columns[name] for name in known if results.columns[name].in_table}
    heads = [f"Δ {column.heading_with_arrow.lower()}" for column in columns.values()]
    yield "| Method | beside | " + " | ".join([*heads, "distance ratio ↓", "nearer to the reference, % ↑"]) + " |"
    yield "| :--- | :--- |" + " ---: |" * (len(heads) + 2)
    for method, match in rows:
        cells = [format_estimate(match.differences[name], column) for name, column in columns.items()]
        cells += ["–" if match.ratio is None else format_interval(match.ratio, Column("", decimals=2))]
        cells += [format_interval(match.better, Column("", decimals=0, scale=100.0))]
        yield f"| {method.name} | {match.name} | " + " | ".join(cells) + " |"


def format_estimate(estimate: Estimate, column: Column) -> str:
    """An estimate and half the width of its interval, such as `23.4 ±1.2`; without the latter where there is no interval."""
    value = _rounded(estimate.value * column.scale, column.decimals)
    if estimate.half_width is not None:
        value += f" ±{estimate.half_width * column.scale:.{column.decimals}f}"
    return value


def format_interval(estimate: Estimate, column: Column) -> str:
    """An estimate and the ends of its interval, for quantities whose intervals are lopsided: `0.81 (0.70–0.93)`."""
    value = _rounded(estimate.value * column.scale, column.decimals)
    if estimate.low is None or estimate.high is None:
        return value
    ends = [_rounded(end * column.scale, column.decimals) for end in (estimate.low, estimate.high)]
    return f"{value} ({'–'.join(ends)})"


def _rounded(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _shown(results: Results, *, in_terminal: bool = False) -> dict[str, Column]:
    """The columns of the table, or of the terminal's narrower one, that any method has a figure for."""
    known = {name for method in results.measured for name in method.estimates}
    shown = {name: column for name, column in results.columns.items() if column.in_table and name in known}
    return {name: column for name, column in shown.items() if column.in_terminal or not in_terminal}


def _cells(columns: Mapping[str, Column], method: MethodResult) -> Iterator[str]:
    for name, column in columns.items():
        estimate = method.estimates.get(name)
        yield "–" if estimate is None else format_estimate(estimate, column)


def _caption(results: Results) -> str:
    timed = results.methods[0].seconds_per_image
    rounds = ", ".join(f"{len(values)} at batch {size}" for size, values in timed.items()) or "none ran"
    seeds, tau, compared_with = (results.settings[name] for name in ("seeds", "visible_damage", "compared_with"))
    return CAPTION.format(prompts=len(results.prompts), seeds=seeds, tau=tau, rounds=rounds, compared_with=compared_with)
