"""Bounded damage by hand."""

import pytest
import torch

from ada.rewards.damage import VISIBLE_DISTANCE, bounded_damage, visibly_changed


def test_bounded_damage_by_hand() -> None:
    """0 for the reference, ½ at τ, ¾ at 3 τ, and another picture is never more than 1."""
    distance = torch.tensor([0.0, 0.003, 0.009, 1e6])
    assert bounded_damage(distance).tolist() == pytest.approx([0.0, 0.5, 0.75, 1.0])
    assert bounded_damage(distance, visible=0.009).tolist()[2] == pytest.approx(0.5)


def test_visibly_changed_is_above_tau() -> None:
    distance = torch.tensor([0.0, VISIBLE_DISTANCE, 2 * VISIBLE_DISTANCE], dtype=torch.float64)
    assert visibly_changed(distance).tolist() == [0.0, 0.0, 1.0]
