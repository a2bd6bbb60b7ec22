"""What a kind of reuse has to say; everything else in this package treats all kinds alike."""

from typing import NamedTuple, Protocol

from blockdance.kinds.views import View
from blockdance.layouts import BlockStack


class Keep(NamedTuple):
    """Something of a block that is kept for later steps; every call looks things up by it, so it is hashed as quickly as a tuple.

    Args:
        position: the block, in execution order.
        capture: the view that runs the block and writes what is kept.
    """

    position: int
    capture: type[View]


class StandIn(NamedTuple):
    """What takes a skipped block's place.

    Args:
        view: the view that is called instead of the block.
        keep: what was kept that the view is given; None where it needs nothing.
    """

    view: type[View]
    keep: Keep | None = None


class Kind(Protocol):
    """One kind of reuse: action `k` of a schedule stands for its `k-1`-th kind.

    A new technique is a frozen dataclass with these members, in a file of its own, listed in `KINDS`.
    """

    @property
    def order(self) -> int:
        """How many computed steps it needs beyond the first: 0 or 1."""

    @property
    def skipped_blocks(self) -> tuple[int, ...]:
        """The blocks that do not run."""

    def keeps(self, stack: BlockStack) -> tuple[Keep, ...]:
        """What a step of this kind needs of earlier steps."""

    def stand_in(self, position: int, stack: BlockStack) -> StandIn | None:
        """What takes a block's place; None where the block runs."""

    def slope(self, sigma: float, newest: float, previous: float) -> float:
        """The factor s of what is injected, o₁ + s·(o₁ − o₀), for noise levels of this step and the two computed ones.

        It is not called for order 0, which injects o₁.
        """
