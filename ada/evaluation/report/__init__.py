"""What a reader gets: a table in the terminal; and in files tables, figures, an image grid, a page, TensorBoard's events."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ada.evaluation.measure import Results
from ada.evaluation.measure.metrics import COMPUTE_SAVED
from ada.evaluation.report.figures import draw_figures
from ada.evaluation.report.findings import comparable
from ada.evaluation.report.page import save_page
from ada.evaluation.report.table import markdown_table, short_table, terminal_table
from ada.grid import Row, save_grid

__all__ = ["terminal_table", "write_reports"]

Images = Mapping[str, Mapping[int, Tensor]]
"""By method, images `(3, height, width)` or videos `(frames, 3, height, width)` in [0, 1] by the prompt's place: of all the same."""


def write_reports(results: Results, images: Images, reference_of: Callable[[int], Tensor], output: Path) -> None:
    """Writes `results.json`, `table.md`, `summary.md` (a method of each family), the figures, the grid, `index.html` and TensorBoard's.

    Args:
        results: what was measured.
        images: what the methods that were measured made.
        reference_of: gives the reference of the prompt at a place.
        output: folder to write to; made if it is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    results.save(output / "results.json")
    (output / "table.md").write_text(markdown_table(results), encoding="utf-8")
    (output / "summary.md").write_text(short_table(results), encoding="utf-8")
    figures = draw_figures(results)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png")
    rows: list[Row] = []
    for method in comparable(results.measured, lambda method: method.group):
        made, saved = images[method.name], method.per_prompt[COMPUTE_SAVED]
        captions = [f"{saved[place]:.0%} saved" if rows else "reference" for place in made]
        rows.append(Row(method.name, list(made.values()), captions))
    grid = "grid.webp" if rows[0].images[0].ndim == 4 else "grid.png"  # videos move
    save_grid(rows, [results.prompts[place] for place in images[rows[0].title]], output / grid)
    save_page(results, images, reference_of, output / "index.html")
    log_results(results, figures, images, output / "tensorboard")


def log_results(results: Results, figures: Mapping[str, Figure], images: Images, folder: Path) -> None:
    """Writes the table, every estimate, the figures and the kept images of every method, in place of earlier events in the folder."""
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
            writer.add_images(f"images/{method.name}", torch.stack(list(images[method.name].values())).flatten(0, -4))
