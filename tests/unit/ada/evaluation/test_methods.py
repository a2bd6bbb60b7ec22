"""Which methods are compared, and how they are matched to what the policy did."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart_pipeline
from ladders import build_ladder
from policies import build_step_policy

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.methods.ada import Shuffled, ada_methods, control_methods, random_as_often, rival_methods
from ada.evaluation.methods.base import Cases, Method, NotApplicableError
from ada.evaluation.methods.peers import one_by_one
from ada.evaluation.methods.static import MOST_STEP_COUNTS, blockdance, deep_cache, fewer_steps, full_method, ladder_methods
from ada.evaluation.request import GATES, Settings
from ada.policy import AdaPolicy, Curve, LadderPolicy, StepPolicy
from ada.policy.sight import NUM_SIGNS
from ada.rollouts import FrozenPipeline
from ada.schedules import Ladder
from blockdance import BlockDanceConfig, BlockReuse, PolicyState, Reuse, ReuseSchedule, full_compute

ARGUMENTS = {"guidance_scale": 2.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
STEPS = 20
KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=2, order=0))


@pytest.fixture
def subject(tmp_path: Path) -> FrozenPipeline:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    return FrozenPipeline(str(tmp_path / "pipeline"), 6, ARGUMENTS)


def decided(rows: list[dict[int, int]]) -> torch.Tensor:
    """Actions of schedules that compute but for the given steps."""
    return torch.tensor([[row.get(step, 0) for step in range(STEPS)] for row in rows])


def test_fewer_steps_go_down_to_half_and_every_second_is_main() -> None:
    methods = fewer_steps(20)
    assert [method.num_inference_steps for method in methods] == [19, 18, 17, 16, 15, 14, 13, 12, 11, 10]
    assert [method.num_inference_steps for method in methods if method.main] == [18, 16, 14, 12, 10]
    assert [method.num_inference_steps for method in methods if method.main and method.quick] == [16, 14, 12, 10]
    assert [method.num_inference_steps for method in fewer_steps(5)] == [4, 3, 2]
    assert len(fewer_steps(100)) == MOST_STEP_COUNTS


def test_random_reuses_as_often_as_the_policy_did_in_the_same_batch_with_its_favourite_kind() -> None:
    rows = decided([dict.fromkeys(range(10, 10 + count), 2) for count in (3, 4)] * 200)
    schedule = random_as_often(rows, KINDS, range(9, 19), seed=0)
    assert schedule.kinds == KINDS, "the same in every batch, whatever the favourite"
    assert set(schedule.actions.flatten().tolist()) == {0, 2}
    counts = (schedule.actions > 0).sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert float(counts.double().mean()) == pytest.approx(3.5, abs=0.1)
    assert set(schedule.actions.nonzero()[:, 1].tolist()) == set(range(9, 19))
    assert torch.equal(schedule.actions, random_as_often(rows, KINDS, range(9, 19), seed=0).actions)
    assert len(schedule.actions.unique(dim=0)) > 1


def test_random_computes_where_the_policy_did() -> None:
    rows = decided([{}, {}, {10: 1}])
    assert int(random_as_often(rows[:2], KINDS, range(9, 19), seed=0).actions.sum()) == 0
    assert int(random_as_often(rows[2:], KINDS, range(9, 19), seed=0).actions.sum()) == 1


def test_blockdance_over_boundaries_orders_ranges_and_fewer_steps() -> None:
    """Of 4 blocks the paper's 20 of 28 is block 3; block 2 is the other one."""
    methods = {method.name: method for method in blockdance(NUM_BLOCKS, STEPS, 2)}
    names = [
        f"BlockDance-{interval}, block {boundary}, order {order}"
        for interval in (2, 3, 4) for boundary in (2, 3) for order in (0, 1)
    ]  # fmt: skip
    names += [f"BlockDance-{interval}, {start}% to 95%" for interval in (2, 3) for start in (25, 60)]
    names += [f"BlockDance-{interval} of {count} steps" for interval in (2, 3) for count in (17, 14)]
    assert set(methods) == set(names)
    ranged = methods["BlockDance-3, 25% to 95%"].plan
    assert ranged == BlockDanceConfig(interval=3, boundary=2, reuse_range=(0.25, 0.95))
    assert methods["BlockDance-2 of 14 steps"].num_inference_steps == 14


