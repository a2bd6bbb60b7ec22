"""Estimates of a method, what it stands beside, the table, and `results.json` there and back."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from rich.console import Console

from ada.evaluation.measure.collect import _estimates, compare, latencies, mixture_at, with_matches
from ada.evaluation.measure.metrics import Column, all_columns
from ada.evaluation.measure.results import MethodResult, Results, differences_of
from ada.evaluation.measure.run import Timing
from ada.evaluation.methods.base import ADA_BATCH, SHUFFLED, Cases, Method
from ada.evaluation.report.findings import headline_of, static_curve
from ada.evaluation.report.table import format_estimate, format_interval, markdown_table, terminal_table
from ada.statistics import Estimate, mean, share, share_difference

DISTANCE = Column("Distance", higher_is_better=False, decimals=4)
COLUMNS = all_columns(
    {"quality": Column("Quality"), "perceptual_distance": DISTANCE, "hidden": Column("Hidden", in_table=False)}
)
TRUE_DIFFERENCE = -0.0899
"""Of the bounded damage of two log-normal distances whose logarithms have means −7.7 and −7.0 and a deviation of 1.92, by numerical
integration."""
PROMPTS = [f"ä{place}" for place in range(20)]
SPREAD = [0.9 + 0.01 * place for place in range(20)]


def result(name: str, family: str, group: str, damage: float, saved: float, latency: float, steps: int = 20) -> MethodResult:
    """Damage that differs a little by prompt; quality is 10 less the damage."""
    bounded = [damage * factor for factor in SPREAD]
    per_prompt = {
        "quality": [10 - each for each in bounded], "hidden": [0.0] * 20, "bounded_damage": bounded,
        "visibly_changed": [float(each > 0.5) for each in bounded], "compute_saved": [saved] * 20,
        "perceptual_distance": [each / (1 - each) * 0.003 for each in bounded],
    }  # fmt: skip
    reference = {key: [10.0 if key == "quality" else 0.0] * 20 for key in per_prompt}
    estimates = {key: mean(values) for key, values in per_prompt.items()} | latencies(
        Timing({8: [latency, 2 * latency]}), Timing({8: [0.2, 0.4]}), 8
    )
    own = MethodResult(
        name=name, family=family, group=group, note="", num_inference_steps=steps, estimates=estimates,
        per_prompt=per_prompt, distances=per_prompt["perceptual_distance"], seconds_per_image={"8": [latency, 2 * latency]},
    )  # fmt: skip
    return replace(own, estimates=estimates | differences_of(own, replace(own, per_prompt=reference)))


@pytest.fixture
def results() -> Results:
    methods = [
        result("Full compute", "Full compute", "plain", 0.0, 0.0, 0.2),
        result("Fewer steps (15)", "Fewer steps", "plain", 0.2, 0.25, 0.15, 15),
        result("Fewer steps (10)", "Fewer steps", "plain", 0.6, 0.5, 0.1, 10),
        result("Searched", "Best static schedule", "static", 0.1, 0.25, 0.15),
        result("Ada λ=1", "Ada", "ada", 0.05, 0.2, 0.16),
    ]
    return Results(
        settings={"batch_size": 8, "seeds": 1, "visible_damage": 0.02, "compared_with": "Full compute"},
        environment={"torch": "2"}, columns=COLUMNS, prompts=PROMPTS, methods=with_matches(methods),
    )  # fmt: skip


def test_json_round_trip(results: Results, tmp_path: Path) -> None:
    assert results.method("Ada λ=1").matches
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert "ä" in (tmp_path / "results.json").read_text(encoding="utf-8")


def test_a_speed_up_is_taken_round_by_round(results: Results) -> None:
    """The second round was slow for both, which leaves the speed-up at exactly 2."""
    assert results.method("Fewer steps (10)").estimates["speed_up"] == Estimate(2.0, None, None)  # two rounds have no interval
    assert results.method("Fewer steps (10)").estimates["seconds_per_image"].value == pytest.approx(0.15)


def sample(name: str, saved: float, damage: list[float], distances: list[float] | None = None) -> MethodResult:
    return MethodResult(
        name=name, family="", group="static", note="", num_inference_steps=20, distances=distances or damage,
        per_prompt={"bounded_damage": damage, "compute_saved": [saved] * len(damage)},
    )  # fmt: skip


def test_the_best_mixture_by_hand() -> None:
    """At 20 % saved ⅗ of full compute with ⅖ of b does 0.08 and 0.16; ⅕ of full compute with ⅘ of a 0.04 and 0.24, which is more."""
    rows = [sample("full", 0.0, [0.0, 0.0]), sample("a", 0.25, [0.05, 0.3]), sample("b", 0.5, [0.2, 0.4])]
    mixture = mixture_at(0.2, rows)
    assert mixture is not None
    assert {row.name: part for row, part in mixture} == {"full": pytest.approx(0.6), "b": pytest.approx(0.4)}
    assert mixture_at(0.6, rows) is None
    match = compare(sample("own", 0.2, [0.05, 0.10]), mixture)
    assert match.name == "60% full + 40% b"
    assert match.expected["bounded_damage"] == pytest.approx(0.12)
    assert match.differences["bounded_damage"].value == pytest.approx(0.075 - 0.12)


def test_an_interval_beside_a_mixture_holds_where_two_schedules_are_level() -> None:
    """Two schedules of equal damage on average and of their own on each image, log-normal as it is: the difference to the better of the
    two is known, and 95 % of the intervals ought to hold it. Chosen prompt by prompt by the others, 84 % do."""
    generator, held = np.random.default_rng(0), []
    for _ in range(200):
        image = generator.normal(size=(128, 1))
        distances = np.exp(-7.0 + 1.7 * image + 0.9 * generator.normal(size=(128, 3)) + [0.0, 0.0, -0.7])
        first, second, own = (distances / (distances + 0.003)).T.tolist()
        mixture = mixture_at(0.2, [sample("a", 0.2, first), sample("b", 0.2, second)])
        assert mixture is not None
        estimate = compare(sample("own", 0.2, own), mixture).differences["bounded_damage"]
        assert estimate.low is not None
        assert estimate.high is not None
        held.append(estimate.low <= TRUE_DIFFERENCE <= estimate.high)
    assert np.mean(held) > 0.9


def test_ratio_and_wins_by_hand() -> None:
    """Half the distance of a, a quarter of b's: beside half of each the geometric mean is 8^(-1/2); nearer on both."""
    own, first, second = (sample(name, 0.0, [0.0, 0.0], [scale, scale]) for name, scale in (("o", 0.1), ("a", 0.2), ("b", 0.4)))
    match = compare(own, [(first, 0.5), (second, 0.5)])
    assert match.ratio is not None
    assert match.ratio.value == pytest.approx(8**-0.5)
    assert match.better.value == 1
    assert match.name == "50% a + 50% b"
    reference = sample("full", 0.0, [0.0, 0.0], [0.0, 1e-7])
    beside = compare(own, [(first, 0.5), (reference, 0.5)])
    assert beside.ratio is None
    assert beside.better.value == 0.5


