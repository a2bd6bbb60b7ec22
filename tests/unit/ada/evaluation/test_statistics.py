"""Bootstrap intervals: hand cases, and coverage by simulation."""

import numpy as np
import pytest

from ada.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_mean_difference, bootstrap_median


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_mean([2.5] * 7) == Estimate(2.5, 2.5, 2.5)
    assert bootstrap_median([2.5] * 7) == Estimate(2.5, 2.5, 2.5)


def test_two_values_by_hand() -> None:
    """A resample of {0, 1} has the mean 0, ½ or 1 with probability ¼, ½, ¼: the middle 95 % reach from 0 to 1."""
    assert bootstrap_mean([0.0, 1.0]) == Estimate(0.5, 0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], confidence=0.4) == Estimate(0.5, 0.5, 0.5)


def test_median_ignores_an_outlier_that_moves_the_mean() -> None:
    values = [1.0] * 40 + [1000.0]
    assert bootstrap_median(values) == Estimate(1.0, 1.0, 1.0)
    assert bootstrap_mean(values).value == pytest.approx(1040 / 41)


def test_paired_differences_cancel_the_spread_of_the_prompts() -> None:
    prompts = np.random.default_rng(0).normal(scale=100.0, size=50)
    better = bootstrap_mean_difference((prompts + 0.25).tolist(), prompts.tolist())
    assert (better.value, better.low, better.high) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_differences_refuse_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bootstrap_mean_difference([1.0, 2.0], [1.0])


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    assert bootstrap_mean([3.0]) == Estimate(3.0, None, None)
    assert bootstrap_mean([3.0]).half_width is None
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([])


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=30).tolist()
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_interval_of_the_mean_is_as_wide_as_theory_says() -> None:
    """2 · 1.96 · s / √n for 400 normal values."""
    values = np.random.default_rng(2).normal(size=400)
    estimate = bootstrap_mean(values.tolist())
    assert estimate.half_width == pytest.approx(1.96 * values.std() / 20, rel=0.05)


@pytest.mark.parametrize("statistic", [bootstrap_mean, bootstrap_median])
def test_coverage(statistic: object) -> None:
    """About 95 % of the intervals of 300 simulated evaluations of 64 prompts hold the truth."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        estimate = statistic(generator.normal(loc=1.0, size=64).tolist())  # type: ignore[operator]
        held += estimate.low <= 1.0 <= estimate.high
    assert 0.90 * 300 <= held <= 0.99 * 300
