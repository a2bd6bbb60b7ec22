"""Damage on a scale where a person's eye decides."""

from torch import Tensor

VISIBLE_DISTANCE = 0.003
"""Perceptual distance (`PerceptualDistance` of the embedded scorer) at which a person just sees that an image has changed."""


def bounded_damage(damage: Tensor, visible: float = VISIBLE_DISTANCE) -> Tensor:
    """d/(d + τ) in [0, 1): one half where the change is just seen, so that a few images that turn into others do not own the mean.

    Args:
        damage: distances to the reference, 0 or more.
        visible: τ.
    """
    return damage / (damage + visible)


def visibly_changed(damage: Tensor, visible: float = VISIBLE_DISTANCE) -> Tensor:
    """Whether a change can be seen, as 0 or 1."""
    return (damage > visible).to(damage.dtype)
