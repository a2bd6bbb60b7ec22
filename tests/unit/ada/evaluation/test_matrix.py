"""Which methods are compared, and how they are matched to what the policy did."""

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart

from ada.evaluation import matrix
from ada.evaluation.methods import Method, Planned
from ada.policy import AdaPolicy
from blockdance import BlockDanceConfig, Reuse, ReuseSchedule

STEPS = 20
KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=2, order=0))


@pytest.fixture
def policy() -> AdaPolicy:
    return AdaPolicy.for_transformer(build_pixart(), 16, KINDS, [1.0, 0.0, 0.25], quality_weight_range=(0.5, 8.0))


def decided(rows: list[dict[int, int]]) -> ReuseSchedule:
    """Schedules that compute but for the given steps."""
    actions = torch.tensor([[row.get(step, 0) for step in range(STEPS)] for row in rows])
    return ReuseSchedule(actions, KINDS)


def plan_of(method: Method) -> ReuseSchedule:
    assert isinstance(method.accelerate, Planned)
    assert isinstance(method.accelerate.plan, ReuseSchedule)
    return method.accelerate.plan


def test_fewer_steps_go_down_to_half() -> None:
    assert [method.num_inference_steps for method in matrix.fewer_steps(20)] == [19, 18, 17, 16, 15, 14, 13, 12, 11, 10]
    assert [method.num_inference_steps for method in matrix.fewer_steps(5)] == [4, 3, 2]
    assert len(matrix.fewer_steps(100)) == matrix.MOST_STEP_COUNTS


def test_random_reuses_as_often_as_the_policy_with_its_favourite_kind(policy: AdaPolicy) -> None:
    rows = [dict.fromkeys(range(10, 10 + count), 2) for count in (3, 4)] * 200
    plan = plan_of(matrix.random_schedules(policy, {2.0: decided(rows)}, STEPS)[0])
    assert plan.kinds == (KINDS[1],)
    assert plan.batch_size == 400
    counts = plan.actions.sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert float(counts.double().mean()) == pytest.approx(3.5, abs=0.1)
    steps = plan.actions.nonzero()[:, 1]
    assert set(steps.tolist()) == set(policy.decided_steps(STEPS))


def test_random_is_the_same_again(policy: AdaPolicy) -> None:
    decisions = {2.0: decided([{10: 1, 12: 1}] * 5)}
    first, second = (plan_of(matrix.random_schedules(policy, decisions, STEPS)[0]) for _ in range(2))
    assert torch.equal(first.actions, second.actions)
    assert len(first.actions.unique(dim=0)) > 1


def test_a_policy_that_never_reuses_has_no_random_control(policy: AdaPolicy) -> None:
    assert matrix.random_schedules(policy, {1.0: decided([{}])}, STEPS) == []


def test_blockdance_over_boundaries_orders_ranges_and_fewer_steps() -> None:
    """Of 4 blocks the paper's 20 of 28 is block 3; block 2 is the other one."""
    methods = {method.name: method for method in matrix.blockdance(NUM_BLOCKS, STEPS, 2)}
    names = [
        f"BlockDance-{interval}, block {boundary}, order {order}"
        for interval in (2, 3, 4) for boundary in (2, 3) for order in (0, 1)
    ]  # fmt: skip
    names += [f"BlockDance-{interval}, {start}% to 95%" for interval in (2, 3) for start in (25, 60)]
    names += [f"BlockDance-{interval} of {count} steps" for interval in (2, 3) for count in (17, 14)]
    assert set(methods) == set(names)
    ranged = methods["BlockDance-3, 25% to 95%"].accelerate
    assert ranged == Planned(BlockDanceConfig(interval=3, boundary=2, reuse_range=(0.25, 0.95)))
    assert methods["BlockDance-2 of 14 steps"].num_inference_steps == 14


def test_most_used_kind() -> None:
    assert matrix.most_used_kind([decided([{9: 1, 10: 2}]), decided([{9: 2}])]) == KINDS[1]
    assert matrix.most_used_kind([decided([{9: 1, 10: 2, 11: 1}])]) == KINDS[0]
    assert matrix.most_used_kind([decided([{}])]) is None


def test_ada_at_weights_and_budgets_says_what_its_actions_mean(policy: AdaPolicy) -> None:
    at_weight, at_budget = matrix.ada(policy, [2.0], [0.7], STEPS)
    assert at_weight.name == "Ada λ=2"
    assert "1: after block 3, order 1; 2: after block 2, order 0" in at_weight.note
    assert isinstance(at_budget.accelerate, Planned)
    assert isinstance(at_budget.accelerate.plan, AdaPolicy)
    assert at_budget.accelerate.plan.compute == 0.7
