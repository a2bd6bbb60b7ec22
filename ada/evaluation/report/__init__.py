"""What a reader gets: a table in the terminal; and in files tables, figures, an image grid, a page, TensorBoard's events."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ada.evaluation.measure import Results
from ada.evaluation.measure.metrics import COMPUTE_SAVED
from ada.evaluation.report.figures import draw_figures
from ada.evaluation.report.findings import comparable
from ada.evaluation.report.page import ImageOf, save_page
from ada.evaluation.report.table import markdown_table, short_table, terminal_table
from ada.grid import Row, save_grid

__all__ = ["terminal_table", "write_reports"]


def write_reports(results: Results, image_of: ImageOf, shown: Sequence[int], output: Path) -> None:
    """Writes `results.json`, `table.md`, `summary.md` (a method of each family), the figures, the grid, `index.html` and TensorBoard's.

    Args:
        results: what was measured.
        image_of: gives what a method that was measured made; of the reference at any place, of the others at those that are shown.
        shown: places of the prompts whose images are shown.
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
        saved = method.per_prompt[COMPUTE_SAVED]
        captions = [f"{saved[place]:.0%} saved" if rows else "reference" for place in shown]
        rows.append(Row(method.name, [image_of(method.name, place) for place in shown], captions))
    grid = "grid.webp" if rows[0].images[0].ndim == 4 else "grid.png"  # videos move
    save_grid(rows, [results.prompts[place] for place in shown], output / grid)
    save_page(results, image_of, shown, output / "index.html")
    log_results(results, figures, image_of, shown, output / "tensorboard")


def log_results(results: Results, figures: Mapping[str, Figure], image_of: ImageOf, shown: Sequence[int], folder: Path) -> None:
    """Writes the table, every estimate, the figures and the shown images of every method, in place of earlier events in the folder."""
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
            images = torch.stack([image_of(method.name, place) for place in shown])
            writer.add_images(f"images/{method.name}", images.flatten(0, -4))
