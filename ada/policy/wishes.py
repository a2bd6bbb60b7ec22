"""What a user wishes of a policy, and that it cannot be had."""

from typing import Any, SupportsFloat

from blockdance import BlockDanceError


class WishError(BlockDanceError):
    """A wish that a policy does not take, or cannot meet."""


def number(name: str, value: Any) -> float:
    """A wish as a float, whatever kind of number it is.

    Raises:
        WishError: it is no number.
    """
    if not isinstance(value, SupportsFloat) or isinstance(value, bool):
        raise WishError(f"`{name}` must be a number; got {value!r}.")
    return float(value)
