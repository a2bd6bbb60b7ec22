"""How much of an evaluation runs and is timed."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import build_clip_folder

from ada.evaluation.measure.metrics import Column, Metric, default_metrics
from ada.evaluation.measure.run import TimingPlan
from ada.evaluation.methods.base import Method
from ada.evaluation.methods.peers import one_by_one
from ada.evaluation.request import LADDER, EvaluationOptions, Request, ladder_of
from ada.rewards import SSIM, Relative

METRICS = {"perceptual_distance": Metric(SSIM(), Column("Distance"))}


def test_plain_pipelines_and_the_policy_are_timed_and_all_where_that_is_asked_for() -> None:
    groups = ("plain", "blockdance", "static", "ada", "peers")
    methods = [Method(name=group, family=group, group=group, num_inference_steps=4) for group in groups]  # type: ignore[arg-type]
    quick = Request(prompts=["a"] * 8, indices=range(8), metrics=METRICS, embed=lambda images: images)
    assert [method.name for method in methods if quick.times(method)] == ["plain", "ada"]
    assert quick.timing() == TimingPlan([1], 2, 24.0, weigh=False)
    alone = replace(one_by_one(methods[-1]), quick=False)
    assert [quick.wants(method) for method in (methods[-1], alone)] == [True, False]
    slow = "Left out (`--thorough true` runs them): peers, batch 1; Sampled, N=2."
    sampled = replace(alone, name="Sampled, N=2")
    few, left_out = quick.remarks([*methods, alone, sampled, replace(alone, main=False)])
    assert few.endswith("Latency was measured at batch 1 and in two rounds alone, and no memory was weighed.")
    assert left_out == slow
    asked = replace(quick, rounds=2)
    assert [method.name for method in methods if asked.times(method)] == ["plain", "ada"]
    assert asked.timing() == TimingPlan([1, 8], 2, 24.0)
    assert asked.remarks([])[0].endswith("tables take 128 or more.")
    whole = replace(quick, prompts=["a"] * 128, indices=range(128))
    assert [method.name for method in methods if whole.times(method)] == ["plain", "ada"]
    assert not whole.wants(alone)
    assert whole.timing() == TimingPlan([1, 8], 10, 480.0)
    assert whole.remarks([*methods, alone, sampled]) == [slow]
    for every in (replace(whole, time_all=True), replace(quick, time_all=True)):
        assert all(every.times(method) for method in methods)
        assert not every.wants(alone)
        assert every.timing().batch_sizes == [1, 8]
    thorough = replace(whole, thorough=True)
    assert thorough.wants(alone)
    assert thorough.remarks([alone]) == []
    slow_plain = replace(methods[0], quick=False)
    assert [method.name for method in [*methods, slow_plain] if thorough.times(method)] == ["plain", "ada"]
    assert replace(thorough, time_all=True).times(slow_plain)


def test_a_timed_batch_has_a_prompt_once() -> None:
    """Rounds take images of the first noise seed: four prompts with two seeds make no batch of eight."""
    few = Request(prompts=["a"] * 4, indices=range(4), metrics=METRICS, embed=lambda images: images, seeds=2, rounds=2)
    assert few.timing().batch_sizes == [1, 4]


@pytest.mark.parametrize("visible", [0.0, -0.003, float("nan")])
def test_a_visible_damage_that_is_not_positive_is_refused(visible: float) -> None:
    with pytest.raises(ValueError, match=r"`visible_damage` must be positive; got "):
        EvaluationOptions(policy="policy", visible_damage=visible)


def test_metrics_without_the_distance_that_damage_is_computed_from_are_refused() -> None:
    metrics = {"ssim": Metric(SSIM(), Column("SSIM"))}
    with pytest.raises(ValueError, match=r"`metrics` must hold `perceptual_distance`.*; got ssim\."):
        Request(prompts=["a"], indices=[0], metrics=metrics, embed=lambda images: images)


def test_of_class_labels_metrics_that_need_a_text_are_left_out(tmp_path: Path) -> None:
    metrics = default_metrics(str(build_clip_folder(tmp_path)))
    metrics["relative"] = Metric(Relative(metrics["quality"].reward), Column("Quality lost"))
    texts = Request(prompts=["a", "b"], indices=range(2), metrics=metrics, embed=lambda images: images)
    assert (list(texts.measured), texts.remarks([])[1:]) == (list(metrics), [])
    labels = replace(texts, prompts=[3, 7])
    assert list(labels.measured) == ["psnr", "ssim", "perceptual_distance"]
    assert labels.remarks([])[1:] == ["Prompts are class labels, so what needs a text is left out: quality, relative."]
    with pytest.raises(ValueError, match=r"`metrics` must hold `perceptual_distance`.*; got none\."):
        replace(labels, metrics={"quality": metrics["quality"]})


def test_another_base_model_is_not_held_against_the_embedded_ones_searched_schedules() -> None:
    own, other = EvaluationOptions(policy="p"), EvaluationOptions(policy="p", base_model="someone/model")
    assert (ladder_of(own), ladder_of(other)) == (LADDER, None)
    assert ladder_of(replace(own, ladder=None)) is None
    assert ladder_of(replace(other, ladder="mine.json")) == "mine.json"
