"""A planted task that must be learnt, and the measure of what was learnt."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ladders import build_ladder
from torch import Tensor

from ada.policy import BaseModel, Curve, LadderPolicy
from ada.policy.ladder import DAMAGE_FLOOR
from ada.policy.sight import NUM_SIGNS
from ada.rewards.damage import bounded_damage
from ada.schedules import Mixture, Tree
from ada.training import LadderTraining, LevelOutcome, NothingLearntError, Outcome, measure_outcome
from ada.training.ladder import balanced_reward, critic_loss, critic_targets, gain_of_choosing, kept_by_folds
from ada.training.outcome import HeldOut, paired_interval, rung_chances
from ada.training.run import check_gain

VISIBLE = 0.003
COSTS = [0.1, 0.1]
STRENGTH = torch.tensor([0.0, 0.15, 0.3, 0.6, 1.2, 1.5])
WIDTH = NUM_SIGNS + 8
BASE = BaseModel(transformer="Toy", num_blocks=4, latent_channels=4, prompt_width=0)


def toy_cases(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sights `(cases, nodes, width)` of which one sign tells the sensitivity, and damage exp(sensitivity) · strength."""
    generator = torch.Generator().manual_seed(seed)
    sensitivity = torch.randn(count, generator=generator) * 2
    sights = torch.randn(count, 4, WIDTH, generator=generator)
    sights[:, :, 3] = 5 + 0.7 * sensitivity[:, None]
    return sights, 0.004 * sensitivity.exp()[:, None] * STRENGTH


def build_policy() -> LadderPolicy:
    return LadderPolicy(
        base_model=asdict(BASE), ladder=build_ladder().to_dict(), reuse_costs=COSTS, sight_width=WIDTH, num_components=4
    )


def toy_tree() -> Tree:
    ladder = build_ladder()
    return Tree.of(ladder.actions, ladder.decision_steps)


def prepare(sights: Tensor, damage: Tensor, kept: Sequence[Tensor] = (), **options: Any) -> LadderTraining:
    """Training on these cases, without a trainer."""
    torch.manual_seed(0)
    training = LadderTraining(**{"num_components": 4, "num_directions": None, "prior_cases": 0.0} | options)
    training.prepare(BASE, build_ladder(), COSTS, sights, bounded_damage(damage, VISIBLE), kept)
    return training


