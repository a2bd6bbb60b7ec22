"""The Pareto plot's labels and the grid's pixels."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from matplotlib.text import Annotation
from PIL import Image

from ada.evaluation.compare import fastest_of_families
from ada.evaluation.grid import save_grid
from ada.evaluation.methods import Method, unchanged
from ada.evaluation.pareto import draw_pareto
from ada.evaluation.results import Column, MethodResult, Results
from ada.evaluation.run import Record
from ada.evaluation.statistics import Estimate

COLUMNS = {"cost": Column("Cost", higher_is_better=False), "distance": Column("Distance", higher_is_better=False)}


def results(points: list[tuple[float, float]]) -> Results:
    """Methods of two families at the given costs and distances."""
    methods = [
        MethodResult(
            name=f"m{place}",
            family=("Ada", "Other")[place % 2],
            label=f"m{place}",
            note="",
            num_inference_steps=4,
            estimates={"cost": Estimate(cost, None, None), "distance": Estimate(distance, distance - 0.1, distance + 0.1)},
            per_prompt={},
            seconds_per_image=[],
            actions=None,
        )
        for place, (cost, distance) in enumerate(points)
    ]
    return Results(settings={}, environment={}, columns=COLUMNS, prompts=[], methods=methods)


def labels(points: list[tuple[float, float]]) -> list[Annotation]:
    figure = draw_pareto(results(points), "cost", ["distance"])
    figure.draw_without_rendering()
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def test_every_label_is_written_where_there_is_room() -> None:
    assert sorted(text.get_text() for text in labels([(1, 1), (2, 2), (3, 3)])) == ["m0", "m1", "m2"]


def test_labels_of_close_points_do_not_overlap() -> None:
    close = [(1 + 0.01 * place, 1 + 0.01 * (place % 3)) for place in range(8)]
    texts = labels([*close, (2, 5)])
    assert len(texts) > 4
    assert not any(one.get_window_extent().overlaps(other.get_window_extent()) for one, other in combinations(texts, 2))


def test_better_is_up_and_left() -> None:
    panel = draw_pareto(results([(1, 1), (2, 2)]), "cost", ["distance"]).axes[0]
    assert not panel.xaxis_inverted()
    assert panel.yaxis_inverted()


def record(name: str, colour: float, saved: float) -> Record:
    method = Method(name=name, family=name, label=name, num_inference_steps=4, accelerate=unchanged, note="")
    stripes = torch.ones(3, 32, 32)
    stripes[..., ::2] = colour
    images = dict.fromkeys((0, 2), stripes)
    return Record(method, per_prompt={"compute_saved": [saved] * 3}, images=images)


def test_grid_has_a_row_per_method_and_a_column_per_prompt(tmp_path: Path) -> None:
    """32 pixels are shown three times as large, every second column in a grey that tells the method, none in between."""
    records = [record("Full compute", 100 / 255, 0.0), record("Half", 180 / 255, 0.5)]
    save_grid(records, ["a prompt that is longer than its picture is wide", "unused", "b"], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    for colour in (100, 180):
        rows, columns = (pixels == colour).all(-1).nonzero()
        assert (np.bincount(columns) >= 96).sum() == 2 * 48
        assert (np.bincount(rows) >= 2 * 48).sum() == 96


def test_the_grid_shows_the_fastest_of_each_family() -> None:
    records = [record("Full", 0.1, 0.0), record("Ada", 0.1, 0.3), record("Ada", 0.2, 0.4), record("Ada", 0.3, 0.2)]
    names = [f"{position}" for position in range(4)]
    for position, one in enumerate(records):
        records[position] = replace(one, method=replace(one.method, name=names[position]))
    assert [one.method.name for one in fastest_of_families(records)] == ["0", "2"]
