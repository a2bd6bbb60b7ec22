"""The figures: damage over compute and over latency, and what each image computed; a colour and a marker per group, for every eye."""

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ada.evaluation.measure import Column, MethodResult, Results
from ada.evaluation.measure.metrics import BOUNDED, COMPUTE_SAVED, SECONDS, SECONDS_ALONE, VISIBLE
from ada.evaluation.methods.base import ADA, ADA_BATCH, ADA_BUDGET, FEWER_STEPS, RANDOM, STATIC
from ada.evaluation.report.findings import COMPARABLE_SAVING, MIXTURE, nearest_to, static_curve
from ada.statistics import Estimate

GROUPS = {
    "plain": ("Plain pipeline", "#6B6B6B", "s"),
    "blockdance": ("BlockDance, Block Caching", "#56A0E0", "^"),
    "static": ("Searched and random schedules", "#004D40", "D"),
    "ada": ("Ada", "#D55E00", "o"),
    "peers": ("Other caches", "#CC79A7", "X"),
}
"""Title, colour and marker. The colours are after Okabe and Ito, and of different lightness: they differ to colour-blind readers, and
mostly on grey paper."""
ACTION_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")
"""Of the kinds of reuse; beyond these they repeat."""
COMPUTE_COLOUR = "#253545"
DOTS_PER_INCH = 150
BANDED = (ADA, ADA_BUDGET, FEWER_STEPS)
NAMED_FIRST = ("ada", "plain", "static", "peers", "blockdance")
SCHEDULES_OF = {ADA: 3, ADA_BATCH: 1, ADA_BUDGET: 1, STATIC: 2, RANDOM: 1}
"""Families, and of how many of each the schedules are shown."""
PANEL_TOP = 1.5
"""How far panels reach, in damages of the worst plain pipeline."""


def draw_figures(results: Results) -> dict[str, Figure]:
    """Damage over the compute saved, over the latency where it was measured, and the schedules where methods have any, by file name."""
    known = {name for method in results.measured for name in method.estimates}
    across = {"damage-compute": COMPUTE_SAVED, "damage-latency": SECONDS if SECONDS in known else SECONDS_ALONE}
    figures = {name: draw_curves(results, column, (BOUNDED, VISIBLE)) for name, column in across.items() if column in known}
    methods = with_schedules(results)
    return figures | ({"schedules": draw_schedules(results, methods)} if methods else {})