def test_deep_cache_skips_the_inner_blocks_of_all_steps_but_every_nth() -> None:
    """Of 14 blocks the outer seventh at either end always runs: blocks 2 to 11 are reused."""
    plan = deep_cache(14, 7)[1].plan  # type: ignore[attr-defined]
    assert plan.kinds == (BlockReuse(blocks=tuple(range(2, 12))),)
    assert plan.actions.tolist() == [[0, 1, 1, 0, 1, 1, 0]]
    assert deep_cache(14, 7)[0].note.startswith("Of every 2 steps the first computes; at the others blocks 2 to 11 are skipped")
    assert deep_cache(2, 7) == []


def test_deep_cache_saves_the_inner_blocks_macs(subject: FrozenPipeline) -> None:
    """Of 4 blocks 2 are skipped at 3 of 6 steps."""
    counts = []
    for method in (full_method(6), deep_cache(NUM_BLOCKS, 6)[0]):
        counts.append(run_batch(subject, method, Cases(["a"], [1], 1), slice(0, 1), count=True).macs)
    assert 0.2 < 1 - counts[1] / counts[0] < 0.25


def test_random_takes_the_kind_that_most_steps_took() -> None:
    for row, kind in (([{9: 1, 10: 2}, {9: 2}], 2), ([{9: 1, 10: 2, 11: 1}], 1)):
        schedule = random_as_often(decided(row), KINDS, range(9, 19), seed=0)
        assert set(schedule.actions.flatten().tolist()) == {0, kind}


def test_ada_at_weights_and_budgets(tmp_path: Path) -> None:
    """Mean budgets need a measured curve and shared ones a ladder, of which this policy has none; a budget that cannot be had is a row."""
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    policy = build_step_policy(FrozenPipeline(str(tmp_path / "pipeline"), STEPS, ARGUMENTS))
    at_weight, at_budget, beyond = ada_methods(policy, [2.0], [0.7, 1.7], [0.8], [0.8], STEPS)
    assert "1.7" in str(beyond.reason)
    assert (at_weight.name, at_weight.settings) == ("Ada λ=2", {"quality_weight": 2.0})
    assert isinstance(at_budget.plan, StepPolicy)
    assert at_budget.plan.compute == 0.7
    assert at_weight.timed, "there is no mean whose latency could be measured instead"


def test_latency_is_measured_of_what_tells_something_new() -> None:
    """Of a policy with a measured curve at its means, not at a weight; of BlockDance-2 after the other boundary alone."""
    policy = LadderPolicy(
        base_model={"transformer": "Toy", "num_blocks": 4, "latent_channels": 4, "prompt_width": 0},
        ladder=build_ladder().to_dict(), reuse_costs=[0.1, 0.1], sight_width=NUM_SIGNS + 8,
        curve=Curve([0.5, 2.0, 8.0], [0.4, 0.2, 0.1], [0.3, 0.1, 0.0], [0.5, 0.2, 0.0]).to_dict(),
    )  # fmt: skip
    rows = ada_methods(policy, [2.0], [0.7], [0.9, 0.8], [0.75], STEPS)
    assert (rows[-1].name, rows[-1].plan.batch_compute) == ("Ada batch 75%", 0.75)
    assert [row.name for row in rows if row.joint] == ["Ada batch 75%"], "the images of a batch share its budget"
    assert [method.name for method in rows if method.timed] == ["Ada mean 90%", "Ada mean 80%"]
    assert [method.name for method in blockdance(4, 6) if method.timed and method.main] == ["BlockDance-2, block 3, order 0"]


