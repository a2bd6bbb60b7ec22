"""A ladder's policy: decides in the stock pipeline as on its table, keeps to wishes, survives its folder."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ladders import (
    ARGUMENTS,
    CASES,
    COSTS,
    KINDS,
    MORE_CASES,
    RUNGS,
    STEPS,
    build_frozen,
    build_ladder,
    build_policy,
    build_reward,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ada import AdaPolicy, IncompatiblePolicyError
from ada.policy import Curve, LadderPolicy, StepPolicy, WishError
from ada.policy.sight import NUM_SIGNS
from ada.rollouts import Case, Collector, FrozenPipeline
from ada.schedules import Ladder, Tree
from ada.training.outcome import choose_rungs
from blockdance import BlockDanceError, PolicyState, apply_blockdance

GOLDEN = Path(__file__).parents[3] / "golden" / "policy_v1"


@pytest.fixture(scope="module")
def collector() -> Collector:
    return Collector(build_frozen(), build_reward(), build_ladder(), None, batch_size=4)


@pytest.fixture(scope="module")
def sights(collector: Collector) -> Tensor:
    collector.fill(MORE_CASES)
    return collector.sights(MORE_CASES)


@pytest.fixture(scope="module")
def policy(collector: Collector, sights: Tensor) -> LadderPolicy:
    return build_policy(collector, sights, quality_weight=1.0)


def run(frozen: FrozenPipeline, plan: LadderPolicy, cases: list[Case]) -> Tensor:
    """The actions that the stock pipeline took."""
    with apply_blockdance(frozen.pipeline, plan) as handle:
        frozen.pipeline(
            [case.prompt for case in cases], num_inference_steps=STEPS, output_type="latent",
            generator=[torch.Generator().manual_seed(case.seed) for case in cases], **ARGUMENTS,
        )  # fmt: skip
        return handle.report().actions


@pytest.mark.parametrize("quality_weight", [0.5, 1.0, 2.0])
def test_the_pipeline_decides_as_the_table_does(
    collector: Collector, sights: Tensor, policy: LadderPolicy, quality_weight: float
) -> None:
    """What training sees and walks is what inference sees and does: in one batch of all prompts, and image by image."""
    chosen = choose_rungs(policy, collector.tree, sights, [quality_weight])[0]
    assert len(set(chosen.tolist())) > 1, "images must differ, or parity would say nothing"
    expected = collector.ladder.actions[chosen]
    plan = policy.with_options(quality_weight=quality_weight)
    assert torch.equal(run(collector.pipeline, plan, MORE_CASES), expected)
    alone = torch.cat([run(collector.pipeline, plan, [case]) for case in MORE_CASES[:4]])
    assert torch.equal(alone, expected[:4])


def test_both_looks_count(collector: Collector, sights: Tensor, policy: LadderPolicy) -> None:
    """Were the first stage's network asked again, other rungs would come out."""
    other = build_policy(collector, sights)
    with torch.no_grad():
        other.coefficients[1] = other.coefficients[0]
    weights = [0.5, 1.0, 2.0]
    ours, theirs = (choose_rungs(one, collector.tree, sights, weights) for one in (policy, other))
    assert not torch.equal(ours, theirs)


def test_larger_weights_never_save_more(collector: Collector, sights: Tensor, policy: LadderPolicy) -> None:
    weights = torch.logspace(-1, 1, 41).tolist()
    saved = collector.ladder.saved(COSTS)[choose_rungs(policy, collector.tree, sights, weights)].mean(1)
    assert (saved.diff() <= 1e-12).all()
    assert saved[0] > saved[-1] + 0.1


def test_logits_are_the_reward_by_hand(policy: LadderPolicy) -> None:
    """30·(C − λ·q̂)/(1 + λ) at λ = 3: `00010010` saves twice 0.7 of 8 steps."""
    damage = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    logits = policy.logits(damage, torch.tensor([3.0]))
    assert logits[0, 3].item() == pytest.approx(30 * (2 * 0.7 / 8 - 3 * 0.3) / 4, abs=1e-5)