def test_visible_changes_have_the_interval_of_differences_of_shares(results: Results) -> None:
    """Ten steps change all 20 images visibly, the searched schedule none; Wilson's intervals reach 0.1611 inwards."""
    ten, searched = results.method("Fewer steps (10)"), results.method("Searched")
    changes = [method.per_prompt["visibly_changed"] for method in (ten, searched)]
    expected = share_difference(*changes)
    assert (expected.low, expected.high) == pytest.approx((1 - 2**0.5 * 0.1611, 1.0), abs=1e-4)
    other = results.compared_with("Searched").method(ten.name)
    assert other.estimates["visibly_changed_difference"] == expected
    assert compare(ten, [(searched, 1.0)]).differences["visibly_changed"] == expected


def test_what_ada_stands_beside(results: Results) -> None:
    """The searched schedule at 25 % and full compute mix to 0.08 at 20 %; plain steps to 0.16; 15 steps are just as fast."""
    matches = results.method("Ada λ=1").matches
    assert matches["static_mixture"].expected["bounded_damage"] == pytest.approx(0.08 * 0.995)
    assert dict(matches["static_mixture"].rows) == {"Searched": pytest.approx(0.8), "Full compute": pytest.approx(0.2)}
    assert matches["same_compute"].expected["bounded_damage"] == pytest.approx(0.16 * 0.995)
    assert matches["same_latency"].name == "20% Full compute + 80% Fewer steps (15)", "0.16 s between 0.2 and 0.15"
    assert results.method("Full compute").matches == {}
    assert set(results.method("Searched").matches) == {"same_latency", "same_compute"}


