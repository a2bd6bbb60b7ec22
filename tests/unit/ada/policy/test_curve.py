"""From a wish for a mean to λ, on curves by hand."""

import warnings

import pytest

from ada.policy import Curve


def test_a_mean_beside_a_plateau_of_the_curve_lies_between_its_neighbours() -> None:
    """λ of 1, 2 and 4 all spend 60 %, 16 and 32 both 80 %."""
    flat = Curve([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [0.4, 0.4, 0.4, 0.3, 0.2, 0.2], [0.0] * 6, [0.0] * 6)
    assert flat.weight_for_compute(0.65) == pytest.approx(4 * 2**0.5)
    assert flat.weight_for_compute(0.75) == pytest.approx(8 * 2**0.5)


def test_a_mean_within_a_jump_is_no_promise() -> None:
    """From λ = 2 to 2.1 nearly all images stop reusing: between 0.6 and 0.95 nothing can be had on average."""
    jumping = Curve([1.0, 1.1, 2.0, 2.1, 2.2], [0.5, 0.45, 0.4, 0.05, 0.0], [0.0] * 5, [0.0] * 5)
    assert [jumping.met_instead(compute) for compute in (0.5, 0.57, 0.6, 0.61, 0.94, 0.95, 0.96, 1.0)] == [None] * 8
    assert [jumping.met_instead(compute) for compute in (0.7, 0.8)] == [pytest.approx(0.6), pytest.approx(0.95)]
    with pytest.warns(UserWarning, match=r"spend 0\.95 on average: .* between 0\.60 and 0\.95 .* `batch_compute=0\.8` meets"):
        assert jumping.weight_for_compute(0.8) == 2.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jumping.weight_for_compute(0.6) == pytest.approx(2.0)
        assert jumping.weight_for_compute(0.61) == pytest.approx(2.0)
        assert 2.1 < jumping.weight_for_compute(0.97) < 2.2
        wide = Curve([1.0, 2.0], [0.5, 0.3], [0.0] * 2, [0.0] * 2)
        assert wide.weight_for_compute(0.6) == pytest.approx(2**0.5), "what lies between was not looked at"


def test_a_bent_curve_keeps_its_promise() -> None:
    """Measured shares may rise again: a weight is good only if all larger ones are, and none is given that breaks the promise."""
    bent = Curve([0.5, 1.0, 2.0, 4.0], [0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.05, 0.01], [0.3, 0.1, 0.2, 0.15])
    assert bent.weight_for_changed(0.2) == 1.0
    assert bent.weight_for_changed(0.15) == 4.0
    with pytest.raises(ValueError, match=r"between 0\.150 and 1"):
        bent.weight_for_changed(0.12)