def test_calibrated_policy_that_reads_nothing_predicts_the_mean(collector: Collector, sights: Tensor) -> None:
    fresh = build_policy(collector, sights)
    torch.nn.init.zeros_(fresh.coefficients)
    predicted = fresh.predict(sights, collector.tree.nodes[:, 0])
    expected = torch.tensor([0.001, 0.02, 0.05, 0.08, 0.15, 0.3]).expand_as(predicted)
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_cases_make_few_components_and_none_that_explodes(collector: Collector, sights: Tensor, count: int) -> None:
    """`count` cases span `count` − 1 directions at the first stage's node and 3·`count` − 1 at the second's three; along others they do not
    differ, and another image must not look infinite for it."""
    stages = collector.tree.nodes[:, 0]
    policy = LadderPolicy(**build_policy(collector, sights).config | {"num_components": 24})
    policy.calibrate(sights[:count], stages, torch.rand(count, len(RUNGS)))
    used = policy.components.abs().sum(0) > 0
    assert 0 < used.sum() <= 4 * count - 2
    seen, new = policy.inputs(sights[:count], stages), policy.inputs(sights[count:], stages)
    components = seen[..., NUM_SIGNS:].flatten(0, 1)
    torch.testing.assert_close(components[:, used].std(0), torch.ones(int(used.sum())), atol=1e-3, rtol=0)
    assert components[:, ~used].abs().max() == 0
    assert new.abs().max() < 1e3
    assert policy.predict(sights, stages).isfinite().all()


# --- wishes ---


@pytest.mark.parametrize(("compute", "rung"), [(1.0, 0), (0.92, 1), (0.83, 3), (0.74, 5), (0.79, 4)])
def test_compute_gives_every_image_the_nearest_rung(
    collector: Collector, policy: LadderPolicy, compute: float, rung: int
) -> None:
    """The rungs save 0, .0875, .1, .175, .225 and .2625 of the compute."""
    saved = [0, 0.7 / 8, 0.8 / 8, 1.4 / 8, 1.8 / 8, 2.1 / 8]
    assert collector.ladder.saved(COSTS).tolist() == pytest.approx(saved)
    nearest = min(range(6), key=lambda place: abs(1 - saved[place] - compute))
    assert nearest == rung
    actions = run(collector.pipeline, policy.with_options(compute=compute), MORE_CASES[:4])
    assert torch.equal(actions, collector.ladder.actions[[nearest]].expand(4, -1))


def test_compute_between_two_rungs_computes_the_last_reuses(collector: Collector, policy: LadderPolicy) -> None:
    """Of these rungs none saves two steps' worth: `00011010` is taken without its last reuse."""
    ladder = replace(collector.ladder, actions=collector.ladder.actions[[0, 1, 5]])
    few = LadderPolicy(**policy.config | {"ladder": ladder.to_dict()})
    actions = run(collector.pipeline, few.with_options(compute=1 - 2 * 0.7 / 8), MORE_CASES[:2])
    assert actions.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]] * 2


