"""Methods that share a call of the pipeline, and processes that share a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_runs import CASES, STEPS, method, plan_of, run

from ada.evaluation.compare import actions_of
from ada.evaluation.measure.collect import collect_results
from ada.evaluation.measure.run import measure_methods
from ada.evaluation.measure.together import Call, run_together, shared_plan
from ada.evaluation.methods.ada import Shuffled, control_methods
from ada.evaluation.methods.base import Cases, NotApplicableError, Run, generate
from ada.evaluation.methods.threshold import ThresholdRule
from ada.policy import StepPolicy
from ada.rollouts import FrozenPipeline
from blockdance import Reuse, ReuseSchedule


def test_methods_that_share_a_call_make_the_images_that_they_make_alone(
    backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy
) -> None:
    """A policy, its control, a rule and a schedule, in one call or each in its own: the same decisions, images and MACs."""
    late = ReuseSchedule(torch.tensor([[0, 0, 0, 1, 0, 1]]), (Reuse(boundary=1, order=1),))
    methods = [
        method("ada", policy),
        method("shuffled", Shuffled(policy)),
        method("rule", ThresholdRule(Reuse(boundary=3), 0.5)),
        method("late", late),
        method("late again", late),
    ]
    found = []
    for name, most in (("together", 256), ("alone", 1)):
        plan = replace(plan_of(backbone, tmp_path / name, methods, Cases(["a", "b c"], [11, 12], 2)), most_images=most)
        assert all(shared_plan(plan.frozen, each) is not None for each in methods)
        found.append(collect_results(plan.store, plan.methods, measure_methods(plan), {}, plan.cases))
    for together, alone in zip(*found, strict=True):
        assert together.actions == alone.actions
        assert together.action_names == alone.action_names
        assert together.per_prompt["macs_per_image"] == pytest.approx(alone.per_prompt["macs_per_image"])
        assert together.per_prompt["latent_distance"] == pytest.approx(alone.per_prompt["latent_distance"], abs=1e-4)
    assert found[0][4].per_prompt == found[0][5].per_prompt


def test_equal_schedules_are_made_once(backbone: FrozenPipeline, tmp_path: Path) -> None:
    late = ReuseSchedule(torch.tensor([[0, 0, 0, 1, 0, 1]]), (Reuse(boundary=1),))
    methods = [method(name, late) for name in "abc"]
    plan = plan_of(backbone, tmp_path, methods)
    plans = [shared_plan(plan.frozen, each) for each in methods]
    generated, places, shared = run_together(plan.frozen, Call(slice(0, 2), methods, plans), CASES, counted=False)
    assert len(generated.images) == 2
    assert places == [0, 1]
    assert [images for images, _ in shared] == [[0, 1]] * 3


def test_a_wish_that_cannot_be_met_is_the_reason_of_its_row_alone(
    backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy
) -> None:
    """One step of six can reuse, so what many steps could spend is out of reach; the policy sees it when it decides."""
    impossible = method("impossible", policy.with_options(compute=0.7))
    _, refused, worked = run(backbone, tmp_path, impossible, method("ada", policy))
    assert "cannot be met" in str(refused.reason)
    assert worked.reason is None
    alone = plan_of(backbone, tmp_path / "alone", [])
    with pytest.raises(NotApplicableError, match="cannot be met"), impossible.accelerate(backbone.pipeline, slice(0, 1)):
        generate(alone.frozen, ["a"], [11], STEPS)


def test_a_bug_is_no_wish_that_cannot_be_met(
    backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a call that methods share and in one of its own: an error that is none of ours stops the evaluation."""

    def fail(*_: Any) -> None:
        raise ValueError("a shape that does not fit")

    monkeypatch.setattr(StepPolicy, "decide", fail)
    with pytest.raises(ValueError, match="a shape that does not fit"):
        run(backbone, tmp_path, method("ada", policy))
    alone = method("ada", policy)
    with pytest.raises(ValueError, match="a shape") as found, alone.accelerate(backbone.pipeline, slice(0, 1)):
        generate(backbone, ["a"], [11], STEPS)
    assert not isinstance(found.value, NotApplicableError)


def test_two_processes_measure_what_one_does(backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy) -> None:
    """A policy, its random control, which needs it measured first, fewer steps and a peer that fails, on three batches."""

    @contextmanager
    def fails(pipeline: Any, images: slice) -> Iterator[Run]:
        raise NotApplicableError("It has no blocks.")
        yield Run()

    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ours = method("ada", policy)
        plan = plan_of(backbone, folder, [])
        random, _ = control_methods(ours, policy, partial(actions_of, plan.store, ours), 0, CASES, main=True)
        methods = [*plan.methods, ours, random, method("fewer", steps=4), method("fails", attach=fails)]
        plan = replace(plan, methods=methods, processes=processes)
        found.append(collect_results(plan.store, methods, measure_methods(plan), {}, CASES))
    for one, two in zip(*found, strict=True):
        assert (one.reason, one.actions) == (two.reason, two.actions)
        for name, values in one.per_prompt.items():
            assert two.per_prompt[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