def test_another_policy_without_a_curve_runs_as_it_was_saved(tmp_path: Path) -> None:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    policy = build_step_policy(FrozenPipeline(str(tmp_path / "pipeline"), STEPS, ARGUMENTS)).with_options(quality_weight=3.0)
    transformer = build_pixart_pipeline().transformer
    (row,) = rival_methods("Gate", policy, transformer, [0.8, 0.7], STEPS)
    assert (row.name, row.family, row.group, row.settings) == ("Gate", "Gate", "peers", {})
    assert isinstance(row.plan, StepPolicy)
    assert row.plan.quality_weight == 3.0
    policy.base_model = replace(policy.base_model, num_blocks=28)
    (row,) = rival_methods("Gate", policy, transformer, [0.8, 0.7], STEPS)
    assert row.plan is None
    assert "num_blocks: 28 here, 4 there" in str(row.reason)


@pytest.mark.parametrize("source", GATES.values())
def test_the_gates_that_are_rows_by_default_fit_the_embedded_model(source: str) -> None:
    """They choose from the searched ladder, and meet every mean budget at which they stand beside the policy."""
    root = Path(__file__).parents[4]
    gate, policy = (AdaPolicy.from_pretrained(root / folder) for folder in (source, "checkpoints/ada-emoji"))
    assert isinstance(gate, LadderPolicy)
    assert gate.base_model == policy.base_model
    assert gate.ladder.to_dict() == Ladder.load(root / "configs/ladders/emoji.json").to_dict()
    for budget in Settings().mean_budgets:
        assert gate.with_options(mean_compute=budget).quality_weight > 0


def test_a_schedules_settings_say_what_it_does() -> None:
    plan = ReuseSchedule(torch.tensor([[0, 0, 1, 0]]), (Reuse(boundary=1),))
    method = Method(name="a", family="", group="static", num_inference_steps=4, plan=plan)
    assert method.described == {"actions": "0010", "kinds": ["after block 1, order 0"]}


def test_a_plan_and_something_attached_at_once_are_refused() -> None:
    peer = one_by_one(Method(name="y", family="y", group="peers", num_inference_steps=4)).attach
    with pytest.raises(ValueError, match="a `plan` or an `attach`, not both"):
        Method(name="x", family="x", group="peers", num_inference_steps=4, plan=BlockDanceConfig(), attach=peer)


def test_one_by_one_gives_each_image_its_own_row_and_the_same_image(subject: FrozenPipeline) -> None:
    """As the batch does, up to rounding; the method is entered anew for every image."""
    plan = ReuseSchedule(torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]), (Reuse(boundary=2),))
    whole = Method(name="rows", family="", group="static", num_inference_steps=6, plan=plan)
    cases = Cases(["a", "b c"], [1, 2], 2)
    images = [run_batch(subject, method, cases, slice(0, 2)).generated.images for method in (whole, one_by_one(whole))]
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=0)
    assert not torch.allclose(images[0], run_batch(subject, full_method(6), cases, slice(0, 2)).generated.images, atol=1e-4)


def test_calls_are_told_of_prompts_as_the_pipeline_asks_for() -> None:
    """By arguments that `inputs` makes of them, also where every image has a call of its own."""
    told = {"one": "a b", "two": "c"}
    frozen = FrozenPipeline(
        build_pixart_pipeline(), 6, ARGUMENTS,
        inputs=lambda names: {"prompt": [told[name] for name in names], "negative_prompt": list(told)[: len(names)]},
    )  # fmt: skip
    own = frozen.generate(["two", "one"], [1, 2], full_compute(1, 6)).images
    alone = frozen.generate(["two"], [1], full_compute(1, 6)).images
    cases = Cases(["two", "one"], [1, 2], 2)
    torch.testing.assert_close(run_batch(frozen, full_method(6), cases, slice(0, 2)).generated.images, own)
    each = run_batch(frozen, one_by_one(full_method(6)), cases, slice(0, 2)).generated.images
    torch.testing.assert_close(each[:1], alone)


