"""Reuse of single blocks by what they added: Block Caching (arXiv 2312.03209)."""

from dataclasses import dataclass
from typing import Literal

from blockdance.errors import ScheduleError
from blockdance.kinds.base import Keep, StandIn
from blockdance.kinds.views import AddChange, CaptureChange
from blockdance.layouts import BlockStack


@dataclass(frozen=True, kw_only=True)
class BlockReuse:
    """Skips chosen blocks one by one and adds the change each of them made when it last ran (section 3.1): a block that is not
    reused runs on what the blocks before it gave, and refreshes what is kept of it."""

    blocks: tuple[int, ...]
    """Indices, in execution order, of the blocks that are reused."""

    def __post_init__(self) -> None:
        if not self.blocks or list(self.blocks) != sorted(set(self.blocks)) or self.blocks[0] < 0:
            raise ScheduleError(f"`blocks` must be indices of blocks, ascending and each once; got {self.blocks}.")

    @property
    def order(self) -> Literal[0]:
        """One computed step is enough."""
        return 0

    @property
    def skipped_blocks(self) -> tuple[int, ...]:
        """The blocks that do not run."""
        return self.blocks

    def keeps(self, stack: BlockStack) -> tuple[Keep, ...]:
        """The change that each reused block made."""
        return tuple(Keep(block, CaptureChange) for block in self.blocks)

    def stand_in(self, position: int, stack: BlockStack) -> StandIn | None:
        """The reused blocks add what they changed."""
        return StandIn(AddChange, Keep(position, CaptureChange)) if position in self.blocks else None

    def slope(self, sigma: float, newest: float, previous: float) -> float:
        """The change is added as it was."""
        return 0.0

    def __str__(self) -> str:
        return f"blocks {', '.join(map(str, self.blocks))} one by one"
