"""Damage over compute and over latency, in the style of all figures: a colour and a marker per group, for every eye and for print."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ada.evaluation.measure import Estimate, MethodResult, Results
from ada.evaluation.measure.results import COMPUTE_SAVED
from ada.evaluation.methods import ADA, ADA_BUDGET, FEWER_STEPS
from ada.evaluation.report.findings import MIXTURE, static_curve

GROUP_COLOURS = {"plain": "#6B6B6B", "blockdance": "#56A0E0", "static": "#004D40", "ada": "#D55E00", "peers": "#CC79A7"}
"""After Okabe and Ito, and of different lightness: they differ to colour-blind readers, and mostly on grey paper."""
GROUP_MARKERS = {"plain": "s", "blockdance": "^", "static": "D", "ada": "o", "peers": "X"}
GROUP_TITLES = {
    "plain": "Plain pipeline",
    "blockdance": "BlockDance, Block Caching",
    "static": "Searched and random schedules",
    "ada": "Ada",
    "peers": "Other caches",
}
ACTION_COLOURS = ("#253545", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")
"""Compute, then the kinds of reuse."""


def new_figure(width: float, height: float) -> Figure:
    """A figure that lays itself out and needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def bare(panel: Axes) -> Axes:
    """A panel with a faint grid, and without the lines above and right."""
    panel.grid(color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    return panel


def action_colour(action: int) -> str:
    """Colour of an action; beyond the palette they repeat, but for that of compute."""
    return ACTION_COLOURS[0] if action == 0 else ACTION_COLOURS[1 + (action - 1) % (len(ACTION_COLOURS) - 1)]


BANDED = (ADA, ADA_BUDGET, FEWER_STEPS)
LABEL_SAVING = 0.3
"""A family is named at its point that saves nearest to this."""


def draw_curves(results: Results, across: str, upwards: Sequence[str]) -> Figure:
    """Draws one panel per quantity.

    Args:
        results: what was measured.
        across: the column on the horizontal axis; methods without it are left out.
        upwards: the columns on the vertical axes.
    """
    figure = new_figure(7.4 * len(upwards), 6.4)
    panels = figure.subplots(1, len(upwards), squeeze=False)[0]
    for panel, name in zip(panels, upwards, strict=True):
        _draw(panel, results, across, name)
    shown = [group for group in GROUP_TITLES if any(method.group == group for method in results.measured)]
    handles = [
        Line2D([], [], color=GROUP_COLOURS[group], marker=GROUP_MARKERS[group], label=GROUP_TITLES[group]) for group in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    # labels are placed around the points as they lie after layout
    figure.draw_without_rendering()
    for panel, name in zip(panels, upwards, strict=True):
        _label(panel, results, across, name)
    return figure


def _with_both(results: Results, across: str, upwards: str) -> list[MethodResult]:
    return [method for method in results.measured if across in method.estimates and upwards in method.estimates]


def _families(results: Results, across: str, upwards: str) -> Iterator[tuple[str, list[MethodResult]]]:
    """Families with their methods, cheapest first; Ada last, so that it lies on top."""
    methods = sorted(_with_both(results, across, upwards), key=lambda method: (method.group == "ada", method.family))
    for family, group in groupby(methods, key=lambda method: method.family):
        yield family, sorted(group, key=lambda method: method.estimates[across].value)


def _draw(panel: Axes, results: Results, across: str, upwards: str) -> None:
    columns = results.columns
    scales = columns[across].scale, columns[upwards].scale
    for family, methods in _families(results, across, upwards):
        group = methods[0].group
        estimates = [method.estimates[upwards] for method in methods]
        x = [method.estimates[across].value * scales[0] for method in methods]
        y = [estimate.value * scales[1] for estimate in estimates]
        ours = group == "ada"
        panel.plot(
            x, y, color=GROUP_COLOURS[group], marker=GROUP_MARKERS[group], label=family, markersize=7 if ours else 4.5,
            linewidth=2.4 if ours else 1.8 if family in BANDED else 0.6, alpha=1 if family in BANDED or ours else 0.65,
            zorder=5 if ours else 4 if family in BANDED else 3,
        )  # fmt: skip
        if family in BANDED:
            _band(panel, x, estimates, scales[1], GROUP_COLOURS[group])
    if across == COMPUTE_SAVED:
        _draw_mixture(panel, results, upwards)
    bare(panel).margins(0.06)
    panel.set_xlabel(_axis_label(results, across))
    panel.set_ylabel(_axis_label(results, upwards))
    _limit(panel, results, across, upwards)


def _draw_mixture(panel: Axes, results: Results, upwards: str) -> None:
    """What Ada has to beat: the best mixture of static ways."""
    points = [(point.saved, point.estimates[upwards]) for point in static_curve(results) if upwards in point.estimates]
    if not points:
        return
    scale, percent = results.columns[upwards].scale, results.columns[COMPUTE_SAVED].scale
    x = [saved * percent for saved, _ in points]
    estimates, colour = [estimate for _, estimate in points], GROUP_COLOURS["static"]
    y = [estimate.value * scale for estimate in estimates]
    panel.plot(x, y, color=colour, linewidth=2.4, linestyle=(0, (4, 1.5)), label=MIXTURE, zorder=4)
    _band(panel, x, estimates, scale, colour)


def _band(panel: Axes, x: Sequence[float], estimates: Sequence[Estimate], scale: float, colour: str) -> None:
    low = [(estimate.value if estimate.low is None else estimate.low) * scale for estimate in estimates]
    high = [(estimate.value if estimate.high is None else estimate.high) * scale for estimate in estimates]
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _limit(panel: Axes, results: Results, across: str, upwards: str) -> None:
    """Shows what is worth a look: up to half again the damage of the worst plain pipeline; what does more leaves the panel."""
    plain = [method for method in _with_both(results, across, upwards) if method.family == FEWER_STEPS]
    column = results.columns[upwards]
    if plain and not column.higher_is_better:
        most = max(method.estimates[upwards].value for method in plain) * column.scale * 1.5
        least = min(method.estimates[upwards].value for method in _with_both(results, across, upwards)) * column.scale
        if most > least:
            panel.set_ylim(min(least, 0) - 0.02 * most, most)
            inside = [
                method
                for method in _with_both(results, across, upwards)
                if method.estimates[upwards].value * column.scale <= most
            ]
            shown = [method.estimates[across].value * results.columns[across].scale for method in inside]
            margin = 0.05 * (max(shown) - min(shown))
            panel.set_xlim(min(shown) - margin, max(shown) + margin)


def _axis_label(results: Results, name: str) -> str:
    column = results.columns[name]
    return f"{column.heading_with_unit} ({'higher' if column.higher_is_better else 'lower'} is better)"


def _label(panel: Axes, results: Results, across: str, upwards: str) -> None:
    """Names each family near one of its points, ours first, so that they get the best places."""
    named = []
    for family, methods in _families(results, across, upwards):
        method = min(methods, key=lambda method: abs(method.estimates[COMPUTE_SAVED].value - LABEL_SAVING))
        named.append((_priority(method), family, method))
    scales = results.columns[across].scale, results.columns[upwards].scale
    points = {
        method.name: (method.estimates[across].value * scales[0], method.estimates[upwards].value * scales[1])
        for method in _with_both(results, across, upwards)
    }
    radius = 3 * _pixels(panel)
    taken = [
        Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
        for x, y in panel.transData.transform(list(points.values()))
    ]
    for _, family, method in sorted(named, key=lambda each: each[:2]):
        text = panel.annotate(
            family,
            points[method.name],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=GROUP_COLOURS[method.group],
            ha="center",
            va="center",
            fontweight="bold" if method.group == "ada" else "normal",
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        _place(panel, text, taken)


def _priority(method: MethodResult) -> int:
    return ("ada", "plain", "static", "peers", "blockdance").index(method.group)


def _place(panel: Axes, text: Annotation, taken: list[Bbox]) -> None:
    """Moves a label to the nearest place around its point where it hides neither point nor label, and adds it to `taken`.

    A label that finds no free place is left out: the table has it.
    """
    pixels, centred = _pixels(panel), text.get_window_extent()
    for offset in _offsets(centred.width / pixels, centred.height / pixels):
        box = centred.translated(offset[0] * pixels, offset[1] * pixels)
        inside = panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0 and box.y1 <= panel.bbox.y1
        if inside and not any(box.overlaps(other) for other in taken):
            text.set_position(offset)
            taken.append(box)
            return
    text.remove()


def _pixels(panel: Axes) -> float:
    """Pixels per point."""
    return panel.figure.dpi / 72


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Places around a point, in points. Better is down and right, so curves rise: first the corners that they spare."""
    near = [(-1, 1), (1, -1), (-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)]
    corner = 0.75  # of a gap
    return [
        (x * (width / 2 + gap * (corner if y else 1)), y * (height / 2 + gap * (corner if x else 1)))
        for gap in (6, 10, 15)
        for x, y in near
    ]
