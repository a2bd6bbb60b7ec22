"""The Pareto plot's labels, the schedules, the grid's pixels and the animated grid."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation
from PIL import Image

from ada.evaluation.measure.metrics import Column, all_columns
from ada.evaluation.measure.results import MethodResult, Results
from ada.evaluation.report.figures import GROUPS, draw_curves, draw_figures, draw_schedules, with_schedules
from ada.evaluation.report.findings import comparable
from ada.grid import Row, save_grid
from ada.statistics import Estimate

COLUMNS = {
    "compute_saved": Column("Compute saved", scale=100.0, unit="%"), "distance": Column("Distance", higher_is_better=False),
    "bounded_damage": Column("Bounded damage", higher_is_better=False),
}  # fmt: skip


def result(name: str, group: str, estimates: dict[str, float], **fields: object) -> MethodResult:
    known = {column: Estimate(value, value - 0.1, value + 0.1) for column, value in estimates.items()}
    basics = {"name": name, "family": name, "group": group, "note": "", "num_inference_steps": 4}
    return MethodResult(**(basics | {"estimates": known} | fields))  # type: ignore[arg-type]


def results(methods: list[MethodResult]) -> Results:
    return Results(settings={}, environment={}, columns=COLUMNS, prompts=["a", "b", "c"], methods=methods)


def plotted(points: list[tuple[float, float]]) -> Results:
    """Methods of their own families, in two groups, at the given savings and distances."""
    return results(
        [
            result(f"m{place}", ("ada", "peers")[place % 2], {"compute_saved": saved, "distance": distance})
            for place, (saved, distance) in enumerate(points)
        ]
    )


def labels(points: list[tuple[float, float]]) -> list[Annotation]:
    figure = draw_curves(plotted(points), "compute_saved", ["distance"])
    figure.draw_without_rendering()
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def test_every_family_is_named_where_there_is_room() -> None:
    assert sorted(text.get_text() for text in labels([(0.1, 1), (0.2, 2), (0.3, 3)])) == ["m0", "m1", "m2"]


def test_labels_of_close_points_do_not_overlap() -> None:
    close = [(0.1 + 0.001 * place, 1 + 0.01 * (place % 3)) for place in range(8)]
    texts = labels([*close, (0.2, 5)])
    assert len(texts) > 4
    assert not any(one.get_window_extent().overlaps(other.get_window_extent()) for one, other in combinations(texts, 2))


def test_a_family_is_a_line_with_one_name_in_the_colour_of_its_group() -> None:
    methods = [
        result("one", "peers", {"compute_saved": 0.1, "distance": 1}, family="Peer"),
        result("two", "peers", {"compute_saved": 0.3, "distance": 2}, family="Peer"),
        result("none", "peers", {}, reason="It failed."),
    ]
    figure = draw_curves(results(methods), "compute_saved", ["distance"])
    panel = figure.axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), line.get_color()) for line in panel.lines}
    assert lines == {"Peer": ([10.0, 30.0], GROUPS["peers"][1])}
    assert [text.get_text() for text in panel.texts] == ["Peer"]


def test_the_legend_names_what_is_drawn() -> None:
    methods = [
        result("timed", "ada", {"compute_saved": 0.1, "seconds_per_image": 0.2, "distance": 1}),
        result("not timed", "peers", {"compute_saved": 0.3, "distance": 2}),
    ]
    found = replace(results(methods), columns=COLUMNS | {"seconds_per_image": Column("Latency", higher_is_better=False)})
    legends = [draw_curves(found, across, ["distance"]).legends[0] for across in ("compute_saved", "seconds_per_image")]
    named = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert named == [[GROUPS["ada"][0], GROUPS["peers"][0]], [GROUPS["ada"][0]]]


def test_the_curve_to_beat_is_drawn_with_its_band() -> None:
    methods = [
        result(
            name, "static", {"compute_saved": saved, "bounded_damage": damage},
            per_prompt={"bounded_damage": [damage] * 3, "visibly_changed": [0.0] * 3, "compute_saved": [saved] * 3},
        )
        for name, saved, damage in (("full", 0.0, 0.0), ("half", 0.5, 0.4))
    ]  # fmt: skip
    panel = draw_curves(results(methods), "compute_saved", ["bounded_damage"]).axes[0]
    line = next(line for line in panel.lines if line.get_label() == "Best static mixture")
    assert line.get_ydata()[-1] == pytest.approx(0.4)
    assert line.get_xdata()[-1] == pytest.approx(50.0)
    assert len(panel.collections) == 1


@pytest.mark.parametrize(
    ("measured", "drawn"), [({}, {"damage-compute"}), ({"seconds_alone": 0.5}, {"damage-compute", "damage-latency"})]
)
def test_latency_that_was_not_measured_has_no_figure(measured: dict[str, float], drawn: set[str]) -> None:
    estimates = {"compute_saved": 0.2, "bounded_damage": 0.1, "visibly_changed": 0.0}
    own = result("own", "peers", estimates | measured)
    columns = all_columns({"quality": Column("Quality"), "perceptual_distance": Column("Distance")})
    assert set(draw_figures(replace(results([own]), columns=columns))) == drawn


def test_colours_differ_to_colour_blind_readers() -> None:
    """Under a protanope's and a deuteranope's matrices (Viénot et al., 1999, on linear light) no two groups look alike."""
    colours = {group: to_rgb(colour) for group, (_, colour, _) in GROUPS.items()}
    linear = {group: np.asarray(colour) ** 2.2 for group, colour in colours.items()}
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for matrix in (np.eye(3), protan, deutan):
        seen = {group: (matrix @ colour).clip(0, 1) ** (1 / 2.2) for group, colour in linear.items()}
        for one, other in combinations(seen, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 0.2, (one, other)


def test_schedules_are_drawn_with_the_busiest_image_on_top() -> None:
    """Panels whose actions mean different things share the colours of what they mean."""
    actions = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    saved = {"compute_saved": [0.5, 0.0, 0.2]}
    first = result(
        "Ada", "ada", {"compute_saved": 0.2}, actions=actions, per_prompt=saved, action_names=["compute", "reuse a", "reuse b"]
    )
    second = result(
        "Other", "ada", {"compute_saved": 0.2}, actions=actions[1:2] * 3, per_prompt=saved, action_names=["compute", "reuse b"]
    )
    figure = draw_schedules(results([first]), [first, second])
    image = figure.axes[0].get_images()[0]
    assert np.array_equal(image.get_array(), [actions[1], actions[2], actions[0]])
    palettes = [axes.get_images()[0].get_cmap().colors for axes in figure.axes[:2]]
    assert palettes[0][2] == palettes[1][1]
    assert len(set(palettes[0])) == 3


def test_of_each_family_the_schedules_that_save_nearest_to_30_percent_are_shown() -> None:
    """Rows of the policy leave room for static ones, in the order of the table."""
    saved = {
        "Ada": [0.05, 0.15, 0.28, 0.4, 0.5],
        "Ada, a batch within a budget": [0.2, 0.3],
        "Best static schedule": [0.1, 0.2, 0.35],
    }
    kept = {"actions": [[0, 1]], "action_names": ["a", "b"]}
    methods = [
        result(f"{family} {share}", "ada", {}, family=family, per_prompt={"compute_saved": [share]}, **kept)
        for family, shares in saved.items()
        for share in shares
    ]
    without = result("Nothing decided", "ada", {}, family="Ada", per_prompt={"compute_saved": [0.3]})
    shown = [method.name for method in with_schedules(results([without, *methods]))]
    assert shown[:4] == ["Ada 0.15", "Ada 0.28", "Ada 0.4", "Ada, a batch within a budget 0.3"]
    assert shown[4:] == ["Best static schedule 0.2", "Best static schedule 0.35"]


def test_steps_that_did_not_run_are_blank() -> None:
    """As those before the one at which an image that is given is noised."""
    saved = {"compute_saved": [0.5]}
    late = result(
        "Ada", "ada", {"compute_saved": 0.5}, actions=[[-1, 0, 1]], per_prompt=saved, action_names=["compute", "reuse a"]
    )
    figure = draw_schedules(results([late]), [late])
    (drawn,) = figure.axes[0].get_images()
    colours = drawn.to_rgba(drawn.get_array())[0, :, :3]
    assert [tuple(colour) for colour in colours[:1].tolist()] == [(1.0, 1.0, 1.0)]
    assert len({tuple(colour) for colour in colours.tolist()}) == 3


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
def test_the_grid_shows_the_method_of_each_group_that_saves_nearest_to_30_percent(order: list[int]) -> None:
    saved = [("plain", 0.0), ("ada", 0.1), ("ada", 0.35), ("ada", 0.6)]
    methods = [
        result("Full compute" if place == 0 else str(place), saved[place][0], {"compute_saved": saved[place][1]})
        for place in order
    ]
    assert [method.name for method in comparable(methods, lambda method: method.group)] == ["Full compute", "2"]
