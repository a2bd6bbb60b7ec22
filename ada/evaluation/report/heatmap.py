"""The schedule heat map: an image per row, a denoising step per column, what it did there as a colour."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ada.evaluation.measure import MethodResult, Results
from ada.evaluation.measure.results import COMPUTE_SAVED
from ada.evaluation.methods import ADA, ADA_BUDGET, STATIC
from ada.evaluation.methods.base import RANDOM
from ada.evaluation.report.figures import action_colour, new_figure

SHOWN = (ADA, ADA_BUDGET, STATIC, RANDOM)
MOST_SHOWN = 8


def with_schedules(results: Results) -> list[MethodResult]:
    """The methods whose schedules are worth a look: those that may differ by image, and the best static ones."""
    found = [method for family in SHOWN for method in results.measured if method.family == family and method.actions]
    return found[:MOST_SHOWN]


def draw_schedules(results: Results, methods: Sequence[MethodResult]) -> Figure:
    """Draws the schedules of the first noise seed; images that computed most are on top.

    Args:
        results: what was measured.
        methods: those to draw, each with its actions.
    """
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(3.2 * columns, 1.4 + 2.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = colours_of(methods)
    for panel, method in zip(panels, methods, strict=False):
        actions = np.array((method.actions or [])[: len(results.prompts)])
        order = np.lexsort((*actions.T[::-1], method.per_prompt[COMPUTE_SAVED]))
        palette = ListedColormap([colours[name] for name in method.action_names])
        panel.imshow(
            actions[order], aspect="auto", interpolation="nearest", cmap=palette, vmin=-0.5, vmax=len(method.action_names) - 0.5
        )  # fmt: skip
        saved = method.estimates[COMPUTE_SAVED].value
        panel.set_title(f"{method.name}\n{saved:.1%} of the compute saved", fontsize=9)
        panel.set_xlabel("denoising step", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=7)
        panel.set_yticks([])
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel("images", fontsize=8)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)
    return figure


def colours_of(methods: Sequence[MethodResult]) -> dict[str, str]:
    """A colour for everything that the methods do at a step, compute first: the same in every panel."""
    names = dict.fromkeys(name for method in methods for name in method.action_names)
    return {name: action_colour(place) for place, name in enumerate(names)}
