"""A policy in inference code: wishes for some calls, what the report says of them, fine-tunes, devices."""

from dataclasses import replace

import pytest
import torch
from conftest import scramble
from ladders import ARGUMENTS, MORE_CASES, STEPS, build_frozen, build_ladder, build_policy, build_reward
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from ada.policy import LadderPolicy, PerImage, WishError
from ada.rollouts import Collector, FrozenPipeline
from blockdance import BlockDanceConfig, BlockDanceReport, ScheduleError, apply_blockdance

CURVE = {"quality_weight": [0.5, 1.0, 2.0], "saved": [0.25, 0.2, 0.1], "damage": [0.2, 0.1, 0.05], "changed": [0.3, 0.1, 0.0]}


@pytest.fixture(scope="module")
def collector() -> Collector:
    made = Collector(build_frozen(), build_reward(), build_ladder(), None, batch_size=4)
    made.fill(MORE_CASES)
    return made


@pytest.fixture(scope="module")
def policy(collector: Collector) -> LadderPolicy:
    sights = collector.sights(MORE_CASES)
    return build_policy(collector, sights, quality_weight=1.0, curve=CURVE)


def call(frozen: FrozenPipeline) -> None:
    frozen.pipeline(
        [case.prompt for case in MORE_CASES], num_inference_steps=STEPS, output_type="latent",
        generator=[torch.Generator().manual_seed(case.seed) for case in MORE_CASES], **ARGUMENTS,
    )  # fmt: skip


def taken(frozen: FrozenPipeline, policy: LadderPolicy, **wishes: float) -> Tensor:
    with apply_blockdance(frozen.pipeline, policy, **wishes) as handle:
        call(frozen)
        return handle.report().actions


def test_a_wish_for_some_calls(collector: Collector, policy: LadderPolicy) -> None:
    """Inside `using` the wish holds, after it the policy is as it was; the report is of what ran last."""
    frozen = collector.pipeline
    with apply_blockdance(frozen.pipeline, policy, compute=0.74) as handle:
        call(frozen)
        before = handle.report().actions
        assert torch.equal(before, collector.ladder.actions[[5] * 8])
        with handle.using(compute=1.0):
            call(frozen)
            assert (handle.report().actions == 0).all()
        assert (handle.report().actions == 0).all(), "the last generation can still be reported"
        call(frozen)
        assert torch.equal(handle.report().actions, before)
        with handle.using(BlockDanceConfig(reuse_range=(0.2, 1.0))):
            call(frozen)
        assert handle.report().predicted_damage is None
    assert policy.compute is None
    assert torch.equal(taken(frozen, policy, mean_compute=0.8), taken(frozen, policy.with_options(quality_weight=1.0)))
    shared = taken(frozen, policy, batch_compute=0.8)
    assert torch.equal(shared, taken(frozen, policy.with_options(batch_compute=0.8)))
    assert not torch.equal(shared, taken(frozen, policy, compute=0.8))
    assert torch.equal(taken(frozen, policy, quality=0.0), taken(frozen, policy.with_options(quality_weight=2.0)))


def test_the_report_says_what_was_expected(collector: Collector, policy: LadderPolicy) -> None:
    """The damage predicted at the last decision for the rung that was taken, as the table of rollouts has it."""
    with apply_blockdance(collector.pipeline.pipeline, policy) as handle:
        call(collector.pipeline)
        report: BlockDanceReport = handle.report()
    rungs = (report.actions[:, None] == collector.ladder.actions[None]).all(-1).int().argmax(1)
    sights = collector.sights(MORE_CASES)
    predicted = policy.predict(sights, collector.tree.nodes[:, 0])
    tree = collector.tree
    for image, rung in enumerate(rungs.tolist()):
        last = int(tree.node_of[1, rung])
        assert report.predicted_damage is not None
        assert float(report.predicted_damage[image]) == pytest.approx(float(predicted[image, last, rung]), abs=1e-5)
        assert f"damage {float(report.predicted_damage[image]):.3f} expected" in str(report)


def test_nothing_is_expected_of_a_rung_that_was_cut(collector: Collector, policy: LadderPolicy) -> None:
    """Two steps' worth, which none of these rungs saves: the last reuse of one is left out."""
    ladder = replace(collector.ladder, actions=collector.ladder.actions[[0, 1, 5]])
    few = LadderPolicy(**policy.config | {"ladder": ladder.to_dict()})
    with apply_blockdance(collector.pipeline.pipeline, few, compute=1 - 2 * 0.7 / 8) as handle:
        call(collector.pipeline)
        predicted = handle.report().predicted_damage
    assert predicted is not None
    assert predicted.isnan().all()


def test_wishes_that_a_plan_cannot_take_are_named(collector: Collector, policy: LadderPolicy) -> None:
    pipeline = collector.pipeline.pipeline
    with pytest.raises(ScheduleError, match="`compute`: only a trained policy takes wishes; BlockDanceConfig"):
        apply_blockdance(pipeline, compute=0.8)
    with pytest.raises(ValueError, match=r"Give one of .*; got compute, quality"):
        apply_blockdance(pipeline, policy, compute=0.8, quality=0.1)
    with pytest.raises(WishError, match="`compute` must be a number; got True"):
        policy.with_options(compute=True)
    with pytest.raises(ValueError, match=r"`mean_compute` must lie between 0\.750 and 0\.900.*got 0\.5"):
        apply_blockdance(pipeline, policy, mean_compute=0.5)


def test_fine_tunes_and_loras_are_the_same_model(collector: Collector, policy: LadderPolicy) -> None:
    """Other weights, and an adapter's layers inside the blocks: the policy is taken all the same."""
    frozen = build_frozen()
    first = taken(frozen, policy, compute=0.74)
    torch.manual_seed(5)
    scramble(frozen.transformer)
    assert torch.equal(taken(frozen, policy, compute=0.74), first)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False), frozen.transformer)
    assert torch.equal(taken(frozen, policy, compute=0.74), first)


def test_moving_one_leaves_the_others_where_they_are(policy: LadderPolicy) -> None:
    """As two pipelines on two devices need it. The second device here is the one that has no memory."""
    other = policy.with_options(compute=0.8)
    assert policy.on("cpu") is policy
    moved = other.on("meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert moved.compute == 0.8
    other.to("meta")
    assert {tensor.device.type for tensor in policy.state_dict().values()} == {"cpu"}
    both = PerImage([policy, policy.with_options(compute=0.9)])
    assert both.on(torch.device("cpu")) is both
    assert [one.coefficients.device.type for one in both.on(torch.device("meta")).policies] == ["meta", "meta"]
    assert [one.coefficients.device.type for one in both.policies] == ["cpu", "cpu"]
