"""Mixtures of static schedules and the oracle, against hand-made hulls and brute force."""

import itertools

import pytest
import torch
from torch import Tensor

from ada.schedules import Mixture, gap_closed, oracle_errors

SAVED = torch.tensor([0.0, 0.1, 0.2, 0.4], dtype=torch.float64)


def lower_hull(points: list[tuple[float, float]], level: float) -> float:
    """Smallest error at a saving of at least `level` that some mixture of two points has."""
    best = min(error for saved, error in points if saved >= level - 1e-12)
    for (saved, error), (more, worse) in itertools.combinations(points, 2):
        low, high = sorted([(saved, error), (more, worse)])
        if low[0] < level < high[0]:
            part = (level - low[0]) / (high[0] - low[0])
            best = min(best, (1 - part) * low[1] + part * high[1])
    return best


def test_hull_by_hand() -> None:
    """The schedule that saves 0.2 lies above the line from 0.1 to 0.4, 0.5 + 3.5/3 = 1.67, so it is left out."""
    errors = torch.tensor([[0.0, 0.5, 2.0, 4.0], [0.0, 0.5, 3.0, 4.0]])
    mixture = Mixture.of(errors, SAVED)
    assert mixture.schedules == (0, 1, 3)
    assert mixture.saved == pytest.approx((0.0, 0.1, 0.4))
    assert mixture.shares(0.25, 4).tolist() == pytest.approx([0, 0.5, 0, 0.5])
    assert mixture.errors(errors, 0.25).tolist() == pytest.approx([2.25, 2.25])
    assert mixture.shares(0.0, 4).tolist() == [1, 0, 0, 0]
    assert mixture.shares(0.4, 4).tolist() == pytest.approx([0, 0, 0, 1])
    kept = Mixture.of(torch.tensor([[0.0, 0.5, 1.5, 4.0]]), SAVED)
    assert kept.schedules == (0, 1, 2, 3)


def test_hull_starts_at_the_smallest_error() -> None:
    """A schedule that saves and harms less than computing everything is had for nothing below its saving."""
    mixture = Mixture.of(torch.tensor([[0.5, 0.2, 0.9, 1.0]]), SAVED)
    assert mixture.schedules == (1, 3)
    assert mixture.shares(0.05, 4).tolist() == [0, 1, 0, 0]


def test_of_schedules_that_save_alike_the_better_is_taken() -> None:
    mixture = Mixture.of(torch.tensor([[0.0, 3.0, 1.0, 4.0]]), torch.tensor([0.0, 0.2, 0.2, 0.4], dtype=torch.float64))
    assert mixture.schedules == (0, 2, 3)


def test_hull_against_brute_force() -> None:
    errors = torch.rand(7, 9, dtype=torch.float64)
    saved = torch.rand(9, dtype=torch.float64)
    points = list(zip(saved.tolist(), errors.mean(0).tolist(), strict=True))
    for level in torch.linspace(float(saved.min()), float(saved.max()), 23).tolist():
        found = float(Mixture.of(errors, saved).errors(errors, level).mean())
        assert found == pytest.approx(lower_hull(points, level), abs=1e-9)


def test_a_mixture_made_on_one_half_serves_the_other() -> None:
    """What is chosen on the first cases is charged with the errors of the others, though another choice would be better there."""
    chosen_on = torch.tensor([[0.0, 1.0, 5.0, 9.0]])
    others = torch.tensor([[0.0, 8.0, 1.0, 9.0], [0.0, 6.0, 0.0, 1.0]])
    mixture = Mixture.of(chosen_on, SAVED)
    assert mixture.schedules == (0, 1, 3)
    assert mixture.errors(others, 0.1).tolist() == pytest.approx([8.0, 6.0])
    assert mixture.errors(others, 0.2).tolist() == pytest.approx([(2 * 8 + 9) / 3, (2 * 6 + 1) / 3])
    assert Mixture.of(others, SAVED).errors(others, 0.2).mean() == pytest.approx(0.5)


def brute_oracle(errors: Tensor, level: float) -> float:
    """Every assignment of schedules to cases, and every mixture of two of them."""
    assignments = itertools.product(range(errors.shape[1]), repeat=len(errors))
    points = [
        (float(SAVED[list(chosen)].mean()), sum(float(errors[case, one]) for case, one in enumerate(chosen)) / len(errors))
        for chosen in assignments
    ]
    return lower_hull(points, level)


@pytest.mark.parametrize("seed", range(4))
def test_oracle_against_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(3, 4, generator=generator, dtype=torch.float64).cumsum(1) ** 2
    errors[:, 0] = 0
    for level in (0.0, 0.05, 0.1, 0.17, 0.25, 0.3, 0.39, 0.4):
        found = oracle_errors(errors, SAVED, level)
        assert found.shape == (3,)
        assert float(found.mean()) == pytest.approx(brute_oracle(errors, level), abs=1e-6)


def test_oracle_spends_where_it_harms_least() -> None:
    """The first case bears everything, the second nothing: at 0.2 on average the first saves 0.4."""
    errors = torch.tensor([[0.0, 0.0, 0.0, 0.1], [0.0, 5.0, 6.0, 9.0]])
    assert oracle_errors(errors, SAVED, 0.2).tolist() == pytest.approx([0.1, 0.0], abs=1e-6)
    assert oracle_errors(errors, SAVED, 0.1).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert float(oracle_errors(errors, SAVED, 0.2).mean()) < float(Mixture.of(errors, SAVED).errors(errors, 0.2).mean())


def test_levels_out_of_reach_are_named() -> None:
    errors = torch.rand(3, 4).cumsum(1)
    with pytest.raises(ValueError, match=r"save 40\.0% at most; 45\.0% was asked for"):
        oracle_errors(errors, SAVED, 0.45)
    with pytest.raises(ValueError, match=r"save 40\.0% at most; 45\.0% was asked for"):
        Mixture.of(errors, SAVED).shares(0.45, 4)


def test_gap_closed_by_hand() -> None:
    assert gap_closed(policy=0.3, mixture=0.4, oracle=0.2) == pytest.approx(0.5)
    assert gap_closed(policy=0.5, mixture=0.4, oracle=0.2) == pytest.approx(-0.5)
    assert gap_closed(policy=0.1, mixture=0.2, oracle=0.2) == 0.0
    assert gap_closed(policy=0.3, mixture=0.3 + 1e-16, oracle=0.3 - 1e-16) == 0.0, "rounding is no gap"
