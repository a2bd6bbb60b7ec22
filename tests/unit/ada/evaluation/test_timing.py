"""Latency: rounds that are kept, drawn anew, and run on typical images."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import NUM_BLOCKS
from evaluation_runs import method, noting, plan_of
from torch.nn import functional as F

from ada import processor
from ada.evaluation.measure.collect import collect_results
from ada.evaluation.measure.run import TimingPlan, measure_methods, run_batch, time_methods, typical_batches
from ada.evaluation.request import Request
from ada.rollouts import FrozenPipeline
from blockdance import Reuse, ReuseSchedule


def test_rounds_that_are_stored_do_not_run_again(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """A warm-up, then three rounds at two batch sizes, killed at the sixth call: the second try makes up what is missing."""
    calls: list[tuple[str, int]] = []
    plan = plan_of(backbone, tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        time_methods(plan, [noting("one", calls, stop_at=6)], TimingPlan([1, 2], 3))
    calls.clear()
    timing = time_methods(plan, [noting("one", calls)], TimingPlan([1, 2], 3))["one"]
    assert {size: len(values) for size, values in timing.seconds_per_image.items()} == {1: 3, 2: 3}
    assert timing.peak_bytes is not None
    assert len(calls) == 2 + 3  # a new process warms up; of six runs three were stored
    assert (
        time_methods(plan, [noting("one", calls)], TimingPlan([1, 2], 3))["one"].seconds_per_image == timing.seconds_per_image
    )
    assert time_methods(plan, [noting("one", calls)], TimingPlan([1], 0))["one"].seconds_per_image == {}


def test_images_are_made_by_the_fastest_kernels_and_latency_is_that_of_torch(
    backbone: FrozenPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "is_held_back", lambda: True)
    plan, usual, found = plan_of(backbone, tmp_path, []), F.linear, list[bool]()
    with backbone.transformer.register_forward_pre_hook(lambda *_: found.append(F.linear is usual)):
        measure_methods(plan)
        assert found
        assert not any(found)
        found.clear()
        time_methods(plan, plan.methods, TimingPlan([1], 1))
        assert found
        assert all(found)


def test_a_later_method_is_timed_beside_the_reference_of_its_own_hour(backbone: FrozenPipeline, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    plan = plan_of(backbone, tmp_path, [])
    time_methods(plan, [noting("plain", calls)], TimingPlan([1], 2))
    calls.clear()
    time_methods(plan, [noting("plain", calls), noting("later", calls)], TimingPlan([1], 2))
    assert [name for name, _ in calls].count("plain") == 1 + 2  # the warm-up and both rounds


def test_a_method_is_timed_on_images_that_cost_what_all_cost_on_average(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """They reuse 3, 0, 2, 1 and 3 of six steps, 1.8 on average: 2, then 1, 3 and 3, and last the image that reuses nothing."""
    actions = torch.tensor([[0, 0, 1, 1, 1, 0], [0] * 6, [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 1, 0]])
    methods = [method("own", ReuseSchedule(actions, (Reuse(boundary=NUM_BLOCKS - 1),))), method("fewer", steps=3)]
    plan = plan_of(backbone, tmp_path, methods)
    measure_methods(plan)
    assert [batch.start for batch in typical_batches(plan, methods[0], 1)] == [2, 3, 0, 4, 1]
    assert [batch.start for batch in typical_batches(plan, methods[1], 1)] == [0, 1, 2, 3, 4]
    with patch("ada.evaluation.measure.run.run_batch", wraps=run_batch) as ran:
        time_methods(plan, methods[:1], TimingPlan([1], 3, weigh=False))
    _, *rounds = [each.args[3].start for each in ran.call_args_list]
    assert rounds == [2, 3, 0], "after the warm-up"


def test_few_prompts_with_several_seeds_are_timed_as_a_batch_and_shown(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Two prompts with two seeds, in batches of eight: a timed batch holds both prompts, and the speed-up is that at this size."""
    plan = plan_of(backbone, tmp_path, [method("fewer", steps=3)])
    asked = Request(
        prompts=["a", "b c"], indices=[11, 12], metrics=plan.metrics, embed=plan.embed, seeds=2, rounds=2, timing_minutes=0
    )
    plan = replace(plan, cases=asked.cases)
    timings = time_methods(plan, plan.methods, asked.timing())
    fewer = collect_results(plan.store, plan.methods, measure_methods(plan), timings, asked.cases)[1]
    assert set(fewer.seconds_per_image) == {"1", "2"}
    assert fewer.estimates.keys() >= {"speed_up", "seconds_per_image"}


def test_when_the_time_is_up_two_rounds_of_each_batch_size_were_run(backbone: FrozenPipeline, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    timing = time_methods(plan_of(backbone, tmp_path, []), [noting("one", calls)], TimingPlan([1, 2], 9, 0.0))["one"]
    assert {size: len(values) for size, values in timing.seconds_per_image.items()} == {1: 2, 2: 2}


def test_the_order_of_a_round_is_drawn_anew(backbone: FrozenPipeline, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    methods = [noting(name, calls) for name in "abc"]
    time_methods(plan_of(backbone, tmp_path, methods), methods, TimingPlan([1], 4))
    rounds = ["".join(name for name, _ in calls[start : start + 3]) for start in range(3, 15, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert {start for _, start in calls[3:]} == {0, 1, 2, 3}  # other prompts each round
