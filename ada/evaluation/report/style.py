"""One style for all figures: a colour and a marker per group of methods, that survive colour-blindness and print."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