def _finish(figure: Figure, handles: Sequence[Line2D | Patch], columns: int) -> None:
    """Puts the legend below and lays the figure out once: what is drawn later lies where it lies."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def draw_curves(results: Results, across: str, upwards: Sequence[str]) -> Figure:
    """Draws a panel per column of `upwards`, over the column `across`; methods without it are left out."""
    figure = Figure(figsize=(7.4 * len(upwards), 6.4), layout="constrained", dpi=DOTS_PER_INCH)
    axes = figure.subplots(1, len(upwards), squeeze=False)[0]
    panels = [Panel(panel, results, across, name) for panel, name in zip(axes, upwards, strict=True)]
    for panel in panels:
        panel.draw()
    shown = {method.group for method in results.measured if across in method.estimates}
    kinds = [kind for group, kind in GROUPS.items() if group in shown]
    _finish(figure, [Line2D([], [], color=colour, marker=marker, label=title) for title, colour, marker in kinds], len(kinds))
    for panel in panels:
        panel.name_families()
    return figure


class Panel:
    """One quantity over another; methods without either are left out."""

    def __init__(self, axes: Axes, results: Results, across: str, upwards: str) -> None:
        self._axes, self._results, self._across, self._upwards = axes, results, across, upwards
        self._columns = results.columns[across], results.columns[upwards]
        self._methods = [method for method in results.measured if {across, upwards} <= method.estimates.keys()]
        self._pixels = axes.figure.dpi / 72  # per point

    def _point(self, method: MethodResult) -> tuple[float, float]:
        across, upwards = self._columns
        return method.estimates[self._across].value * across.scale, method.estimates[self._upwards].value * upwards.scale

    def _families(self) -> Iterator[tuple[str, list[MethodResult]]]:
        """Families with their methods, cheapest first; Ada last, so that it lies on top."""
        methods = sorted(self._methods, key=lambda method: (method.group == "ada", method.family))
        for family, group in groupby(methods, key=lambda method: method.family):
            yield family, sorted(group, key=self._point)

    def draw(self) -> None:
        """Draws the families as lines, and what Ada has to beat."""
        axes = self._axes
        for family, methods in self._families():
            _, colour, marker = GROUPS[methods[0].group]
            ours, banded = methods[0].group == "ada", family in BANDED
            self._line(
                [method.estimates[self._across].value for method in methods], [method.estimates[self._upwards] for method in methods],
                banded=banded, color=colour, marker=marker, label=family, markersize=7 if ours else 4.5,
                alpha=1 if banded or ours else 0.65, linewidth=2.4 if ours else 1.8 if banded else 0.6,
                zorder=5 if ours else 4 if banded else 3,
            )  # fmt: skip
        curve = static_curve(self._results) if self._across == COMPUTE_SAVED else []
        if mixtures := [point for point in curve if self._upwards in point.estimates]:
            self._line(
                [point.saved for point in mixtures], [point.estimates[self._upwards] for point in mixtures], banded=True,
                color=GROUPS["static"][1], linewidth=2.4, linestyle=(0, (4, 1.5)), label=MIXTURE, zorder=4,
            )  # fmt: skip
        axes.grid(color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.06)
        axes.set(xlabel=_axis_label(self._columns[0]), ylabel=_axis_label(self._columns[1]))
        self._limit()

    def _line(self, values: Sequence[float], estimates: Sequence[Estimate], *, banded: bool, **style: Any) -> None:
        across, upwards = (column.scale for column in self._columns)
        x = [value * across for value in values]
        self._axes.plot(x, [each.value * upwards for each in estimates], **style)
        if banded:
            low = [(each.value if each.low is None else each.low) * upwards for each in estimates]
            high = [(each.value if each.high is None else each.high) * upwards for each in estimates]
            self._axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)

    def _limit(self) -> None:
        """Shows what is worth a look; what does more damage leaves the panel."""
        plain = [self._point(method)[1] for method in self._methods if method.family == FEWER_STEPS]
        points = [self._point(method) for method in self._methods]
        if not plain or self._columns[1].higher_is_better:
            return
        most, least = PANEL_TOP * max(plain), min(y for _, y in points)
        if most > least:
            shown = [x for x, y in points if y <= most]
            margin = 0.05 * (max(shown) - min(shown))
            self._axes.set_ylim(min(least, 0) - 0.02 * most, most)
            self._axes.set_xlim(min(shown) - margin, max(shown) + margin)

    def name_families(self) -> None:
        """Names each family at its point that is comparable, ours first, so that they get the best places."""
        places = self._axes.transData.transform([self._point(method) for method in self._methods])
        radius = 3 * self._pixels
        taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in places]
        for family, methods in sorted(self._families(), key=lambda each: (NAMED_FIRST.index(each[1][0].group), each[0])):
            method = nearest_to(COMPARABLE_SAVING, methods)
            text = self._axes.annotate(
                family, self._point(method), xytext=(0, 0), textcoords="offset points", fontsize=8, ha="center", va="center",
                color=GROUPS[method.group][1], fontweight="bold" if method.group == "ada" else "normal", zorder=6,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
            self._place(text, taken)

    def _place(self, text: Annotation, taken: list[Bbox]) -> None:
        """Moves a label to the nearest place around its point where it hides neither point nor label, and adds it to `taken`.

        A label that finds no free place is left out: the table has it.
        """
        centred, bounds = text.get_window_extent(), self._axes.bbox
        for x, y in _offsets(centred.width / self._pixels, centred.height / self._pixels):
            box = centred.translated(x * self._pixels, y * self._pixels)
            inside = bounds.x0 <= box.x0 and box.x1 <= bounds.x1 and bounds.y0 <= box.y0 and box.y1 <= bounds.y1
            if inside and not any(box.overlaps(other) for other in taken):
                text.set_position((x, y))
                taken.append(box)
                return
        text.remove()


def _axis_label(column: Column) -> str:
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}
    return column.heading_with_unit + better[column.higher_is_better]


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Places around a point, in points. Better is down and right, so curves rise: first the corners that they spare."""
    for gap in (6, 10, 15):
        for x, y in ((-1, 1), (1, -1), (-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)):
            near = 0.75 * gap if x and y else gap
            yield x * (width / 2 + near), y * (height / 2 + near)


def with_schedules(results: Results) -> list[MethodResult]:
    """The methods whose schedules are worth a look: of each family that has any, those that save nearest to 30 %."""
    found = list[MethodResult]()
    for family, count in SCHEDULES_OF.items():
        methods = [method for method in results.measured if method.family == family and method.actions]
        found += sorted(methods, key=lambda method: abs(method.saved - COMPARABLE_SAVING))[:count]
    return sorted(found, key=results.measured.index)


def colours_of(methods: Sequence[MethodResult]) -> dict[str, str]:
    """A colour for everything that the methods do at a step, compute first: the same in every panel."""
    names = dict.fromkeys(name for method in methods for name in method.action_names)
    return dict(zip(names, chain([COMPUTE_COLOUR], cycle(ACTION_COLOURS)), strict=False))


def draw_schedules(results: Results, methods: Sequence[MethodResult]) -> Figure:
    """Draws the schedules that methods took at the first noise seed, an image per row, a step per column; those that computed most on
    top.
    """
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(3.2 * columns, 1.4 + 2.6 * rows), layout="constrained", dpi=DOTS_PER_INCH)
    panels, colours = figure.subplots(rows, columns, squeeze=False).flatten(), colours_of(methods)
    for panel, method in zip(panels, methods, strict=False):
        actions, names = np.array((method.actions or [])[: len(results.prompts)]), method.action_names
        order = np.lexsort((*actions.T[::-1], method.per_prompt[COMPUTE_SAVED]))
        # blank is a step that did not run, such as one before an image that is given is noised
        palette = ListedColormap([colours[name] for name in names]).with_extremes(under="white")
        panel.imshow(actions[order], palette, aspect="auto", interpolation="nearest", vmin=-0.5, vmax=len(names) - 0.5)
        panel.set_title(f"{method.name}\n{method.estimates[COMPUTE_SAVED].value:.1%} of the compute saved", fontsize=9)
        panel.set_xlabel("denoising step", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=7)
        panel.set_yticks([])
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("images", fontsize=8)
    _finish(figure, [Patch(color=colour, label=name) for name, colour in colours.items()], min(4, len(colours)))
    return figure
