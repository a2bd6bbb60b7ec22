"""Policy-gradient maths against hand-made cases, sampling, enumeration and a bandit."""

import itertools
import math

import pytest
import torch

from ada import reinforce


def every_schedule(decisions: int, actions: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(actions), repeat=decisions)))[None]


def test_log_prob_by_hand_and_normalised() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0]]])  # reuse with 3/4, then with 1/5
    actions = torch.tensor([[[1, 0], [0, 1]]])
    expected = torch.tensor([[math.log(0.75 * 0.8), math.log(0.25 * 0.2)]])
    torch.testing.assert_close(reinforce.log_prob(logits, actions), expected)
    total = reinforce.log_prob(torch.randn(1, 3, 3), every_schedule(3, 3)).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


def test_entropy_equals_minus_expected_log_prob() -> None:
    logits = torch.randn(1, 3, 2)
    schedules = every_schedule(3, 2)
    log_probs = reinforce.log_prob(logits, schedules)
    torch.testing.assert_close(reinforce.entropy(logits), -(log_probs.exp() * log_probs).sum(1))
    assert reinforce.entropy(torch.zeros(1, 5, 2)).item() == pytest.approx(5 * math.log(2))


def test_sampling_follows_the_probabilities_and_the_generator() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])
    drawn = reinforce.sample_actions(logits, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 4000, 2)
    torch.testing.assert_close(drawn.float().mean(1), logits.softmax(-1)[..., 1], atol=0.03, rtol=0)
    again = reinforce.sample_actions(logits, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_gradient_is_that_of_the_expected_reward() -> None:
    """Over all schedules, weighted by their probability, REINFORCE gives exactly −∇E[R]."""
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    schedules = every_schedule(3, 2)
    rewards = torch.randn(1, len(schedules[0]), dtype=torch.float64)
    log_probs = reinforce.log_prob(logits, schedules)
    (expected,) = torch.autograd.grad(-(log_probs.exp() * rewards).sum(), logits, retain_graph=True)
    weights = log_probs.exp().detach() * rewards * len(schedules[0])  # the mean of the loss then is the expectation
    (found,) = torch.autograd.grad(reinforce.policy_gradient_loss(log_probs, weights), logits)
    torch.testing.assert_close(found, expected)


def test_clipped_loss_starts_as_reinforce_and_stops_at_the_clip() -> None:
    log_probs = torch.zeros(1, 2, requires_grad=True)
    advantage = torch.tensor([[1.0, -2.0]])
    (first,) = torch.autograd.grad(reinforce.clipped_loss(log_probs, log_probs.detach(), advantage, 0.2), log_probs)
    (plain,) = torch.autograd.grad(reinforce.policy_gradient_loss(log_probs, advantage), log_probs)
    torch.testing.assert_close(first, plain)
    far = torch.tensor([[0.5, -0.5]], requires_grad=True)  # already gained beyond the clip in both
    (clipped,) = torch.autograd.grad(reinforce.clipped_loss(far, torch.zeros(1, 2), advantage, 0.2), far)
    assert clipped.abs().sum() == 0


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert torch.equal(reinforce.advantages(rewards, "none"), rewards)
    assert reinforce.advantages(rewards, "leave_one_out").tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5]]
    torch.testing.assert_close(reinforce.advantages(rewards, "group"), (rewards - 3) / rewards.std())
    assert reinforce.advantages(rewards, "self_critical", torch.tensor([2.0])).tolist() == [[-1, 0, 4]]
    assert reinforce.advantages(rewards, "ema", baseline=0.5).tolist() == [[0.5, 1.5, 5.5]]
    assert reinforce.reward(torch.tensor([[0.5]]), torch.tensor([[-0.1]]), torch.tensor([2.0])).item() == pytest.approx(0.3)


def test_advantages_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="group_size"):
        reinforce.advantages(torch.ones(2, 1), "group")
    with pytest.raises(ValueError, match="greedy"):
        reinforce.advantages(torch.ones(2, 2), "self_critical")
    with pytest.raises(ValueError, match="must be one of"):
        reinforce.advantages(torch.ones(2, 2), "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "self_critical", "leave_one_out", "group", "ema"])
def test_every_advantage_learns_a_bandit(kind: reinforce.AdvantageKind) -> None:
    """Two decisions, of which the first should reuse and the second should not."""
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        actions = reinforce.sample_actions(logits, 8, generator)
        rewards = (actions[..., 0] - actions[..., 1]).float()
        greedy = logits.argmax(-1)
        advantage = reinforce.advantages(rewards, kind, (greedy[:, 0] - greedy[:, 1]).float(), baseline=0.0)
        loss = reinforce.policy_gradient_loss(reinforce.log_prob(logits, actions), advantage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probability = logits.softmax(-1)[0, :, 1]
    assert probability[0] > 0.9
    assert probability[1] < 0.1