@pytest.mark.parametrize("wanted", [1.0, 0.9, 0.85, 0.8, 0.7375])
def test_a_batch_spends_its_budget_to_the_step(collector: Collector, policy: LadderPolicy, wanted: float) -> None:
    """Each image as it needs beside the others, and all together within half a step of one of them."""
    actions = run(collector.pipeline, policy.with_options(batch_compute=wanted), MORE_CASES)
    saved = torch.tensor([0.0, 0.7, 0.4])[actions].sum(1) / STEPS
    assert saved.mean().item() == pytest.approx(1 - wanted, abs=0.7 / STEPS / 2 / len(MORE_CASES) + 1e-6)
    assert (len(set(saved.tolist())) > 1) == (wanted not in (1.0, 0.7375)), (
        "images must differ, or it would be the budget of each"
    )


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("rungs", [[0, 5], [0, 1, 5], [0, 1, 2, 3, 4, 5]])
def test_a_small_batch_spends_its_budget_to_the_step(
    collector: Collector, policy: LadderPolicy, images: int, rungs: list[int]
) -> None:
    """A rung that was cut at one decision must not come back at the next one."""
    ladder = replace(collector.ladder, actions=collector.ladder.actions[rungs])
    few = LadderPolicy(**policy.config | {"ladder": ladder.to_dict()})
    for wanted in torch.linspace(0.75, 1.0, 11).tolist():
        actions = run(collector.pipeline, few.with_options(batch_compute=wanted), MORE_CASES[:images])
        saved = torch.tensor([0.0, 0.7, 0.4])[actions].sum() / STEPS
        assert saved.item() == pytest.approx((1 - wanted) * images, abs=0.7 / STEPS / 2 + 1e-6), wanted


CURVE = Curve([0.5, 1.0, 2.0, 4.0], [0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.05, 0.01], [0.5, 0.3, 0.1, 0.02])


def test_wishes_for_a_mean_choose_the_weight_of_the_curve(collector: Collector, sights: Tensor) -> None:
    policy = build_policy(collector, sights, curve=CURVE.to_dict())
    assert policy.with_options(mean_compute=0.7).quality_weight == pytest.approx(1.0)
    assert policy.with_options(mean_compute=0.9).quality_weight == 4.0
    assert policy.with_options(mean_compute=0.85).quality_weight == pytest.approx(2 * 2**0.5), (
        "between those that were measured"
    )
    assert policy.with_options(mean_compute=0.72).quality_weight == pytest.approx(2**0.2)
    assert policy.with_options(quality=0.3).quality_weight == 1.0
    assert policy.with_options(quality=0.29).quality_weight == 2.0
    assert policy.with_options(quality=1.0).quality_weight == 0.5
    budget = policy.with_options(compute=0.8)
    assert budget.with_options(mean_compute=0.7).compute is None
    with pytest.raises(ValueError, match=r"`mean_compute` must lie between 0\.600 and 0\.900.*got 0\.5"):
        policy.with_options(mean_compute=0.5)
    for quality in (0.01, 5, float("nan")):
        with pytest.raises(ValueError, match=rf"`quality` must lie between 0\.020 and 1.*got {quality}"):
            policy.with_options(quality=quality)


def test_wishes_that_cannot_be_met_are_named(policy: LadderPolicy) -> None:
    assert issubclass(WishError, BlockDanceError)
    with pytest.raises(WishError, match=r"Give one of .*; got quality_weight, compute"):
        policy.with_options(quality_weight=1.0, compute=0.9)
    with pytest.raises(WishError, match=r"trained range, 0\.1 to 10; got 11"):
        policy.with_options(quality_weight=11)
    with pytest.raises(WishError, match=r"`compute` must lie between 0\.74.*got 0\.5"):
        policy.with_options(compute=0.5)
    for name in ("compute", "batch_compute", "mean_compute", "quality", "quality_weight"):
        for value in ("0.8", [0.8]):
            with pytest.raises(WishError, match=f"`{name}` must be a number; got"):
                policy.with_options(**{name: value})  # type: ignore[arg-type]
    for name in ("mean_compute", "quality"):
        with pytest.raises(WishError, match="no measured curve"):
            policy.with_options(**{name: 0.9})


def test_wishes_leave_the_original_alone(policy: LadderPolicy, tmp_path: Path) -> None:
    before = dict(policy.config)
    other = policy.with_options(compute=0.8)
    assert (policy.compute, other.compute) == (None, 0.8)
    assert policy.config == before
    assert policy.with_options(quality_weight=3.0).quality_weight == 3.0
    assert policy.quality_weight == 1.0
    assert other.coefficients.data_ptr() == policy.coefficients.data_ptr(), "weights are shared"
    assert other.with_options().compute == 0.8
    for value in (0.8, np.float32(0.8), torch.tensor(0.8)):
        policy.with_options(compute=value).save_pretrained(tmp_path)  # type: ignore[arg-type]
        assert AdaPolicy.from_pretrained(tmp_path).compute == pytest.approx(0.8)


