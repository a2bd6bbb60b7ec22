"""The Pareto plot: cost across, quality and distance to the reference upwards, a line per family of methods."""

from itertools import groupby, product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ada.evaluation.methods import ADA, FEWER_STEPS, FULL_COMPUTE
from ada.evaluation.results import MethodResult, Results
from ada.evaluation.statistics import Estimate

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers repeat the distinction
FIXED_STYLES = {FULL_COMPUTE: ("#000000", "*"), FEWER_STEPS: ("#7f7f7f", "s"), ADA: ("#D55E00", "o")}
STYLES = list(zip(("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#F0E442"), "v^<>DP", strict=True))


def save_pareto(results: Results, path: Path, across: str, upwards: tuple[str, ...]) -> None:
    """Draws one panel per quantity.

    Args:
        results: what was measured.
        path: the PNG file to write.
        across: the column on the horizontal axis.
        upwards: the columns on the vertical axes.
    """
    figure = Figure(figsize=(7.2 * len(upwards), 5.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(upwards), squeeze=False)[0]
    styles = _styles(results)
    for panel, name in zip(panels, upwards, strict=True):
        _draw(panel, results, across, name, styles)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    # labels are placed around the points as they lie after layout
    figure.draw_without_rendering()
    for panel, name in zip(panels, upwards, strict=True):
        _label(panel, results, across, name, styles)
    figure.savefig(path)


def _styles(results: Results) -> dict[str, tuple[str, str]]:
    families = list(dict.fromkeys(method.family for method in results.methods))
    others = [family for family in families if family not in FIXED_STYLES]
    chosen = {family: STYLES[place % len(STYLES)] for place, family in enumerate(others)}
    return chosen | {family: FIXED_STYLES[family] for family in families if family in FIXED_STYLES}


def _draw(panel: Axes, results: Results, across: str, upwards: str, styles: dict[str, tuple[str, str]]) -> None:
    columns = results.columns
    for family, group in groupby(results.methods, key=lambda method: method.family):
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
            linewidth=2.4 if emphasis else 1.2,
            elinewidth=0.8,
            alpha=0.95,
            zorder=4 if emphasis else 3,
        )
    panel.set_xlabel(_axis_label(results, across))
    panel.set_ylabel(_axis_label(results, upwards))
    panel.grid(color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if not columns[upwards].higher_is_better:
        panel.invert_yaxis()
    if columns[across].higher_is_better:
        panel.invert_xaxis()


def _axis_label(results: Results, name: str) -> str:
    column = results.columns[name]
    unit = f" ({column.unit.strip()})" if column.unit.strip() else ""
    return f"{column.heading}{unit}, {'higher' if column.higher_is_better else 'lower'} is better"


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
    """Writes each point's label at the nearest place around it where it hides neither point nor label.

    A label that finds no free place is left out: the table has it.
    """
    pixels = panel.figure.dpi / 72
    points = [(_point(method, results, across)[0], _point(method, results, upwards)[0]) for method in results.methods]
    places = panel.transData.transform(points)
    taken = [Bbox.from_bounds(x - 5 * pixels, y - 5 * pixels, 10 * pixels, 10 * pixels) for x, y in places]
    # Ada first, so that its labels get the best places
    for method, point, (x, y) in sorted(
        zip(results.methods, points, places, strict=True), key=lambda entry: entry[0].family not in FIXED_STYLES
    ):
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
        )
        size = text.get_window_extent()
        for offset in _offsets(size.width / pixels, size.height / pixels):
            box = Bbox.from_bounds(
                x + offset[0] * pixels - size.width / 2, y + offset[1] * pixels - size.height / 2, size.width, size.height
            )
            if not any(box.overlaps(other) for other in taken) and panel.bbox.expanded(1.04, 1.04).containsx(box.x1):
                text.set_position(offset)
                taken.append(box)
                break
        else:
            text.remove()


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Places around a point, in points: right and left, above and below, the corners; then farther."""
    near = [(1, 0), (-1, 0), (0, 1), (0, -1), *product((1, -1), (1, -1))]
    return [(x * (width / 2 + gap), y * (height / 2 + gap)) for gap in (7, 11, 16) for x, y in near]
