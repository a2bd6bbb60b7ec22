"""Which rows of a batch take which action: worked out once for every combination of actions.

A batch has one row per image and fused guidance branch, ordered branch by branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from blockdance.pieces import Joiner, Placement, RowSet, pieces_of


@dataclass(frozen=True)
class RowGroup:
    """Rows that run together.

    Args:
        action: what they do.
        rows: the rows that are run.
        images: for each of them the image that it belongs to.
        placement: the rows that their results are for: themselves and their twins.
    """

    action: int
    rows: RowSet
    images: RowSet
    placement: Placement


class RowPlan:
    """How the rows of one call are run: in groups of equal action, and of equal rows only the first.

    Args:
        actions: one per image.
        twins: for each image the first one that equals it so far; None where no two are known to be equal.
        num_branches: fused guidance branches.
        max_rows: most rows of a group; None for no limit.
    """

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(
        actions: tuple[int, ...], twins: tuple[int, ...] | None, num_branches: int, max_rows: int | None = None
    ) -> "RowPlan":
        """The plan for these actions: schedules repeat from generation to generation, and a plan holds no tensor."""
        return RowPlan(actions, twins, num_branches, max_rows)

    def __init__(
        self, actions: Sequence[int], twins: Sequence[int] | None, num_branches: int, max_rows: int | None = None
    ) -> None:
        num_images = len(actions)
        num_rows = num_images * num_branches
        limit = num_images if max_rows is None else max(1, max_rows // num_branches)
        parts: list[tuple[int, list[int]]] = []
        filling: dict[int, int] = {}
        places: dict[tuple[int, int], tuple[int, int]] = {}
        keys = [(action, image if twins is None else twins[image]) for image, action in enumerate(actions)]
        for image, (key, action) in enumerate(zip(keys, actions, strict=True)):
            if key in places:
                continue
            if action not in filling or len(parts[filling[action]][1]) == limit:
                filling[action] = len(parts)
                parts.append((action, []))
            running = parts[filling[action]][1]
            places[key] = filling[action], len(running)
            running.append(image)
        sources = []
        for row in range(num_rows):
            branch, image = divmod(row, num_images)
            part, place = places[keys[image]]
            sources.append((row, part, branch * len(parts[part][1]) + place))
        self.pieces = pieces_of(sources)
        self.groups = tuple(
            self._group(action, images, num_images, num_branches, [source for source in sources if source[1] == number])
            for number, (action, images) in enumerate(parts)
        )
        self.is_whole = len(self.groups) == 1 and self.groups[0].rows.is_whole
        self._joiner = Joiner(self.pieces, [len(group.rows) for group in self.groups])

    @staticmethod
    def _group(
        action: int, images: list[int], num_images: int, num_branches: int, sources: list[tuple[int, int, int]]
    ) -> RowGroup:
        num_rows = num_images * num_branches
        rows = RowSet([branch * num_images + image for branch in range(num_branches) for image in images], num_rows)
        image_rows = rows if num_branches == 1 else RowSet(images * num_branches, num_images)
        pieces = pieces_of([(row, 0, source) for row, _, source in sources])
        return RowGroup(action, rows, image_rows, Placement(pieces, len(rows), num_rows))

    def join(self, parts: Sequence[Any]) -> Any:
        """The batch's output from the groups': trees of tensors, or lists with one element per row."""
        first = parts[0]
        if isinstance(first, list):
            return [
                parts[piece.part][piece.source + (0 if piece.repeats else offset)]
                for piece in self.pieces
                for offset in range(piece.length)
            ]
        if isinstance(first, Tensor):
            return self._joiner.join(parts)
        if isinstance(first, tuple):
            joined = [self.join(leaves) for leaves in zip(*parts, strict=True)]
            return tuple(joined) if type(first) is tuple else type(first)(*joined)  # a named tuple
        if isinstance(first, dict):  # diffusers' output classes
            return type(first)(**{name: self.join([part[name] for part in parts]) for name in first})
        return first