def test_a_control_is_no_choice_that_anyone_has(results: Results) -> None:
    """However little damage it does, nothing is mixed from it; it stands beside the mixture itself."""
    control = result("Shuffled Ada λ=1", SHUFFLED, "static", 0.01, 0.2, 0.16)
    with_control = replace(results, methods=with_matches([*results.methods, control]))
    assert with_control.method("Ada λ=1").matches == results.method("Ada λ=1").matches
    assert with_control.method("Shuffled Ada λ=1").matches["static_mixture"].expected["bounded_damage"] == pytest.approx(0.0796)
    assert static_curve(with_control) == static_curve(results)


def test_the_headline_has_figures_and_their_interval(results: Results) -> None:
    headline = headline_of(results)
    assert headline is not None
    assert headline.method == "Ada λ=1"
    assert re.match(r"Ada wins: 3[78]% less damage", headline.title)  # 0.030 of 0.080
    assert "Saving 20% of the compute, Ada λ=1 does 0.050 of bounded damage" in headline.sentence
    assert "−0.030 (95 % interval −0.03" in headline.sentence
    worse = replace(results, methods=with_matches([*results.methods[:4], result("Ada", "Ada", "ada", 0.3, 0.2, 0.1)]))
    assert str(headline_of(worse)).count("Ada loses") == 1
    assert headline_of(replace(results, methods=results.methods[:4])) is None
    shared = result("Ada batch 80%", ADA_BATCH, "ada", 0.01, 0.2, 0.1)
    beside = headline_of(replace(results, methods=with_matches([*results.methods, shared])))
    assert beside is not None
    assert beside.method == "Ada λ=1", "which decides about each image alone"


def test_the_curve_to_beat_is_the_mixtures(results: Results) -> None:
    curve = {round(point.saved, 3): point.estimates["bounded_damage"].value for point in static_curve(results)}
    assert len(curve) == 24
    assert curve[0.0] == 0.0
    assert max(curve) == 0.5
    assert curve[0.5] == pytest.approx(0.6 * 0.995)


def test_table(results: Results) -> None:
    """Of the markdown: the verdict, a row by hand, and what Ada stands beside."""
    lines = markdown_table(results).splitlines()
    assert lines[0].startswith("**Ada wins")
    table = [line for line in lines if line.startswith("|")]
    heads = [head.strip() for head in table[0].strip("|").split("|")]
    cells = dict(zip(heads, (cell.strip() for cell in table[6].strip("|").split("|")), strict=True))
    assert cells["Method"] == "Ada λ=1"
    assert cells["Bounded damage ↓"] == "0.050 ±0.001"
    assert cells["Compute saved, % ↑"] == "20.0 ±0.0"
    assert "Hidden ↑" not in heads
    assert "Cached, MiB/batch ↓" not in heads
    assert any("20 prompts" in line and "d > 0.02" in line and "to Full compute" in line for line in lines)
    beside = next(line for line in lines if line.startswith("| Ada λ=1 | 20% Full compute + 80% Searched |"))
    # nearer than the searched schedule everywhere, farther than full compute, which a fifth of the images takes
    assert "80 (" in beside


