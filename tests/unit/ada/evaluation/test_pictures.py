"""The Pareto plot's labels, the schedules, the grid's pixels and the animated grid."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Annotation
from PIL import Image

from ada.evaluation.grid import Row, save_grid
from ada.evaluation.heatmap import draw_schedules, kinds_of
from ada.evaluation.methods import ADA, FULL_COMPUTE, PEERS
from ada.evaluation.outputs import comparable
from ada.evaluation.pareto import draw_pareto
from ada.evaluation.results import Column, MethodResult, Results
from ada.evaluation.statistics import Estimate

COLUMNS = {"cost": Column("Cost", higher_is_better=False), "distance": Column("Distance", higher_is_better=False)}


def result(name: str, family: str, estimates: dict[str, float], **fields: object) -> MethodResult:
    known = {column: Estimate(value, value - 0.1, value + 0.1) for column, value in estimates.items()}
    basics = {"name": name, "family": family, "label": name, "note": "", "num_inference_steps": 4}
    return MethodResult(**(basics | {"estimates": known} | fields))  # type: ignore[arg-type]


def results(methods: list[MethodResult]) -> Results:
    return Results(settings={}, environment={}, columns=COLUMNS, prompts=["a", "b", "c"], methods=methods)


def plotted(points: list[tuple[float, float]]) -> Results:
    """Methods of two families at the given costs and distances."""
    return results(
        [
            result(f"m{place}", (ADA, "Other")[place % 2], {"cost": cost, "distance": distance})
            for place, (cost, distance) in enumerate(points)
        ]
    )


def labels(points: list[tuple[float, float]]) -> list[Annotation]:
    figure = draw_pareto(plotted(points), "cost", ["distance"])
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
    panel = draw_pareto(plotted([(1, 1), (2, 2)]), "cost", ["distance"]).axes[0]
    assert not panel.xaxis_inverted()
    assert panel.yaxis_inverted()


def test_different_peers_are_not_joined_by_a_line_and_missing_methods_are_left_out() -> None:
    methods = [
        result("one", PEERS, {"cost": 1, "distance": 1}),
        result("two", PEERS, {"cost": 2, "distance": 2}),
        result("ada", ADA, {"cost": 1, "distance": 2}),
        result("none", "Gone", {}, reason="It failed."),
    ]
    panel = draw_pareto(results(methods), "cost", ["distance"]).axes[0]
    styles = {container.get_label(): container.lines[0].get_linestyle() for container in panel.containers}
    assert styles == {PEERS: "None", ADA: "-"}


def test_schedules_are_drawn_with_the_busiest_image_on_top() -> None:
    actions = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    method = result(
        "Ada", ADA, {"compute_saved": 0.2}, actions=actions, per_prompt={"compute_saved": [0.5, 0.0, 0.2]},
        note="Actions: 0: compute; 1: after block 3, order 0; 2: after block 2, order 1, weight 0.5.",
    )  # fmt: skip
    panel = draw_schedules(results([method]), [method]).axes[0]
    assert np.array_equal(panel.get_images()[0].get_array(), [actions[1], actions[2], actions[0]])
    assert kinds_of(method) == {1: "after block 3, order 0", 2: "after block 2, order 1, weight 0"}


def stripes(level: float) -> torch.Tensor:
    image = torch.ones(3, 32, 32)
    image[..., ::2] = level
    return image


def test_grid_has_a_row_per_method_and_one_for_its_differences(tmp_path: Path) -> None:
    """32 pixels are shown three times as large; a change by 15/255 becomes 60/255 on grey."""
    rows = [
        Row("Full compute", [stripes(100 / 255)] * 2, ["reference"] * 2),
        Row("Half", [stripes(115 / 255)] * 2, ["50%"] * 2),
    ]
    save_grid(rows, ["a prompt that is longer than its picture is wide", "b"], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    for level in (100, 115, round(127.5 + 60)):
        down, across = (abs(pixels.astype(int) - level) <= 1).all(-1).nonzero()
        assert (np.bincount(across) >= 96).sum() == 2 * 48
        assert (np.bincount(down) >= 2 * 48).sum() == 96


def test_grid_of_videos_moves(tmp_path: Path) -> None:
    video = torch.stack([stripes(level) for level in (0.2, 0.4, 0.6)])
    save_grid([Row("Full compute", [video], ["reference"]), Row("Half", [video], ["50%"])], ["a"], tmp_path / "grid.webp")
    with Image.open(tmp_path / "grid.webp") as grid:
        assert grid.n_frames == 3
        seen = []
        for frame in range(3):
            grid.seek(frame)
            values, counts = np.unique(np.asarray(grid.convert("L")), return_counts=True)
            seen.append(set(values[counts > 2 * 48 * 96 - 200].tolist()))
    assert [any(abs(value - level) <= 1 for value in found) for found, level in zip(seen, (51, 102, 153), strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 3, 2, 1]])
def test_the_grid_shows_the_method_of_each_family_that_saves_nearest_to_30_percent(order: list[int]) -> None:
    saved = [(FULL_COMPUTE, 0.0), (ADA, 0.1), (ADA, 0.35), (ADA, 0.6)]
    methods = [result(str(place), saved[place][0], {"compute_saved": saved[place][1]}) for place in order]
    assert [method.name for method in comparable(methods)] == ["0", "2"]