def test_the_rungs_of_a_ladder_are_static_rows() -> None:
    """Of three rungs the first computes everything; the one nearest to each level is timed."""
    ladder = Ladder(
        torch.tensor([[0] * 10, [0, 0, 0, 0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1, 0, 1, 0, 1]]), (Reuse(boundary=2),), (2,)
    )
    methods = ladder_methods(ladder, 10, NUM_BLOCKS)
    assert [(method.name, method.timed) for method in methods] == [
        ("Static rung 1, 20%", True),
        ("Static rung 2, 40%", True),
    ]
    assert methods[0].described == {"actions": "0000010100", "kinds": ["after block 2, order 0"]}


def test_rungs_that_coincide_at_few_steps_are_one_row_whose_latency_is_measured() -> None:
    """Of the shipped ladder's fifteen, at ten steps: those nearest to 15 and 35 %, by the number of the first of them."""
    ladder = Ladder.load(Path(__file__).parents[4] / "configs/ladders/emoji.json")
    methods = ladder_methods(ladder, 10, 16)
    actions = [method.described["actions"] for method in methods]
    assert len(set(actions)) == len(actions) < len(ladder) - 1
    assert [method.name for method in methods if method.timed] == ["Static rung 1, 10%", "Static rung 8, 30%"]
    rungs = ["".join(map(str, rung)) for rung in ladder.for_steps(10).actions.tolist()]
    assert [method.name.split()[2] for method in methods] == [f"{rungs.index(rung)}," for rung in actions]


def test_a_single_image_has_no_other_by_whose_state_it_could_be_decided(subject: FrozenPipeline) -> None:
    policy = build_step_policy(subject)
    row = Method(name="Ada", family="Ada", group="ada", num_inference_steps=6, plan=policy)
    for cases, applies in (
        (Cases(["a"], [1], 8), False),
        (Cases(["a", "b"], [1, 2], 1), False),
        (Cases(["a", "b"], [1, 2], 8), True),
        (Cases(["a", "b", "c"], [1, 2, 3], 2), False),
    ):
        _, shuffled = control_methods(row, policy, lambda images: torch.zeros(0), 0, cases, main=True)
        assert (shuffled.reason is None) == applies


def test_the_rungs_of_a_deeper_models_ladder_say_so(subject: FrozenPipeline) -> None:
    (row,) = ladder_methods(Ladder(decided([{}, {12: 1}]), (Reuse(boundary=15),), (2,)), STEPS, subject.num_blocks)
    with pytest.raises(NotApplicableError, match=r"ladder .* after block 15, and the model has 4 blocks, 0 to 3"):
        run_batch(subject, row, Cases(["a"], [1], 1), slice(0, 1))


def test_shuffled_decisions_are_those_of_the_neighbours(subject: FrozenPipeline) -> None:
    """A decider that reuses as many steps as an image's features say gives every image its neighbour's number."""

    class ByNumber:
        kinds = (Reuse(boundary=2),)

        def decide(self, state: PolicyState) -> ReuseSchedule:
            actions = torch.zeros_like(state.actions)
            for image, number in enumerate(state.features[:, 0, 0].tolist()):
                actions[image, state.step : state.step + int(number)] = 1
            return ReuseSchedule(actions, self.kinds)

    empty, numbers = torch.zeros(3, 1, 1), torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    state = PolicyState(
        latents=empty, clean=empty, features=numbers, feature_change=empty, prompt_embeds=None, prompt_mask=None,
        class_labels=None, sigmas=torch.linspace(1, 0, 6), actions=torch.tensor([[0, 0, 0, -1, -1, -1]] * 3), step=3,
    )  # fmt: skip
    decided = Shuffled(ByNumber()).decide(state)  # type: ignore[arg-type]
    assert (decided.actions > 0).sum(1).tolist() == [1, 2, 0]
