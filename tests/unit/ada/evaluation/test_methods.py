"""Which methods are compared, and how they are matched to what the policy did."""

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart

from ada.evaluation.methods import Method, Planned, default_methods, most_used_kind
from ada.policy import AdaPolicy
from blockdance import ForwardCost, Reuse, ReuseSchedule

STEPS = 20
# four blocks that are the whole cost: a reuse step after block 3 is free, after block 2 it costs a quarter
COST = ForwardCost(400.0, (100.0,) * NUM_BLOCKS)
KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=2, order=0))


@pytest.fixture
def policy() -> AdaPolicy:
    return AdaPolicy.for_transformer(build_pixart(), 16, KINDS, [1.0, 0.0, 0.25], quality_weight_range=(0.5, 8.0))


def decided(rows: list[dict[int, int]]) -> ReuseSchedule:
    """Schedules that compute but for the given steps."""
    actions = torch.tensor([[row.get(step, 0) for step in range(STEPS)] for row in rows])
    return ReuseSchedule(actions, KINDS)


def methods_for(policy: AdaPolicy, decisions: dict[float, ReuseSchedule]) -> dict[str, Method]:
    return {method.name: method for method in default_methods(policy, decisions, COST, STEPS)}


def plan_of(method: Method) -> ReuseSchedule:
    assert isinstance(method.accelerate, Planned)
    assert isinstance(method.accelerate.plan, ReuseSchedule)
    return method.accelerate.plan


def test_fewer_steps_cost_what_the_policy_cost(policy: AdaPolicy) -> None:
    """Images that reuse 4 and 8 steps for nothing: 20 steps cost as much as 14."""
    decisions = {1.0: decided([dict.fromkeys(range(10, 14), 1), dict.fromkeys(range(10, 18), 1)])}
    method = methods_for(policy, decisions)["Fewer steps (14)"]
    assert method.num_inference_steps == 14
    assert "λ = 1" in method.note


def test_fewer_steps_match_blockdance_too(policy: AdaPolicy) -> None:
    """At the paper's boundary, block 3 of 4, BlockDance-2 frees 5 of 20 steps and BlockDance-3 frees 7."""
    names = methods_for(policy, {1.0: decided([{10: 1}])})
    assert [name for name in names if name.startswith("Fewer")] == ["Fewer steps (19)", "Fewer steps (15)", "Fewer steps (13)"]


def test_random_reuses_as_often_as_the_policy_with_its_favourite_kind(policy: AdaPolicy) -> None:
    rows = [dict.fromkeys(range(10, 10 + count), 2) for count in (3, 4)] * 200
    plan = plan_of(methods_for(policy, {2.0: decided(rows)})["Random, rate of λ=2"])
    assert plan.kinds == (KINDS[1],)
    assert plan.batch_size == 400
    counts = plan.actions.sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert float(counts.double().mean()) == pytest.approx(3.5, abs=0.1)
    steps = plan.actions.nonzero()[:, 1]
    assert set(steps.tolist()) == set(policy.decided_steps(STEPS))


def test_random_is_the_same_again(policy: AdaPolicy) -> None:
    decisions = {2.0: decided([{10: 1, 12: 1}] * 5)}
    first, second = (plan_of(methods_for(policy, decisions)["Random, rate of λ=2"]) for _ in range(2))
    assert torch.equal(first.actions, second.actions)
    assert len(first.actions.unique(dim=0)) > 1


def test_blockdance_at_both_boundaries_in_both_orders(policy: AdaPolicy) -> None:
    """The policy's favourite is block 2; the paper's 20 of 28 is block 3 of 4."""
    names = methods_for(policy, {1.0: decided([{10: 2}])})
    dances = {name for name in names if name.startswith("BlockDance")}
    assert dances == {
        f"BlockDance-{interval}, block {boundary}, order {order}"
        for interval in (2, 3, 4)
        for boundary in (2, 3)
        for order in (0, 1)
    }


def test_a_policy_that_never_reuses_has_no_random_control(policy: AdaPolicy) -> None:
    names = methods_for(policy, {1.0: decided([{}])})
    assert not [name for name in names if name.startswith("Random")]
    assert "Fewer steps (20)" not in names
    assert next(iter(names)) == "Full compute"


def test_most_used_kind() -> None:
    assert most_used_kind([decided([{9: 1, 10: 2}]), decided([{9: 2}])]) == KINDS[1]
    assert most_used_kind([decided([{9: 1, 10: 2, 11: 1}])]) == KINDS[0]
    assert most_used_kind([decided([{}])]) is None


def test_ada_says_what_its_actions_mean(policy: AdaPolicy) -> None:
    note = methods_for(policy, {2.0: decided([{10: 1}])})["Ada λ=2"].note
    assert "1: after block 3, order 1; 2: after block 2, order 0" in note
