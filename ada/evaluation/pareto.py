"""The Pareto plot: cost across, quality and distance to the reference upwards, a line per family of methods."""

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ada.evaluation.methods import ADA, ADA_BUDGET, FEWER_STEPS, FULL_COMPUTE, PAPER_PEERS, PEERS, RANDOM, STATIC
from ada.evaluation.results import MethodResult, Results
from ada.evaluation.statistics import Estimate

# Colours that colour-blind readers can tell apart (after Okabe and Ito); markers repeat the distinction
FIXED_STYLES = {
    FULL_COMPUTE: ("#000000", "*"),
    FEWER_STEPS: ("#7f7f7f", "s"),
    STATIC: ("#117733", "D"),
    RANDOM: ("#CC79A7", "X"),
    ADA: ("#D55E00", "o"),
    ADA_BUDGET: ("#F0A35E", "o"),
    PEERS: ("#6A3D9A", "p"),
    PAPER_PEERS: ("#B15928", "h"),
}
STYLES = list(zip(("#56B4E9", "#0072B2", "#7FCDBB", "#00785A", "#E6B800", "#8C564B"), "v^<>dP", strict=True))
POINTS_ONLY = (PEERS, PAPER_PEERS)
"""Families whose members are different methods, not one method at several settings: no line joins them."""
LABELLED_FIRST = (ADA, FEWER_STEPS, STATIC)


def draw_pareto(results: Results, across: str, upwards: Sequence[str]) -> Figure:
    """Draws one panel per quantity.

    Args:
        results: what was measured.
        across: the column on the horizontal axis.
        upwards: the columns on the vertical axes, which are logarithmic away from zero: distances span orders of magnitude.
    """
    figure = Figure(figsize=(7.4 * len(upwards), 6.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(upwards), squeeze=False)[0]
    styles = styles_of(results)
    for panel, name in zip(panels, upwards, strict=True):
        _draw(panel, results, across, name, styles)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    # labels are placed around the points as they lie after layout
    figure.draw_without_rendering()
    for panel, name in zip(panels, upwards, strict=True):
        _label(panel, results, across, name, styles)
    return figure


def styles_of(results: Results) -> dict[str, tuple[str, str]]:
    """Colour and marker of every family."""
    families = list(dict.fromkeys(method.family for method in results.measured))
    others = [family for family in families if family not in FIXED_STYLES]
    chosen = {family: STYLES[place % len(STYLES)] for place, family in enumerate(others)}
    return chosen | {family: FIXED_STYLES[family] for family in families if family in FIXED_STYLES}


def _draw(panel: Axes, results: Results, across: str, upwards: str, styles: dict[str, tuple[str, str]]) -> None:
    columns = results.columns
    for family, group in groupby(results.measured, key=lambda method: method.family):
        points = sorted((_point(method, results, across), _point(method, results, upwards)) for method in group)
        colour, marker = styles[family]
        emphasis = family == ADA
        panel.errorbar(
            [x[0] for x, _ in points],
            [y[0] for _, y in points],
            xerr=[[x[side] for x, _ in points] for side in (1, 2)],
            yerr=[[y[side] for _, y in points] for side in (1, 2)],
            label=family,
            color=colour,
            marker=marker,
            markersize=12 if family == FULL_COMPUTE else 7 if emphasis else 6,
            linestyle="none" if family in POINTS_ONLY else "-",
            linewidth=2.4 if emphasis else 1.2,
            elinewidth=0.8,
            ecolor=to_rgba(colour, 0.4),
            zorder=4 if emphasis else 3,
        )
    panel.set_yscale("symlog", linthresh=_knee(results, upwards))
    panel.set_xlabel(_axis_label(results, across))
    panel.set_ylabel(_axis_label(results, upwards))
    panel.grid(color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(0.08)
    panel.spines[["top", "right"]].set_visible(False)
    if not columns[upwards].higher_is_better:
        panel.invert_yaxis()
    if columns[across].higher_is_better:
        panel.invert_xaxis()


def _knee(results: Results, name: str) -> float:
    """Where the axis turns from linear to logarithmic: near zero for distances, far out for differences of either sign."""
    values = [_point(method, results, name)[0] for method in results.measured]
    sizes = sorted(abs(value) for value in values if value)
    signed = min(values) < 0 < max(values)
    return sizes[len(sizes) * (3 if signed else 1) // (4 if signed else 10)] if sizes else 1.0


def _label_order(method: MethodResult) -> int:
    return LABELLED_FIRST.index(method.family) if method.family in LABELLED_FIRST else len(LABELLED_FIRST)


def _axis_label(results: Results, name: str) -> str:
    column = results.columns[name]
    return f"{column.heading_with_unit} ({'higher' if column.higher_is_better else 'lower'} is better)"


def _point(method: MethodResult, results: Results, name: str) -> tuple[float, float, float]:
    """Value, and lengths of the error bar below and above."""
    scale, estimate = results.columns[name].scale, method.estimates[name]
    low, high = _ends(estimate)
    return estimate.value * scale, (estimate.value - low) * scale, (high - estimate.value) * scale


def _ends(estimate: Estimate) -> tuple[float, float]:
    low = estimate.value if estimate.low is None else min(estimate.low, estimate.value)
    high = estimate.value if estimate.high is None else max(estimate.high, estimate.value)
    return low, high


def _label(panel: Axes, results: Results, across: str, upwards: str, styles: dict[str, tuple[str, str]]) -> None:
    """Writes each point's label near it, those that matter most first, so that they get the best places."""
    methods = sorted(results.measured, key=_label_order)
    points = [(_point(method, results, across)[0], _point(method, results, upwards)[0]) for method in methods]
    radius = 5 * _pixels(panel)
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in panel.transData.transform(points)]
    for method, point in zip(methods, points, strict=True):
        text = panel.annotate(
            method.label,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=styles[method.family][0],
            ha="center",
            va="center",
            fontweight="bold" if method.family == ADA else "normal",
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        _place(panel, text, taken)


def _place(panel: Axes, text: Annotation, taken: list[Bbox]) -> None:
    """Moves a label to the nearest place around its point where it hides neither point nor label, and adds it to `taken`.

    A label that finds no free place is left out: the table has it.
    """
    pixels, centred = _pixels(panel), text.get_window_extent()
    for offset in _offsets(centred.width / pixels, centred.height / pixels):
        box = centred.translated(offset[0] * pixels, offset[1] * pixels)
        inside = panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1
        if inside and not any(box.overlaps(other) for other in taken):
            text.set_position(offset)
            taken.append(box)
            return
    text.remove()


def _pixels(panel: Axes) -> float:
    """Pixels per point."""
    return panel.figure.dpi / 72


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Places around a point, in points. Better is up and left, so curves rise to the right: first the corners they spare."""
    near = [(-1, 1), (1, -1), (-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)]
    corner = 0.75  # of a gap
    return [
        (x * (width / 2 + gap * (corner if y else 1)), y * (height / 2 + gap * (corner if x else 1)))
        for gap in (6, 10, 15)
        for x, y in near
    ]
