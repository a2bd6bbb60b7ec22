"""The pictures of `docs/how.md`, from the ladder and the policy that are in the repository.

python docs/figures.py        writes those that have changed; building the site does so too
"""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ada.schedules import Ladder
from blockdance import BlockDanceConfig, ReuseSchedule, blockdance_n

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
COMPUTED, KINDS = "#e9ecf2", ("#e8973a", "#2f6fde", "#3a9e6f")
BLOCKS, STEPS = 28, 20


def blocks_figure() -> Figure:
    """Which blocks run at which step under the paper's BlockDance-2 of a model with 28 blocks."""
    config = BlockDanceConfig(interval=2)
    schedule = blockdance_n(STEPS, config.interval, config.kind(BLOCKS), config.reuse_range)
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    skipped = [[block in _skipped(schedule, step) for step in range(STEPS)] for block in range(BLOCKS)]
    _cells(axis, skipped, [COMPUTED, KINDS[0]])
    axis.axhline(config.kind(BLOCKS).boundary + 0.5, color="black", linewidth=1, linestyle="--")
    axis.set(
        xlabel="denoising step",
        ylabel="block",
        title="BlockDance-2: orange blocks are skipped; a reuse step starts below the dashed line",
    )
    return figure


def _skipped(schedule: ReuseSchedule, step: int) -> tuple[int, ...]:
    action = int(schedule.actions[0, step])
    return schedule.kinds[action - 1].skipped_blocks if action else ()


def ladder_figure(ladder: Ladder, reuse_costs: list[float]) -> Figure:
    """The rungs, what each step of them does, what they save, and when it is decided."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    _cells(axis, ladder.actions.tolist(), [COMPUTED, *KINDS[: len(ladder.kinds)]])
    for step in ladder.decision_steps:
        axis.axvline(step + 0.5, color="black", linewidth=1, linestyle=":")
    saved = ladder.saved(reuse_costs)
    axis.set(xlabel="denoising step", ylabel="rung", yticks=range(len(ladder)))
    labels = axis.secondary_yaxis("right")
    labels.set_yticks(range(len(ladder)), [f"{float(share):.0%}" for share in saved])
    labels.set_ylabel("compute saved")
    names = ", ".join(f"{colour}: {kind}" for colour, kind in zip(("orange", "blue", "green"), ladder.kinds, strict=False))
    axis.set_title(f"{names}; dotted: a decision", fontsize=9)
    return figure


def tree_figure(ladder: Ladder) -> Figure:
    """The ladder as the tree that decisions walk: rungs that act alike until a decision are one node."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    columns = [ladder.nodes(stage).tolist() for stage in range(len(ladder.decision_steps))] + [list(range(len(ladder)))]
    heights = [{node: _middle(column, node) for node in column} for column in columns]
    for left in range(len(columns) - 1):
        for node, following in {*zip(columns[left], columns[left + 1], strict=True)}:
            axis.plot([left, left + 1], [heights[left][node], heights[left + 1][following]], color="#8a94a6", linewidth=1)
    for place, column in enumerate(heights):
        axis.scatter([place] * len(column), column.values(), s=22, color=KINDS[1], zorder=3)
    names = [f"after\nstep {step}" for step in ladder.decision_steps] + ["end"]
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="rungs that are still open", title="Each decision takes one of the lines that leave the node it stands at")
    axis.invert_yaxis()
    return figure


def _middle(column: list[int], node: int) -> float:
    rungs = [rung for rung, other in enumerate(column) if other == node]
    return sum(rungs) / len(rungs)


def _cells(axis: Axes, values: list[list[Any]], colours: list[str]) -> None:
    axis.imshow(values, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, aspect="auto", interpolation="none")
    axis.set_xticks([place + 0.5 for place in range(len(values[0]) - 1)], minor=True)
    axis.set_yticks([place + 0.5 for place in range(len(values) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.set_xticks(range(0, len(values[0]), 2))


def write() -> list[Path]:
    """Writes the pictures that are not as they should be; returns them."""
    ladder = Ladder.load(ROOT / "configs" / "ladders" / "emoji.json")
    costs = json.loads((ROOT / "checkpoints" / "ada-emoji" / "config.json").read_text(encoding="utf-8"))["reuse_costs"]
    written = []
    with mpl.rc_context({"svg.hashsalt": "blockdance", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figures = {"blocks": blocks_figure(), "ladder": ladder_figure(ladder, costs), "tree": tree_figure(ladder)}
        for name, figure in figures.items():
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)
            file = FOLDER / f"{name}.svg"
            if not file.is_file() or file.read_text(encoding="utf-8") != drawn.getvalue():
                file.write_text(drawn.getvalue(), encoding="utf-8")
                written.append(file)
    return written


def on_pre_build(**_: Any) -> None:
    """mkdocs hook: the pictures are those of the ladder and the policy that are there."""
    write()


if __name__ == "__main__":
    for file in write():
        print(f"written: {file.relative_to(ROOT)}")
