"""Estimates of a method, the table, and `results.json` there and back."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ada.evaluation.report import format_estimate, markdown_table, terminal_table
from ada.evaluation.results import Column, Match, MethodResult, Results, all_columns, estimate_all, match_latency
from ada.evaluation.statistics import Estimate

COLUMNS = all_columns({"quality": Column("Quality"), "hidden": Column("Hidden", in_table=False)})


def result(name: str, quality: list[float], saved: list[float], seconds: list[float]) -> MethodResult:
    per_prompt = {"quality": quality, "hidden": quality, "compute_saved": saved}
    reference = {"quality": [20.0, 30.0, 40.0], "hidden": [0.0] * 3, "compute_saved": [0.0] * 3}
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
        settings={"batch_size": 3, "compared_with": "Full compute"}, environment={"torch": "2"}, columns=COLUMNS,
        prompts=["ä", "b", "c"], methods=methods,
    )  # fmt: skip


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
    heads = [head.strip() for head in lines[0].strip("|").split("|")]
    cells = dict(zip(heads, (cell.strip() for cell in lines[3].strip("|").split("|")), strict=True))
    assert cells["Method"] == "Half"
    assert cells["Δ quality ↑"] == "−1.00 ±0.00"
    assert cells["Compute saved, % ↑"] == "50.0 ±0.0"
    assert cells["Speed-up, × ↑"] == "2.00 ±0.00"
    assert cells["Cached, MiB/batch ↓"] == "–"
    assert "Hidden ↑" not in heads
    assert "3 prompts" in lines[5]
    assert "to Full compute" in lines[5]


def test_a_method_that_does_not_apply_is_a_row_with_its_reason(results: Results) -> None:
    broken = MethodResult(name="Peer", family="Peers", label="", note="", num_inference_steps=4, reason="It has no blocks.")
    both = replace(results, methods=[*results.methods, broken])
    assert "- Peer: It has no blocks." in markdown_table(both)
    console = Console(record=True, width=160)
    console.print(terminal_table(both))
    assert "not applicable" in console.export_text()


def test_any_row_can_be_compared_with(results: Results) -> None:
    other = results.compared_with("Half")
    assert other.methods[0].estimates["quality_difference"] == Estimate(1.0, 1.0, 1.0)
    assert other.methods[1].estimates["quality_difference"] == Estimate(0.0, 0.0, 0.0)
    assert other.settings["compared_with"] == "Half"
    with pytest.raises(KeyError, match="Full compute, Half"):
        results.compared_with("Nothing")


def test_the_plain_pipeline_of_nearest_latency_is_set_beside(results: Results) -> None:
    """Half takes 0.15 s, the median of 0.1 and 0.2; plain pipelines take 0.3 and 0.2."""
    fewer = replace(result("Fewer", [19.5, 29.0, 39.0], [0.2] * 3, [0.2, 0.2]), family="Fewer steps")
    matched = match_latency([*results.methods, fewer], "Fewer steps", ["quality"])
    assert [method.same_latency for method in (matched[0], matched[2])] == [None, None]
    match = matched[1].same_latency
    assert match is not None
    assert match.name == "Fewer"
    assert match.differences["quality"].value == pytest.approx(-0.5 / 3)
    saved = replace(results, methods=matched)
    assert "| Half | Fewer | −0.17" in markdown_table(saved)


def test_json_round_trip_of_a_match(results: Results, tmp_path: Path) -> None:
    match = Match("Full compute", {"quality": Estimate(1.0, 0.5, 1.5)})
    matched = replace(results, methods=[results.methods[0], replace(results.methods[1], same_latency=match)])
    matched.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == matched


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