def fit(sights: Tensor, damage: Tensor, policy_gradient: bool, steps: int = 150) -> LadderPolicy:
    """Trains by the loss of `LadderTraining`, all cases in each batch."""
    weights = {"critic_weight": 1.0 - policy_gradient, "policy_gradient_weight": float(policy_gradient)}
    training = prepare(sights, damage, **weights)
    optimizer = torch.optim.Adam(training.trained.parameters(), 0.05)
    generator, places = torch.Generator().manual_seed(0), torch.arange(len(sights))
    for _ in range(steps):
        loss, _ = training.loss(places, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    training.measure_errors()
    return training.policy.eval()


def held_out(policy: LadderPolicy, sights: Tensor, damage: Tensor, static_damage: Tensor) -> HeldOut:
    """Cases of a caption each."""
    return HeldOut(policy, sights, damage, static_damage, torch.arange(len(sights)))


@cache
def judge(policy_gradient: bool, shuffled: bool) -> Outcome:
    sights, damage = toy_cases(400, seed=1)
    others, others_damage = toy_cases(400, seed=2)
    if shuffled:
        sights = sights[torch.randperm(len(sights), generator=torch.Generator().manual_seed(3))]
    policy = fit(sights, damage, policy_gradient)
    return measure_outcome([held_out(policy, others, others_damage, damage)], toy_tree(), VISIBLE, levels=(0.15, 0.20))


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
        check_gain(measure_outcome([held_out(knows_nothing.eval(), sights, damage, damage)], toy_tree(), VISIBLE))


def test_worse_anywhere_is_no_gain() -> None:
    def level(saved: float, low: float, high: float) -> LevelOutcome:
        return LevelOutcome(saved, 0.1, 0.2, 0.05, ((low + high) / 2, low, high), 0.1, 0.2, 0.5, 3, 0.5)

    curve = Curve([1.0], [0.2], [0.1], [0.1])
    good = (level(0.15, 0.01, 0.02), level(0.20, 0.01, 0.02))
    check_gain(Outcome(good, curve, 100, 100))
    with pytest.raises(NothingLearntError, match="at 40%: worse saved"):
        check_gain(Outcome((*good, level(0.40, -0.02, -0.01)), curve, 100, 100))
    with pytest.raises(NothingLearntError, match="at 20%: not reached saved"):
        check_gain(Outcome(good[:1], curve, 100, 100))
    with pytest.raises(NothingLearntError, match="2 captions are too few"):
        check_gain(Outcome(good, curve, 100, 2))


def test_outcome_of_a_policy_that_knows_nothing_is_the_mixture() -> None:
    """All images take the same rung at each λ; mixed to a level, that is a static mixture, and no better than the best one."""
    sights, damage = toy_cases(300, seed=5)
    policy = build_policy()
    policy.calibrate(sights, toy_tree().nodes[:, 0], bounded_damage(damage, VISIBLE))
    outcome = measure_outcome([held_out(policy.eval(), sights, damage, damage)], toy_tree(), VISIBLE)
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
    covered = sum(
        low <= truth <= high for _, low, high in (paired_interval(differences(60), torch.arange(60)) for _ in range(trials))
    )
    assert 0.93 <= covered / trials <= 0.975


def test_interval_resamples_whole_clusters() -> None:
    """Ten copies of every case say no more than the case; as cases of their own they would shrink the interval threefold."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    copies, clusters = values.repeat_interleave(10), torch.arange(40).repeat_interleave(10)
    _, wide_low, wide_high = once = paired_interval(values, torch.arange(40))
    assert paired_interval(copies, clusters) == pytest.approx(once)
    _, low, high = paired_interval(copies, torch.arange(400))
    assert high - low < 0.4 * (wide_high - wide_low)
    assert paired_interval(torch.full((5,), 0.25), torch.arange(5)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2], [0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0], [0.3] * 3 + [0.0] * 125])
def test_what_few_captions_say_is_clear_of_nothing(values: list[float]) -> None:
    """As many cases of each change nothing in that; damage is bounded, and so is what is claimed."""
    differences, captions = torch.tensor(values).repeat(20), torch.arange(len(values)).repeat(20)
    centre, low, high = paired_interval(differences, captions)
    assert centre == pytest.approx(sum(values) / len(values))
    assert -1 <= low < 0 < high <= 1


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
    assert len(kept_by_folds(captions, 8)) == 4, "a policy that has seen all captions judges none"


def test_parts_are_judged_by_their_own_policies() -> None:
    """Cross-fitting: two halves, each decided by the policy of the other half; as one, both by a policy that saw neither."""
    sights, damage = toy_cases(400, seed=6)
    halves = [torch.arange(400) % 2 == half for half in (0, 1)]
    policies = [fit(sights[kept], damage[kept], policy_gradient=False) for kept in halves]
    parts = [
        held_out(policy, sights[~kept], damage[~kept], damage[kept]) for policy, kept in zip(policies, halves, strict=True)
    ]
    crossed = measure_outcome(parts, toy_tree(), VISIBLE, levels=(0.2,))
    assert crossed.num_cases == 400
    assert crossed.at(0.2).gap_closed >= 0.8
    swapped = [replace(part, policy=policies[1 - place]) for place, part in enumerate(parts)]
    assert measure_outcome(swapped, toy_tree(), VISIBLE, levels=(0.2,)).at(0.2).policy != crossed.at(0.2).policy


def test_the_mixture_is_chosen_on_other_cases() -> None:
    """One rung saves a fifth at no damage on the cases that are judged, and is the worst on those that the mixture is chosen on."""
    sights, damage = toy_cases(100, seed=7)
    policy = build_policy()
    policy.calibrate(sights, toy_tree().nodes[:, 0], bounded_damage(damage, VISIBLE))
    judged = damage.clone()
    judged[:, 3] = 0.0
    unseen = measure_outcome([held_out(policy.eval(), sights, judged, damage)], toy_tree(), VISIBLE, levels=(0.2,)).at(0.2)
    seen = measure_outcome([held_out(policy.eval(), sights, judged, judged)], toy_tree(), VISIBLE, levels=(0.2,)).at(0.2)
    chosen = Mixture.of(bounded_damage(damage, VISIBLE).double(), policy.ladder.saved(COSTS))
    assert unseen.mixture == pytest.approx(float(chosen.errors(bounded_damage(judged, VISIBLE).double(), 0.2).mean()))
    assert seen.mixture < 0.8 * unseen.mixture


def test_copies_of_cases_make_no_interval_narrower() -> None:
    sights, damage = toy_cases(60, seed=8)
    policy = fit(sights, damage, policy_gradient=False, steps=30)
    once = measure_outcome([held_out(policy, sights, damage, damage)], toy_tree(), VISIBLE, levels=(0.2,)).at(0.2)
    copies = HeldOut(policy, sights.repeat(4, 1, 1), damage.repeat(4, 1), damage, torch.arange(60).repeat(4))
    again = measure_outcome([copies], toy_tree(), VISIBLE, levels=(0.2,)).at(0.2)
    assert again.advantage == pytest.approx(once.advantage, abs=1e-6)


def test_loss_by_hand() -> None:
    """The critic's error and its prior (24 cases' worth, of the 50 that it is trained on), less the reward and the entropy."""
    sights, damage = toy_cases(80, seed=9)
    kept = torch.arange(80) % 8 < 5
    training = prepare(
        sights, damage, [kept], prior_cases=24.0, critic_weight=2.0, policy_gradient_weight=0.5, entropy_weight=0.1
    )
    for policy in training.policies:
        torch.nn.init.normal_(policy.coefficients, std=0.2)
    places = torch.arange(80)
    loss, parts = training.loss(places, torch.Generator().manual_seed(1))
    expected = torch.tensor(0.0)
    for policy, chosen, gain in zip(training.policies, (torch.ones(80, dtype=torch.bool), kept), training._gains, strict=True):
        stages = toy_tree().nodes[:, 0]
        log_odds = policy.log_odds(policy.inputs(sights, stages), stages)
        error = (log_odds - torch.logit(training.cost, DAMAGE_FLOOR)[:, None]).square().mean((1, 2))[chosen].mean()
        prior = 24.0 / int(chosen.sum()) * policy.coefficients.square().sum(1).mean()
        weight = torch.rand(80, generator=torch.Generator().manual_seed(1))
        predicted = policy.expected_damage(log_odds, stages)
        value, spread = balanced_reward(policy, predicted, training.cost, toy_tree(), weight, gain)
        expected = expected + 2.0 * (error + prior) - 0.5 * value[chosen].mean() - 0.1 * spread[chosen].mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert set(parts) == {"critic_loss", "expected_reward", "entropy"}


def test_the_learning_rate_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(*toy_cases(20, seed=10), learning_rate=0.02)
    monkeypatch.setattr(LadderTraining, "trainer", SimpleNamespace(estimated_stepping_batches=4))
    configured = training.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([0.02, 0.02 * 0.8536, 0.01, 0.02 * 0.1464, 0.0], abs=1e-5)
    assert schedule["interval"] == "step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic_weight": 0.0}, "must be 0 or more, and not both 0"),
        ({"prior_cases": -1.0}, "`prior_cases` must be 0 or more; got -1"),
        ({"num_directions": 0}, "`num_directions` must be 1 or more, or null; got 0"),
        ({"folds": 1}, "`folds` must be 2 or more; got 1"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LadderTraining(**options)
