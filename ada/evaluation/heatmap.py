"""The schedule heat map: an image per row, a denoising step per column, what it did there as a colour."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ada.evaluation.methods import ADA, ADA_BUDGET, RANDOM, STATIC
from ada.evaluation.results import COMPUTE_SAVED, MethodResult, Results

COLOURS = ("#253545", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
SHOWN = (ADA, ADA_BUDGET, STATIC, RANDOM)
MOST_SHOWN = 8


def with_schedules(results: Results) -> list[MethodResult]:
    """The methods whose schedules are worth a look: those that may differ by image, and the best static ones."""
    found = [method for family in SHOWN for method in results.measured if method.family == family and method.actions]
    return found[:MOST_SHOWN]


def draw_schedules(results: Results, methods: Sequence[MethodResult]) -> Figure:
    """Draws the schedules of the first sampler seed; images that computed most are on top.

    Args:
        results: what was measured.
        methods: those to draw, each with its actions.
    """
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(3.2 * columns, 1.4 + 2.6 * rows), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    most = max(max(map(max, method.actions or [])) for method in methods)
    for panel, method in zip(panels, methods, strict=False):
        actions = np.array((method.actions or [])[: len(results.prompts)])
        order = np.lexsort((*actions.T[::-1], method.per_prompt[COMPUTE_SAVED]))
        panel.imshow(
            actions[order], aspect="auto", interpolation="nearest", cmap=ListedColormap(COLOURS[: most + 1]), vmin=-0.5, vmax=most + 0.5
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
    handles = [Patch(color=COLOURS[action], label=title) for action, title in enumerate(_legend(methods, most))]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)
    return figure


def kinds_of(method: MethodResult) -> dict[int, str]:
    """What the actions of a method mean, read from its note."""
    return {int(action): text.strip() for action, text in re.findall(r"(\d+): (after block \d+, order \d[^;.)]*)", method.note)}


def _legend(methods: Sequence[MethodResult], most: int) -> list[str]:
    """Names of the actions where all methods agree on them, else their numbers."""
    titles = ["compute"]
    for action in range(1, most + 1):
        meanings = {kinds_of(method)[action] for method in methods if action in kinds_of(method)}
        titles.append(f"reuse {meanings.pop()}" if len(meanings) == 1 else f"reuse, kind {action} of the method")
    return titles
