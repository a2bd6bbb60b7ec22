"""Every file that an evaluation writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ada.evaluation.measure import MethodResult, Results, Store
from ada.evaluation.measure.metrics import BOUNDED, VISIBLE
from ada.evaluation.measure.results import COMPUTE_SAVED, SECONDS, SECONDS_ALONE
from ada.evaluation.methods import FULL_COMPUTE, Method
from ada.evaluation.report.figures import draw_curves
from ada.evaluation.report.grid import Row, save_grid
from ada.evaluation.report.heatmap import draw_schedules, with_schedules
from ada.evaluation.report.page import save_page
from ada.evaluation.report.table import markdown_table, save_markdown, short_table

COMPARABLE = 0.3
"""The grid shows, of each group, the method whose saving is nearest to this; the summary, of each family."""


@dataclass(frozen=True)
class Pictures:
    """The images that were kept.

    Args:
        store: where they are.
        methods: by name.
        places: of the prompts that every method kept.
        frames: of videos; None for images.
    """

    store: Store
    methods: Mapping[str, Method]
    places: Sequence[int]
    frames: int | None = None

    def of(self, name: str) -> list[Tensor]:
        """One image `(3, height, width)`, or video `(frames, 3, height, width)`, per place."""
        return [self.store.image(self.methods[name], place, self.frames) for place in self.places]

    def references(self, name: str, num_prompts: int) -> dict[int, Tensor]:
        """The reference of every prompt, by place; all of them are kept."""
        return {place: self.store.image(self.methods[name], place, self.frames) for place in range(num_prompts)}


def write_reports(results: Results, pictures: Pictures, output: Path) -> None:
    """Writes `results.json`, `table.md`, `summary.md` (a method of each family), the figures, the grid, `index.html` and TensorBoard's.

    Args:
        results: what was measured.
        pictures: what was kept.
        output: folder to write to; made if it is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    results.save(output / "results.json")
    save_markdown(results, output / "table.md")
    (output / "summary.md").write_text(
        short_table(results, comparable(results.measured, lambda method: method.family)), encoding="utf-8"
    )
    figures = draw_figures(results)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png")
    grid = output / ("grid.webp" if pictures.frames else "grid.png")
    shown = comparable(results.measured, lambda method: method.group)
    rows = [_row(method, pictures, number) for number, method in enumerate(shown)]
    save_grid(rows, [results.prompts[place] for place in pictures.places], grid)
    images = {method.name: pictures.of(method.name) for method in results.measured}
    thumbnails = pictures.references(results.measured[0].name, len(results.prompts))
    save_page(results, images, pictures.places, thumbnails, output / "index.html")
    log_results(results, figures, images, output / "tensorboard")


def draw_figures(results: Results) -> dict[str, Figure]:
    """Damage over the compute saved and over the latency, and the schedules where methods have any, by file name."""
    latency = SECONDS if any(SECONDS in method.estimates for method in results.measured) else SECONDS_ALONE
    figures = {
        name: draw_curves(results, across, (BOUNDED, VISIBLE))
        for name, across in (("damage-compute", COMPUTE_SAVED), ("damage-latency", latency))
    }
    methods = with_schedules(results)
    return figures | ({"schedules": draw_schedules(results, methods)} if methods else {})


def comparable(methods: Sequence[MethodResult], by: Callable[[MethodResult], str]) -> list[MethodResult]:
    """The reference and, of each family or group, the method that saves nearest to 30 %: all of them are too many to look at."""
    reference, *others = sorted(methods, key=lambda method: method.family != FULL_COMPUTE)
    return [
        reference,
        *(
            min(
                (method for method in others if by(method) == kind),
                key=lambda method: abs(method.estimates[COMPUTE_SAVED].value - COMPARABLE),
            )
            for kind in dict.fromkeys(by(method) for method in others)
        ),
    ]


def _row(method: MethodResult, pictures: Pictures, number: int) -> Row:
    saved = method.per_prompt[COMPUTE_SAVED]
    captions = [f"{saved[place]:.0%} saved" if number else "reference" for place in pictures.places]
    return Row(method.name, pictures.of(method.name), captions)


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
