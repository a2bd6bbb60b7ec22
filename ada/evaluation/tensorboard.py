"""The same figures for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ada.evaluation.report import markdown_table
from ada.evaluation.results import Results


def log_results(results: Results, figures: Mapping[str, Figure], images: Mapping[str, Sequence[Tensor]], folder: Path) -> None:
    """Writes the table, every estimate, the figures and the kept images of every method.

    Args:
        results: what was measured.
        figures: by name.
        images: by method, as kept: `(3, height, width)` or `(frames, 3, height, width)` each, in [0, 1].
        folder: of the event file; earlier events in it are replaced.
    """
    if folder.is_dir():
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("evaluation/table", markdown_table(results))
        for name, figure in figures.items():
            writer.add_figure(f"evaluation/{name}", figure, close=False)
        for method in results.measured:
            for column, estimate in method.estimates.items():
                writer.add_scalar(f"{column}/{method.name}", estimate.value)
            # of a video, its frames
            stacked = torch.stack(list(images[method.name])).flatten(0, -4)
            writer.add_images(f"images/{method.name}", stacked)