def test_half_precision_decides(collector: Collector, policy: LadderPolicy) -> None:
    """What is described is float32 whatever the pipeline computes in; the expected damage may differ by half's rounding."""
    expected = {"half": 0.0, "float": 0.0}
    for name in expected:
        plan = getattr(copy.deepcopy(policy), name)().with_options(compute=0.74)
        damage = collector.pipeline.generate(["dog"], [1], plan).report.predicted_damage
        assert damage is not None
        assert damage.dtype == torch.float32
        expected[name] = float(damage)
    assert expected["half"] == pytest.approx(expected["float"], rel=0.05)


def test_other_numbers_of_steps_are_decided(collector: Collector, policy: LadderPolicy) -> None:
    frozen = collector.pipeline.with_settings(num_inference_steps=16)
    report = frozen.generate(["dog", "a red apple"], [1, 2], policy.with_options(compute=0.74)).report
    stretched = collector.ladder.for_steps(16)
    assert torch.equal(report.actions, stretched.actions[[5, 5]])
    assert (report.actions > 0).sum(1).tolist() == [6, 6]


def test_a_budget_that_stretched_rungs_cannot_meet_is_named(collector: Collector, policy: LadderPolicy) -> None:
    """Of eight steps the last rung saves 26 %, of five less."""
    five = collector.pipeline.with_settings(num_inference_steps=5)
    for name in ("compute", "batch_compute"):
        with pytest.raises(
            ValueError, match=rf"`{name}` must lie between 0\.\d+, the most saving rung at 5 steps, and 1; got 0\.74"
        ):
            five.generate(["dog"], [1], policy.with_options(**{name: 0.74}))


