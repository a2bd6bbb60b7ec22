"""A planted task that must be learnt, and the measure of what was learnt."""

import math
from functools import cache

import pytest
import torch
from ladders import build_ladder
from torch import Tensor

from ada.policy import Curve, LadderPolicy
from ada.policy.sight import NUM_SIGNS
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.schedules import Tree
from ada.training import LevelOutcome, NothingLearntError, Outcome, measure_outcome
from ada.training.ladder import GRID, balanced_reward, critic_loss, critic_targets, gain_of_choosing, kept_by_folds
from ada.training.outcome import HeldOut, paired_interval, rung_chances
from ada.training.run import check_gain

VISIBLE = 0.003
COSTS = [0.1, 0.1]
STRENGTH = torch.tensor([0.0, 0.15, 0.3, 0.6, 1.2, 1.5])
WIDTH = NUM_SIGNS + 8


def toy_cases(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sights `(cases, nodes, width)` of which one sign tells the sensitivity, and damage exp(sensitivity) · strength."""
    generator = torch.Generator().manual_seed(seed)
    sensitivity = torch.randn(count, generator=generator) * 2
    sights = torch.randn(count, 4, WIDTH, generator=generator)
    sights[:, :, 3] = 5 + 0.7 * sensitivity[:, None]
    return sights, 0.004 * sensitivity.exp()[:, None] * STRENGTH


def build_policy() -> LadderPolicy:
    base = {"transformer": "Toy", "num_blocks": 4, "latent_channels": 4, "prompt_width": 0}
    return LadderPolicy(
        base_model=base, ladder=build_ladder().to_dict(), reuse_costs=COSTS, sight_width=WIDTH, num_components=4
    )


def toy_tree() -> Tree:
    ladder = build_ladder()
    return Tree.of(ladder.actions, ladder.decision_steps)


def fit(sights: Tensor, damage: Tensor, policy_gradient: bool, steps: int = 150) -> LadderPolicy:
    """Trains with the losses and the optimiser of `LadderTraining`, all cases in each batch."""
    torch.manual_seed(0)
    policy, tree, cost = build_policy(), toy_tree(), bounded_damage(damage, VISIBLE)
    policy.calibrate(sights, tree.nodes[:, 0], cost)
    low, high = policy.quality_weight_range
    gain = gain_of_choosing(cost, policy.ladder.saved(COSTS).float(), torch.logspace(math.log10(low), math.log10(high), GRID))
    optimizer = torch.optim.Adam(policy.parameters(), 0.05)
    for _ in range(steps):
        if policy_gradient:
            predicted = policy.predict(sights, tree.nodes[:, 0])
            value, spread = balanced_reward(policy, predicted, cost, tree, torch.rand(len(cost)), gain)
            loss = -value.mean() - 0.003 * spread.mean()
        else:
            log_odds = policy.log_odds(policy.inputs(sights, tree.nodes[:, 0]), tree.nodes[:, 0])
            loss = critic_loss(log_odds, critic_targets(cost, torch.ones(len(cost), dtype=torch.bool))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not policy_gradient:
        stages = tree.nodes[:, 0]
        policy.measure_errors(policy.log_odds(policy.inputs(sights, stages), stages), stages, cost)
    return policy.eval()


@cache
def judge(policy_gradient: bool, shuffled: bool) -> Outcome:
    sights, damage = toy_cases(400, seed=1)
    held_out, held_out_damage = toy_cases(400, seed=2)
    if shuffled:
        sights = sights[torch.randperm(len(sights), generator=torch.Generator().manual_seed(3))]
    policy = fit(sights, damage, policy_gradient)
    return measure_outcome([HeldOut(policy, held_out, held_out_damage, damage)], toy_tree(), VISIBLE, levels=(0.15, 0.20))


@pytest.mark.parametrize(("policy_gradient", "closed"), [(False, 0.8), (True, 0.65)], ids=["critic", "policy gradient"])
def test_a_planted_sign_is_learnt(policy_gradient: bool, closed: float) -> None:
    """The policy gradient by itself learns more slowly: it only sees which rung is best."""
    level = judge(policy_gradient, shuffled=False).at(0.2)
    assert level.gap_closed >= closed
    assert level.oracle < level.policy < level.mixture
    assert level.verdict == "better"
    assert level.changed_policy < level.changed_mixture
    assert level.agreement > (0.7 if policy_gradient else 0.8)


def test_nothing_is_learnt_from_shuffled_sights() -> None:
    outcome = judge(policy_gradient=False, shuffled=True)
    assert all(level.gap_closed < 0.2 for level in outcome.levels)
    assert all(level.verdict != "better" for level in outcome.levels)


def test_gain_is_demanded() -> None:
    check_gain(judge(policy_gradient=False, shuffled=False))
    with pytest.raises(NothingLearntError, match="does not beat the mixture of static schedules at 15%"):
        check_gain(judge(policy_gradient=False, shuffled=True))
    sights, damage = toy_cases(200, seed=4)
    knows_nothing = build_policy()
    knows_nothing.calibrate(sights, toy_tree().nodes[:, 0], bounded_damage(damage, VISIBLE))
    with pytest.raises(NothingLearntError, match=r"15%: (level|worse|not reached)"):
        check_gain(measure_outcome([HeldOut(knows_nothing.eval(), sights, damage, damage)], toy_tree(), VISIBLE))


def test_worse_anywhere_is_no_gain() -> None:
    def level(saved: float, low: float, high: float) -> LevelOutcome:
        return LevelOutcome(saved, 0.1, 0.2, 0.05, ((low + high) / 2, low, high), 0.1, 0.2, 0.5, 3, 0.5)

    curve = Curve([1.0], [0.2], [0.1], [0.1])
    good = (level(0.15, 0.01, 0.02), level(0.20, 0.01, 0.02))
    check_gain(Outcome(good, curve, 100))
    with pytest.raises(NothingLearntError, match="at 40%: worse saved"):
        check_gain(Outcome((*good, level(0.40, -0.02, -0.01)), curve, 100))
    with pytest.raises(NothingLearntError, match="at 20%: not reached saved"):
        check_gain(Outcome(good[:1], curve, 100))


def test_outcome_of_a_policy_that_knows_nothing_is_the_mixture() -> None:
    """All images take the same rung at each λ; mixed to a level, that is a static mixture, and no better than the best one."""
    sights, damage = toy_cases(300, seed=5)
    policy = build_policy()
    policy.calibrate(sights, toy_tree().nodes[:, 0], bounded_damage(damage, VISIBLE))
    outcome = measure_outcome([HeldOut(policy.eval(), sights, damage, damage)], toy_tree(), VISIBLE)
    assert outcome.levels
    for level in outcome.levels:
        assert level.policy >= level.mixture - 1e-9
        assert level.verdict != "better", "rounding is no gain"
        assert level.oracle < level.mixture
        assert level.distinct <= 2
    assert all(later <= earlier for earlier, later in zip(outcome.curve.saved, outcome.curve.saved[1:], strict=False))


def test_chances_meet_the_level_exactly() -> None:
    """At two λ the cases save 0.3 and 0.1 on average: a quarter of the way from one to the other gives 0.15."""
    saved = torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64)
    rungs = torch.tensor([[2, 1], [1, 0], [0, 0]])
    chances = rung_chances(rungs, saved[rungs], 0.15, 3)
    assert chances.tolist() == [pytest.approx([0, 0.75, 0.25]), pytest.approx([0.75, 0.25, 0])]
    for level in (0.0, 0.02, 0.1, 0.2, 0.3):
        met = rung_chances(rungs, saved[rungs], level, 3)
        assert float((met @ saved).mean()) == pytest.approx(level, abs=1e-12)
        assert met.sum(1).tolist() == pytest.approx([1, 1])


def test_interval_covers_what_it_claims() -> None:
    """Differences of bounded damages whose raw damage is log-normal, as images' is: 60 cases, 95 % within 2.5 points."""
    generator = torch.Generator().manual_seed(0)

    def differences(count: int) -> Tensor:
        raw = (torch.randn(count, 2, generator=generator, dtype=torch.float64) * 1.8 - 6).exp() * torch.tensor([1.0, 0.6])
        bounded = bounded_damage(raw, VISIBLE)
        return bounded[:, 0] - bounded[:, 1]

    truth = float(differences(2_000_000).mean())
    trials = 600
    covered = sum(low <= truth <= high for _, low, high in (paired_interval(differences(60)) for _ in range(trials)))
    assert 0.93 <= covered / trials <= 0.975


def test_interval_resamples_whole_clusters() -> None:
    """Ten copies of every case say no more than the case; as cases of their own they would shrink the interval threefold."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    copies, clusters = values.repeat_interleave(10), torch.arange(40).repeat_interleave(10)
    assert paired_interval(copies, clusters) == pytest.approx(paired_interval(values))
    _, low, high = paired_interval(copies)
    _, wide_low, wide_high = paired_interval(values)
    assert high - low < 0.4 * (wide_high - wide_low)
    assert paired_interval(torch.full((5,), 0.25)) == (0.25, 0.25, 0.25)


def test_gain_of_choosing_by_hand() -> None:
    """λ = 1, two cases: each best rung gives 0.5 and 0.0, the best single rung 0.1 on average; λ = 0 has nothing to choose."""
    cost = torch.tensor([[0.0, 0.0], [0.0, 0.8]])
    gains = gain_of_choosing(cost, torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0]))
    assert gains.tolist() == pytest.approx([0.25 - 0.1, 0.0015])


def test_critic_loss_by_hand() -> None:
    """Damage ½ has log-odds 0, and none at all counts as a thousandth: log(1/999)."""
    log_odds = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    loss = critic_loss(log_odds, critic_targets(torch.tensor([[0.5, 0.0]]), torch.tensor([True])))
    assert loss.tolist() == pytest.approx([(1 + 2 * math.log(999) ** 2) / 4])


def test_critic_targets_by_hand() -> None:
    """Two rungs that move together but for a small difference: one direction keeps what is common, about the mean of those chosen."""
    log_odds = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.1, -0.1], [-0.1, 0.1], [3.0, 1.0]])
    chosen = torch.tensor([True, True, True, True, False])
    target = critic_targets(log_odds.sigmoid(), chosen, 1)
    assert torch.allclose(target, torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]), atol=1e-5)
    assert torch.allclose(critic_targets(log_odds.sigmoid(), chosen, 2), log_odds, atol=1e-5)
    assert torch.allclose(critic_targets(log_odds.sigmoid(), chosen), log_odds, atol=1e-5)


def test_folds_keep_a_captions_cases_together() -> None:
    """Captions 2, 5, 7, 9 in turn: the first fold is judged on 2 and 7, the second on 5 and 9."""
    captions = torch.tensor([7, 7, 2, 5, 5, 9])
    judged = [(~kept).tolist() for kept in kept_by_folds(captions, 2)]
    assert judged == [[True, True, True, False, False, False], [False, False, False, True, True, True]]


def test_parts_are_judged_by_their_own_policies() -> None:
    """Cross-fitting: two halves, each decided by the policy of the other half; as one, both by a policy that saw neither."""
    sights, damage = toy_cases(400, seed=6)
    halves = [torch.arange(400) % 2 == half for half in (0, 1)]
    policies = [fit(sights[kept], damage[kept], policy_gradient=False) for kept in halves]
    parts = [HeldOut(policy, sights[~kept], damage[~kept], damage[kept]) for policy, kept in zip(policies, halves, strict=True)]
    crossed = measure_outcome(parts, toy_tree(), VISIBLE, levels=(0.2,))
    assert crossed.num_cases == 400
    assert crossed.at(0.2).gap_closed >= 0.8
    swapped = [HeldOut(policies[1 - place], part.sights, part.damage, part.static_damage) for place, part in enumerate(parts)]
    assert measure_outcome(swapped, toy_tree(), VISIBLE, levels=(0.2,)).at(0.2).policy != crossed.at(0.2).policy


def test_bounded_damage_by_hand() -> None:
    damage = torch.tensor([0.0, 0.003, 0.009])
    assert bounded_damage(damage, 0.003).tolist() == pytest.approx([0, 0.5, 0.75])
    assert visibly_changed(damage, 0.003).tolist() == [0, 0, 1]
