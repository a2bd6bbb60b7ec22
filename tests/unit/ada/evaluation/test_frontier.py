"""Static, held-out, per-image and oracle choices, against cases by hand and brute force."""

from itertools import product

import pytest
import torch

from ada.evaluation.frontier import best_steps, held_out_errors, measure_level, oracle_errors

SAVED = torch.tensor([0.0, 0.2, 0.2, 0.4])
ERRORS = torch.tensor([[0.0, 1.0, 3.0, 4.0], [0.0, 3.0, 1.0, 20.0]])


def test_which_steps_by_hand() -> None:
    """Each image has a favourite of the two schedules that save 20 %."""
    assert best_steps(ERRORS, SAVED, 0.2).tolist() == [1.0, 1.0]


def test_how_many_steps_by_hand() -> None:
    """Saving 20 % on average: both save 20 % for an error of 1 (mean 1), or image 0 saves 40 % and image 1 nothing (mean 2)."""
    assert float(oracle_errors(ERRORS, SAVED, 0.2).mean()) == pytest.approx(1.0)


def test_a_level_between_two_solutions_is_their_mixture() -> None:
    """10 % lies half-way between nothing (0) and 20 % for both (1)."""
    assert float(oracle_errors(ERRORS, SAVED, 0.1).mean()) == pytest.approx(0.5)


def test_the_oracle_is_no_better_than_brute_force_allows() -> None:
    """Every assignment of 5 schedules to 4 images: the oracle's error is on the lower convex hull of all their means."""
    generator = torch.Generator().manual_seed(0)
    saved = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    errors = torch.rand(4, 5, generator=generator) * saved * 5
    points = [
        (float(saved[list(choice)].mean()), float(errors[range(4), list(choice)].mean()))
        for choice in product(range(5), repeat=4)
    ]
    for level in (0.05, 0.17, 0.25, 0.33):
        hull = min(
            (one[1] * (other[0] - level) + other[1] * (level - one[0])) / (other[0] - one[0])
            for one in points
            for other in points
            if one[0] <= level < other[0]
        )
        assert float(oracle_errors(errors, saved, level).mean()) == pytest.approx(hull, abs=1e-5)


def test_choosing_on_the_same_images_is_optimistic_where_there_is_nothing_to_choose() -> None:
    """Schedules of pure noise: the best of 50 looks good on the images that it was chosen on, and is average on others."""
    errors = torch.rand(40, 50, generator=torch.Generator().manual_seed(1))
    level = measure_level(errors, torch.full((50,), 0.3), 0.3, torch.tensor([0]))
    assert level is not None
    assert level.static < 0.44
    assert level.held_out.value == pytest.approx(0.5, abs=0.05)
    assert level.blockdance == pytest.approx(float(errors[:, 0].mean()))


def test_no_gap_where_all_images_are_alike() -> None:
    errors = torch.tensor([[0.0, 1.0, 2.0, 4.0]]).repeat(10, 1)
    level = measure_level(errors, torch.tensor([0.0, 0.2, 0.2, 0.4]), 0.2, torch.tensor([2]))
    assert level is not None
    assert (level.static, level.steps, level.held_out.value, level.oracle.value) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert (level.gap.value, level.gap.low, level.gap.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert level.blockdance == 2.0
    assert level.mixed == pytest.approx(1.0, abs=1e-6)


def test_a_mixture_of_static_schedules_needs_no_adaptivity() -> None:
    """Half the images at random saving nothing (0) and half 40 % (4): a mean of 2, where the one schedule that saves 20 % costs 3."""
    errors = torch.tensor([[0.0, 3.0, 4.0]]).repeat(6, 1)
    level = measure_level(errors, torch.tensor([0.0, 0.2, 0.4]), 0.2, torch.tensor([1]))
    assert level is not None
    assert level.static == 3.0
    assert level.mixed == pytest.approx(2.0, abs=1e-6)


def test_held_out_halves_cover_every_image_as_often() -> None:
    """One schedule only: every image keeps its own error."""
    errors = torch.arange(7.0)[:, None]
    assert held_out_errors(errors, torch.tensor([0.5]), 0.5).tolist() == pytest.approx(list(range(7)))


def test_a_level_that_nothing_reaches() -> None:
    assert measure_level(ERRORS, SAVED, 0.5, torch.tensor([1])) is None