def test_a_ladder_is_stretched_once_for_all_steps(
    collector: Collector, policy: LadderPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretched: list[int] = []
    for_steps = Ladder.for_steps
    monkeypatch.setattr(Ladder, "for_steps", lambda ladder, steps: stretched.append(steps) or for_steps(ladder, steps))
    frozen = collector.pipeline.with_settings(num_inference_steps=16)
    for _ in range(2):
        frozen.generate(["dog"], [1], policy)
    assert stretched == [16]


# --- its folder ---


def test_a_full_disk_is_an_error_of_one_line_and_leaves_what_was_there(
    policy: LadderPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("ada.policy.folder.save_file", fail)
    with pytest.raises(OSError, match=r"could not be written to .*No space left on device\. Make room"):
        policy.with_options(compute=0.8).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_folder_round_trip_decides_alike_to_the_bit(
    collector: Collector, sights: Tensor, policy: LadderPolicy, tmp_path: Path
) -> None:
    policy.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = AdaPolicy.from_pretrained(tmp_path)
    assert type(again) is LadderPolicy
    assert (again.kinds, again.quality_weight, again.curve) == (KINDS, 1.0, None)
    stages = collector.tree.nodes[:, 0]
    assert torch.equal(again.predict(sights, stages), policy.predict(sights, stages))
    assert torch.equal(run(collector.pipeline, again, MORE_CASES), run(collector.pipeline, policy, MORE_CASES))


def test_folders_that_hold_no_policy_are_named(policy: LadderPolicy, tmp_path: Path) -> None:
    def fails(message: str, kind: type[Exception] = IncompatiblePolicyError) -> None:
        with pytest.raises(kind, match=message):
            AdaPolicy.from_pretrained(tmp_path / "policy")

    fails("No policy in .*train.py", FileNotFoundError)
    policy.save_pretrained(tmp_path / "policy")
    config, weights = tmp_path / "policy" / "config.json", tmp_path / "policy" / "model.safetensors"
    content, tensors = json.loads(config.read_text()), load_file(weights)
    assert (content["format"], content["version"], content["form"]) == ("blockdance-ada", 7, "ladder")

    save_file({name: tensor for name, tensor in tensors.items() if name != "level"}, weights)
    fails(r"(?s)incomplete or was changed by hand.*level")
    weights.write_bytes(weights.read_bytes()[:-100])
    fails("incomplete or no safetensors file")
    weights.unlink()
    torch.save(tensors, tmp_path / "policy" / "pytorch_model.bin")
    fails(r"no model\.safetensors.*may run code")
    save_file(tensors, weights)

    for change, message in (
        ({"version": 8}, r"format version 8; this package reads up to 7\. Update"),
        ({"form": "dreams"}, "form 'dreams'"),
        ({"format": "else"}, "holds no BlockDance-Ada policy"),
        ({"num_components": 2}, r"(?s)incomplete or was changed by hand.*size mismatch"),
        ({"colour": "red"}, r"(?s)incomplete or was changed by hand.*colour"),
    ):
        config.write_text(json.dumps(content | change))
        fails(message)
    config.write_text(json.dumps(content))
    save_file(tensors | {"level": tensors["level"] * float("nan")}, weights)
    fails(r"incomplete or was changed by hand: level hold values that are no finite numbers")
    config.write_text(json.dumps({"model_type": "clip", "hidden_size": 4}))
    fails("holds no BlockDance-Ada policy")
    config.write_text("{")
    fails("cannot be read")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"quality_weight_range": [1]}, "`quality_weight_range` must be two positive numbers"),
        ({"quality_weight_range": [0.2, float("nan")]}, "`quality_weight_range` must be two positive numbers"),
        ({"quality_weight": -4}, "`quality_weight` must be a positive number; got -4"),
        ({"reuse_costs": [0.3]}, r"`reuse_costs` must lie between 0 and 1, one for each of the 2 kinds; got \[0\.3\]"),
        ({"reuse_costs": [0.3, float("nan")]}, "`reuse_costs` must lie between 0 and 1"),
        ({"compute": 0.01}, "`compute` must lie between"),
        ({"compute": "0.8"}, "'str'"),
        ({"batch_compute": 1.2}, "`batch_compute` must lie between"),
        ({"curve": CURVE.to_dict() | {"saved": [0.4]}}, "`curve` must have equally many numbers"),
        ({"curve": CURVE.to_dict() | {"changed": [0.4, 0.3, 0.2, float("nan")]}}, "`curve` must have equally many numbers"),
        ({"curve": {name: [] for name in CURVE.to_dict()}}, "`curve` must have equally many numbers, two or more"),
        ({"curve": CURVE.to_dict() | {"quality_weight": [4.0, 1.0, 2.0, 5.0]}}, "`curve` must be ordered"),
    ],
)
def test_a_damaged_config_is_named(policy: LadderPolicy, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    policy.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | damage))
    with pytest.raises(IncompatiblePolicyError, match=rf"incomplete or was changed by hand: .*{message}"):
        AdaPolicy.from_pretrained(tmp_path)


