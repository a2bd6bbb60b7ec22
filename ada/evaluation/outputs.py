"""Every file that an evaluation writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from ada.evaluation.grid import Row, save_grid
from ada.evaluation.heatmap import draw_schedules, with_schedules
from ada.evaluation.methods import Method
from ada.evaluation.metrics import DISTANCE, QUALITY
from ada.evaluation.page import save_page
from ada.evaluation.pareto import draw_pareto
from ada.evaluation.report import save_markdown, short_table
from ada.evaluation.results import COMPUTE_SAVED, MACS, SECONDS, MethodResult, Results, difference_of
from ada.evaluation.store import Store
from ada.evaluation.tensorboard import log_results

COMPARABLE = 0.3
"""The grid shows, of each family, the method whose saving is nearest to this."""


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
    (output / "summary.md").write_text(short_table(results, comparable(results.measured)), encoding="utf-8")
    figures = draw_figures(results)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png")
    grid = output / ("grid.webp" if pictures.frames else "grid.png")
    rows = [_row(method, pictures, number) for number, method in enumerate(comparable(results.measured))]
    save_grid(rows, [results.prompts[place] for place in pictures.places], grid)
    images = {method.name: pictures.of(method.name) for method in results.measured}
    thumbnails = pictures.references(results.measured[0].name, len(results.prompts))
    save_page(results, images, pictures.places, thumbnails, output / "index.html")
    log_results(results, figures, images, output / "tensorboard")


def draw_figures(results: Results) -> dict[str, Figure]:
    """Pareto plots over latency and over MACs, and the schedules where methods have any, by file name."""
    upwards = (difference_of(QUALITY), DISTANCE)
    figures = {"pareto": draw_pareto(results, SECONDS, upwards), "pareto-compute": draw_pareto(results, MACS, upwards)}
    methods = with_schedules(results)
    return figures | ({"schedules": draw_schedules(results, methods)} if methods else {})


def comparable(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """The reference and, of each family, the method that saves nearest to 30 %: a grid of all is too tall to look at."""
    families = dict.fromkeys(method.family for method in methods)
    return [
        min(
            (method for method in methods if method.family == family),
            key=lambda method: abs(method.estimates[COMPUTE_SAVED].value - COMPARABLE),
        )
        for family in families
    ]


def _row(method: MethodResult, pictures: Pictures, number: int) -> Row:
    saved = method.per_prompt[COMPUTE_SAVED]
    captions = [f"{saved[place]:.0%} saved" if number else "reference" for place in pictures.places]
    return Row(method.name, pictures.of(method.name), captions)