def test_the_terminal_says_who_wins_and_that_it_is_a_quick_look(results: Results) -> None:
    console = Console(record=True, width=160)
    console.print(terminal_table(results))
    printed = console.export_text()
    assert "a quick look" in printed
    assert re.search(r"\n *Ada wins: 3[78]% less damage", printed)
    assert not replace(results, prompts=["a"] * 128).is_quick_look


def test_a_method_that_does_not_apply_is_a_row_with_its_reason(results: Results) -> None:
    broken = MethodResult(
        name="Peer", family="Peers", group="peers", note="", num_inference_steps=4, reason="It has no blocks."
    )
    both = replace(results, methods=[*results.methods, broken])
    assert "- Peer: It has no blocks." in markdown_table(both)
    console = Console(record=True, width=160)
    console.print(terminal_table(both))
    assert "not applicable" in console.export_text()


def test_any_row_can_be_compared_with(results: Results) -> None:
    other = results.compared_with("Searched")
    delta = other.methods[0].estimates["quality_difference"]
    assert delta.value == pytest.approx(0.1 * 0.995)
    assert other.method("Searched").estimates["quality_difference"] == Estimate(0.0, 0.0, 0.0)
    assert other.method("Searched").estimates["visibly_changed_difference"] == Estimate(0.0, 0.0, 0.0)
    assert other.settings["compared_with"] == "Searched"
    with pytest.raises(KeyError, match="Full compute, Fewer steps"):
        results.compared_with("Nothing")


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


def test_lopsided_intervals_are_written_with_their_ends() -> None:
    assert format_interval(Estimate(0.8, 0.7, 0.95), Column("")) == "0.80 (0.70–0.95)"


def test_what_decides_for_a_whole_batch_tells_as_much_as_there_are_batches() -> None:
    """Four batches of eight prompts, each alike, save 10, 20, 30 and 40 %: Student's interval of four values, not that of 32."""
    saved = [share for share in (0.1, 0.2, 0.3, 0.4) for _ in range(8)]
    per_prompt = {"compute_saved": saved, "visibly_changed": [0.0] * 24 + [1.0] * 8, "perceptual_distance": [0.1] * 32}
    cases = Cases.of(range(32), range(32), batch_size=8)
    peer = Method(name="peer", family="peer", group="peers", num_inference_steps=20, data_dependent=True, joint=True)
    found = _estimates(per_prompt, [0.1] * 32, cases, peer, 8)
    half_width = 3.182 * stdev([0.1, 0.2, 0.3, 0.4]) / 2
    assert found["compute_saved"] == Estimate(*(pytest.approx(0.25 + sign * half_width) for sign in (0, -1, 1)))
    assert found["visibly_changed"] == share([0.0, 0.0, 0.0, 1.0])
    by_itself = _estimates(per_prompt, [0.1] * 32, cases, replace(peer, joint=False), 1)
    assert by_itself["compute_saved"] == found["compute_saved"], "work is counted by batches"
    assert by_itself["visibly_changed"] == share(per_prompt["visibly_changed"])
    alone = _estimates(per_prompt, [0.1] * 32, cases, replace(peer, joint=False, data_dependent=False), 1)["compute_saved"]
    assert alone.half_width < half_width / 2
    last_is_smaller = _estimates({"compute_saved": saved[:-4]}, [0.1] * 28, cases, peer, 8)["compute_saved"]
    assert last_is_smaller.value == pytest.approx(fmean(saved[:-4]))
    assert last_is_smaller.half_width == pytest.approx(half_width)


def test_beside_the_reference_a_share_of_changed_images_is_its_own(results: Results) -> None:
    """The reference is changed nowhere by definition, not in 0 to 3 % of all images."""
    for method in results.measured[1:]:
        assert method.estimates["visibly_changed_difference"] == share(method.per_prompt["visibly_changed"]), method.name
