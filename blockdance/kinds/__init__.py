"""Kinds of reuse: each says itself what it keeps, what it skips, and what it puts in the place of a skipped block."""

from typing import Any

from blockdance.kinds.base import Keep, Kind, StandIn
from blockdance.kinds.boundary import Reuse
from blockdance.kinds.single_blocks import BlockReuse

KINDS: tuple[type[Any], ...] = (Reuse, BlockReuse)
"""The kinds that a plan file may name, told apart by their fields."""

__all__ = ["KINDS", "BlockReuse", "Keep", "Kind", "Reuse", "StandIn"]