def test_another_class_than_the_folders_is_named(policy: LadderPolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    with pytest.raises(IncompatiblePolicyError, match=r"form 'ladder'; StepPolicy reads \['steps'\]"):
        StepPolicy.from_pretrained(tmp_path)
    assert isinstance(LadderPolicy.from_pretrained(tmp_path), LadderPolicy)


def test_a_subclass_takes_no_folder_from_the_class_it_derives_from(policy: LadderPolicy, tmp_path: Path) -> None:
    class Mine(LadderPolicy):
        pass

    policy.save_pretrained(tmp_path)
    assert type(AdaPolicy.from_pretrained(tmp_path)) is LadderPolicy
    assert type(Mine.from_pretrained(tmp_path)) is Mine


def test_another_architecture_is_named(collector: Collector, sights: Tensor) -> None:
    other = build_policy(collector, sights)
    other.base_model = replace(other.base_model, num_blocks=28)
    with pytest.raises(IncompatiblePolicyError, match="num_blocks: 28 here, 4 there"):
        apply_blockdance(collector.pipeline.pipeline, other)


def test_version_two_is_read_and_predicts() -> None:
    """The first ladder: damage is sigmoid(level + (seen · direction · scale of the stage) · slope), of rank 2."""
    policy = AdaPolicy.from_pretrained(GOLDEN.with_name("policy_v2"))
    assert type(policy) is LadderPolicy
    weights = load_file(GOLDEN.with_name("policy_v2") / "model.safetensors")
    sights = torch.randn(5, 4, 980, generator=torch.Generator().manual_seed(0))
    seen = ((sights - weights["mean"]) / weights["deviation"]).clamp(-5, 5)
    inputs = torch.cat([seen[..., :20], seen[..., 20:] @ weights["components"]], -1)
    expected = (weights["level"] + (inputs @ weights["direction"] * weights["stage_scale"]) @ weights["slope"]).sigmoid()
    torch.testing.assert_close(policy.predict(sights, torch.arange(4)), expected, atol=1e-5, rtol=1e-4)


def test_version_four_reckons_with_no_errors(collector: Collector, policy: LadderPolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"version": 4}))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["error_variance"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    stages = collector.tree.nodes[:, 0]
    sights = torch.randn(3, len(stages), policy.config["sight_width"])
    older = LadderPolicy.from_pretrained(tmp_path)
    assert torch.equal(older.predict(sights, stages), older.log_odds(older.inputs(sights, stages), stages).sigmoid())


def test_expected_damage_is_the_mean_over_errors(collector: Collector, policy: LadderPolicy) -> None:
    """An image that cannot be told well may be damaged: the mean over what it may be, not the damage of the likeliest."""
    stages, rungs = collector.tree.nodes[:, 0], len(policy.ladder)
    log_odds, spread = torch.linspace(-4, 1, rungs), torch.linspace(2, 0.5, rungs)
    damage = (log_odds + spread * torch.randn(4000, rungs)).sigmoid()
    knowing = copy.deepcopy(policy)
    knowing.measure_errors(log_odds.expand(len(damage), len(stages), rungs), stages, damage)
    torch.testing.assert_close(knowing.error_variance.sqrt(), spread.expand_as(knowing.error_variance), rtol=0.1, atol=0)
    expected = knowing.expected_damage(log_odds[None], stages[:1])[0]
    torch.testing.assert_close(expected, damage.mean(0), rtol=0, atol=0.02)
    assert (expected > 1.5 * log_odds.sigmoid())[:3].all(), "the damage of the likeliest image, which is not the mean"


def test_images_on_no_rung_compute_to_the_end(collector: Collector, policy: LadderPolicy) -> None:
    frozen = collector.pipeline
    seen: list[PolicyState] = []

    class Watching(LadderPolicy):
        def decide(self, state: PolicyState):  # type: ignore[no-untyped-def]
            seen.append(state)
            return super().decide(state)

    watching = Watching(**policy.config)
    watching.load_state_dict(policy.state_dict())
    run(frozen, watching.with_options(compute=0.74), CASES[:2])
    assert [state.step for state in seen] == [3, 5]
    strange = replace(seen[1], actions=seen[1].actions.clone())
    strange.actions[0, 3:5] = torch.tensor([2, 0])  # no rung reuses so at step 3
    planned = policy.with_options(compute=0.74).decide(strange).actions
    assert planned[0].sum() == 0
    assert planned[1].tolist() == collector.ladder.actions[5].tolist()
    assert isinstance(collector.tree, Tree)
    assert isinstance(collector.ladder, Ladder)
