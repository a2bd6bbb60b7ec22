"""Heat maps of measured feature changes, like BlockDance's figure 2."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from blockdance.schedule import COMPUTE, ReuseSchedule
from blockdance.similarity import FeatureChange


def change_figure(change: FeatureChange, schedule: ReuseSchedule | None = None) -> Figure:
    """Cosine similarity and relative change of every block's output against the step before, means over images.

    Args:
        change: what was measured.
        schedule: a schedule for one image whose skipped blocks are outlined.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", sharey=True)
    panels = (
        ("cosine similarity of outputs", change.cosine, "viridis"),
        ("relative L1 change of outputs", change.output_change, "magma"),
        ("relative L1 change of what a block adds", change.block_change, "magma"),
    )
    for axis, (title, values, colours) in zip(axes, panels, strict=True):
        image = axis.imshow(values.mean(0).T.numpy(), aspect="auto", origin="lower", cmap=colours, interpolation="nearest")
        figure.colorbar(image, ax=axis)
        axis.set(title=title, xlabel="denoising step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if schedule is not None:
            _mark(axis, schedule.actions[0], schedule)
    axes[0].set_ylabel("block")
    return figure


def _mark(axis: Axes, actions: Tensor, schedule: ReuseSchedule) -> None:
    """Dots on the blocks that the schedule skips."""
    skipped = [
        (step, block)
        for step, action in enumerate(actions.tolist())
        if action != COMPUTE
        for block in schedule.kinds[action - 1].skipped_blocks
    ]
    if skipped:
        steps, blocks = zip(*skipped, strict=True)
        axis.scatter(steps, blocks, s=8, color="white", edgecolors="black", linewidths=0.4)
