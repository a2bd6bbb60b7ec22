"""What training logs, by hand."""

import math

import pytest
import torch

from ada.training.signals import greedy_signals, group_signals, static_decisions, update_signals


def test_update_signals_by_hand() -> None:
    """Ratios 1, 2 and ½: their mean, the mean of r − 1 − log r, and two of three outside of 1 ± 0.3."""
    found = update_signals(torch.tensor([[0.0, math.log(2), -math.log(2)]]), torch.zeros(1, 3), 0.3)
    assert found["ratio_mean"].item() == pytest.approx(3.5 / 3)
    assert found["approximate_kl"].item() == pytest.approx((0 + (1 - math.log(2)) + (-0.5 + math.log(2))) / 3, abs=1e-6)
    assert found["clip_fraction"].item() == pytest.approx(2 / 3)
    assert update_signals(torch.ones(1, 2), torch.ones(1, 2), None) == {
        "ratio_mean": 1, "approximate_kl": 0, "clip_fraction": 0
    }  # fmt: skip


def test_group_signals_by_hand() -> None:
    decisions = torch.tensor([[[0, 1], [0, 1]], [[1, 1], [0, 1]]])
    found = group_signals(decisions, torch.tensor([[0.5, 0.5], [0.1, 0.2]]))
    assert found == {"distinct_schedules": 2, "zero_spread": 0.5}


def test_static_decisions_are_blockdance_n() -> None:
    assert static_decisions(6).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 1],
        [0, 1, 1, 0, 1, 1],
        [0, 1, 1, 1, 0, 1],
    ]


def test_greedy_signals_by_hand() -> None:
    """Rungs that save 0, 0.2 and 0.4; one image bears every saving, the other none.

    At λ = 1 the static rewards are 0, 0.2 − 0.25 and 0.4 − 0.45, so that the best is 0, and the policy earns (0.4 + 0) / 2. At λ = 0.1 they
    are 0, 0.175 and 0.355, and it earns (0.4 + (0.2 − 0.05)) / 2.
    """
    cost = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.9]])
    rungs = torch.tensor([[2, 0], [2, 1]])
    found = greedy_signals(rungs, cost, torch.tensor([0.0, 0.2, 0.4]), torch.tensor([1.0, 0.1]))
    assert found["distinct_schedules"] == 3
    assert found["regret_to_static"] == pytest.approx(((0 - 0.2) + (0.355 - 0.275)) / 2, abs=1e-6)
    alike = greedy_signals(torch.tensor([[0, 0], [2, 2]]), cost, torch.tensor([0.0, 0.2, 0.4]), torch.tensor([1.0, 0.1]))
    assert alike == {"distinct_schedules": 2, "regret_to_static": pytest.approx(0, abs=1e-6)}
