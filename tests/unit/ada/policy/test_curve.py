"""From a wish for a mean to λ, on curves by hand."""

import pytest

from ada.policy import Curve, WishError


def test_a_mean_beside_a_plateau_of_the_curve_lies_between_its_neighbours() -> None:
    """λ of 1, 2 and 4 all spend 60 %, 16 and 32 both 80 %."""
    flat = Curve([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [0.4, 0.4, 0.4, 0.3, 0.2, 0.2], [0.0] * 6, [0.0] * 6)
    assert flat.weight_for_compute(0.65) == pytest.approx(4 * 2**0.5)
    assert flat.weight_for_compute(0.75) == pytest.approx(8 * 2**0.5)


def test_no_mean_is_promised_within_a_jump() -> None:
    """From λ = 2 to 2.1 nearly all images stop reusing: half of them cannot be had between."""
    jumping = Curve([1.0, 1.1, 2.0, 2.1, 2.2], [0.5, 0.45, 0.4, 0.05, 0.0], [0.0] * 5, [0.0] * 5)
    assert [tuple(round(end, 6) for end in ends) for ends in jumping.reachable()] == [(0.5, 0.6), (0.95, 1.0)]
    assert jumping.weight_for_compute(0.6) == pytest.approx(2.0)
    assert jumping.weight_for_compute(0.95) == pytest.approx(2.1)
    assert 2.1 < jumping.weight_for_compute(0.97) < 2.2
    assert [jumping.spends(compute) for compute in (0.5, 0.57, 0.7, 0.96)] == [True, True, False, True]
    with pytest.raises(
        WishError, match=r"between 0\.500 and 0\.600 or between 0\.950 and 1\.000, .*got 0\.8\. `batch_compute`"
    ):
        jumping.weight_for_compute(0.8)
    alone = Curve([1.0, 1.1, 1.2], [0.5, 0.3, 0.0], [0.0] * 3, [0.0] * 3)
    assert alone.weight_for_compute(0.7) == 1.1
    wide = Curve([1.0, 2.0], [0.5, 0.3], [0.0] * 2, [0.0] * 2)
    assert wide.weight_for_compute(0.6) == pytest.approx(2**0.5), "what lies between was not looked at"


def test_a_bent_curve_keeps_its_promise() -> None:
    """Measured shares may rise again: a weight is good only if all larger ones are, and none is given that breaks the promise."""
    bent = Curve([0.5, 1.0, 2.0, 4.0], [0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.05, 0.01], [0.3, 0.1, 0.2, 0.15])
    assert bent.weight_for_changed(0.2) == 1.0
    assert bent.weight_for_changed(0.15) == 4.0
    with pytest.raises(ValueError, match=r"between 0\.150 and 1"):
        bent.weight_for_changed(0.12)
