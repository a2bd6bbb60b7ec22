"""Estimates of a method, the table, and `results.json` there and back."""

from pathlib import Path

import pytest

from ada.evaluation.report import format_estimate, markdown_table
from ada.evaluation.results import Column, MethodResult, Results, all_columns, estimate_all
from ada.evaluation.statistics import Estimate

COLUMNS = all_columns({"quality": Column("Quality"), "hidden": Column("Hidden", in_table=False)})


def result(name: str, quality: list[float], saved: list[float], seconds: list[float]) -> MethodResult:
    per_prompt = {"quality": quality, "hidden": quality, "compute_saved": saved}
    reference = {"quality": [20.0, 30.0, 40.0], "hidden": [0.0] * 3}
    estimates = estimate_all(per_prompt, reference, seconds, [0.2, 0.4])
    return MethodResult(
        name=name, family=name, label=name, note="", num_inference_steps=4, estimates=estimates, per_prompt=per_prompt,
        seconds_per_image=seconds, actions=[[0, 0, 1, 0]] * 3,
    )  # fmt: skip


@pytest.fixture
def results() -> Results:
    methods = [
        result("Full compute", [20.0, 30.0, 40.0], [0.0] * 3, [0.2, 0.4]),
        result("Half", [19.0, 29.0, 39.0], [0.5] * 3, [0.1, 0.2]),
    ]
    return Results(
        settings={"batch_size": 3}, environment={"torch": "2"}, columns=COLUMNS, prompts=["ä", "b", "c"], methods=methods
    )


def test_json_round_trip(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert "ä" in (tmp_path / "results.json").read_text(encoding="utf-8")


def test_estimates_by_hand(results: Results) -> None:
    estimates = results.methods[1].estimates
    assert estimates["quality"].value == 29
    assert estimates["quality_difference"] == Estimate(-1.0, -1.0, -1.0)
    assert estimates["compute_saved"] == Estimate(0.5, 0.5, 0.5)
    assert estimates["seconds_per_image"].value == pytest.approx(0.15)


def test_speed_up_is_taken_batch_by_batch(results: Results) -> None:
    """The second batch was slow for both, which leaves the speed-up at exactly 2."""
    assert results.methods[1].estimates["speed_up"] == Estimate(2.0, 2.0, 2.0)


def test_table(results: Results) -> None:
    lines = markdown_table(results).splitlines()
    assert lines[0] == "| Method | Quality ↑ | Δ quality ↑ | Compute saved, % ↑ | Latency, s/image ↓ | Speed-up, × ↑ |"
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[0] == "Half"
    assert cells[2:4] == ["−1.00 ±0.00", "50.0 ±0.0"]
    assert cells[5] == "2.00 ±0.00"
    assert "3 prompts" in lines[-1]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.1234, 0.11, 0.15), "12.3 ±2.0"),
        (Estimate(-0.0001, -0.001, 0.001), "0.0 ±0.1"),
        (Estimate(-0.05, None, None), "−5.0"),
    ],
)
def test_format(estimate: Estimate, text: str) -> None:
    assert format_estimate(estimate, Column("Saved", decimals=1, scale=100.0, unit="%")) == text
