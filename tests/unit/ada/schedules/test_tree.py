"""The tree of a ladder: probabilities, expectation and entropy against enumeration; greedy walks."""

import math

import pytest
import torch
from ladders import actions_of, build_ladder
from torch import Tensor

from ada.schedules import Ladder, Tree, entropy, expected

# rungs by what happens at the first stage: steps 3 and 4 are 00, 10 or 11
BRANCHES = ((0, 1, 2), (3, 4), (5,))


def tree() -> Tree:
    ladder = build_ladder()
    return Tree.of(ladder.actions, ladder.decision_steps)


def enumerate_probabilities(logits: Tensor) -> list[float]:
    """π of every rung for logits `(nodes, rungs)`: branch by the softmax's sum at the root, then the softmax in the branch."""
    root = [math.exp(value) for value in logits[0].tolist()]
    found = []
    for node, branch in enumerate(BRANCHES, 1):
        within = [math.exp(logits[node, rung].item()) for rung in branch]
        found += [sum(root[rung] for rung in branch) / sum(root) * value / sum(within) for value in within]
    return found


def test_nodes_by_hand() -> None:
    assert tree().nodes.tolist() == [[0, 0], [1, 0], [1, 3], [1, 5]]
    assert tree().node_of.tolist() == [[0] * 6, [1, 1, 1, 2, 2, 3]]
    assert tree().num_stages == 2
    expected_open = [[1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    stages, rungs = tree().nodes.T
    assert tree().open[stages, rungs].int().tolist() == expected_open


def test_probabilities_of_a_two_stage_tree() -> None:
    logits = torch.randn(5, 4, 6, dtype=torch.float64)
    found = tree().log_probs(logits).sum(1).exp()
    torch.testing.assert_close(found, torch.tensor([enumerate_probabilities(case) for case in logits], dtype=torch.float64))
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))


def test_each_stage_is_a_distribution_over_its_choices() -> None:
    log_probs = tree().log_probs(torch.randn(1, 4, 6, dtype=torch.float64))[0].exp()
    assert float(log_probs[0, [0, 3, 5]].sum()) == pytest.approx(1)
    assert torch.equal(log_probs[0, :3], log_probs[0, :1].expand(3))
    assert float(log_probs[1, :3].sum()) == pytest.approx(1)
    assert log_probs[1, 5].item() == pytest.approx(1)


def test_probabilities_sum_to_one_where_rungs_coincide() -> None:
    """A ladder for few steps may hold one schedule twice."""
    tree = Tree.of(actions_of("00000000", "00010000", "00010000", "00010010"), (2, 4))
    probabilities = tree.log_probs(torch.randn(3, len(tree.nodes), 4, dtype=torch.float64)).sum(1).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, dtype=torch.float64))


def test_expected_reward_and_its_gradient_against_enumeration() -> None:
    logits = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(2, 6, dtype=torch.float64)
    value = expected(tree().log_probs(logits), rewards)
    by_hand = [
        sum(p * r for p, r in zip(enumerate_probabilities(case), row.tolist(), strict=True))
        for case, row in zip(logits, rewards, strict=True)
    ]
    torch.testing.assert_close(value, torch.tensor(by_hand, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    for place in [(0, 0, 1), (0, 1, 2), (1, 2, 3), (1, 0, 5), (0, 3, 5), (1, 2, 0)]:
        shifted = []
        for shift in (1e-5, -1e-5):
            moved = logits.detach().clone()
            moved[place] += shift
            case = place[0]
            shifted.append(
                sum(p * r for p, r in zip(enumerate_probabilities(moved[case]), rewards[case].tolist(), strict=True))
            )
        assert gradient[place].item() == pytest.approx((shifted[0] - shifted[1]) / 2e-5, abs=1e-8)


def test_gradient_is_the_score_functions() -> None:
    """E[R ∇ log π], summed over the rungs."""
    logits = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(1, 6, dtype=torch.float64)
    log_probs = tree().log_probs(logits)
    (gradient,) = torch.autograd.grad(expected(log_probs, rewards).sum(), logits, retain_graph=True)
    scores = torch.zeros_like(logits)
    for rung in range(6):
        log_prob = log_probs[0, :, rung].sum()
        (score,) = torch.autograd.grad(log_prob, logits, retain_graph=True)
        scores += log_prob.exp().detach() * rewards[0, rung] * score
    torch.testing.assert_close(gradient, scores)


def test_entropy_against_enumeration() -> None:
    logits = torch.randn(3, 4, 6, dtype=torch.float64) * 2
    by_hand = [-sum(p * math.log(p) for p in enumerate_probabilities(case)) for case in logits]
    torch.testing.assert_close(entropy(tree().log_probs(logits)), torch.tensor(by_hand, dtype=torch.float64))
    # undecided: 3, 2 and 1 of the 6 rungs in the branches, so that all have a sixth
    assert entropy(tree().log_probs(torch.zeros(1, 4, 6))).item() == pytest.approx(math.log(6), abs=1e-6)


def test_walk_decides_again_with_what_the_reached_node_says() -> None:
    """At the root rung 4 is best, so steps 3 and 4 are 1 and 0; there rung 3 is. What other nodes say does not count."""
    logits = torch.zeros(2, 4, 6)
    logits[:, 0, 4] = 1.0
    logits[:, 2] = torch.tensor([9.0, 9, 9, 2, 1, 9])
    logits[1, 0, 2] = 2.0  # the second case goes to the branch of rungs 0 to 2, where rung 1 is best
    logits[1, 1, 1] = 1.0
    assert tree().walk(logits).tolist() == [3, 1]


def test_a_rung_that_is_closed_is_not_chosen() -> None:
    logits = torch.zeros(1, 4, 6)
    logits[0, 0] = torch.tensor([0.0, 1, 2, 3, 4, 5])
    logits[0, 1] = torch.tensor([0.0, 3, 2, 0, 0, 9])
    assert tree().walk(logits).tolist() == [5]
    assert tree().choose(logits[:, 1], 1, torch.tensor([2])).tolist() == [1]
    assert tree().choose(logits[:, 1], 1, torch.tensor([3])).tolist() in ([3], [4])


def test_greedy_walk_takes_the_likeliest_rung_of_a_sharp_policy() -> None:
    logits = torch.randn(50, 4, 6, dtype=torch.float64) * 200
    probabilities = tree().log_probs(logits).sum(1).exp()
    assert torch.equal(tree().walk(logits), probabilities.argmax(1))


def test_tree_of_the_shipped_ladder_reaches_every_rung() -> None:
    ladder = Ladder.load("configs/ladders/emoji.json")
    shipped = Tree.of(ladder.actions, ladder.decision_steps)
    for rung in range(len(ladder)):
        logits = torch.zeros(1, len(shipped.nodes), len(ladder))
        logits[..., rung] = 1
        assert shipped.walk(logits).tolist() == [rung]
