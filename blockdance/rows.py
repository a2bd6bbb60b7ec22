"""Which rows of a batch take which action, and how they are taken out of tensors and put together again.

A batch has one row per image and fused guidance branch, ordered branch by branch. Rows are taken out piece by piece, each piece
contiguous: one piece is narrowed, several are joined in one kernel. No index ever travels to the device, so that rows of different
actions cost no synchronisation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Consecutive rows `target …` of a whole that are rows `source …` of part number `part`; `repeats` takes one row for all."""

    target: int
    source: int
    count: int
    part: int = 0
    repeats: bool = False


def pieces_of(sources: Iterable[tuple[int, int, int]]) -> tuple[Piece, ...]:
    """The fewest pieces for rows given as (target, part, source), ascending in target."""
    pieces: list[Piece] = []
    for target, part, source in sources:
        if pieces:
            last = pieces[-1]
            follows = last.part == part and last.target + last.count == target
            if follows and not last.repeats and last.source + last.count == source:
                pieces[-1] = Piece(last.target, last.source, last.count + 1, part)
                continue
            if follows and last.source == source and (last.repeats or last.count == 1):
                pieces[-1] = Piece(last.target, source, last.count + 1, part, repeats=True)
                continue
        pieces.append(Piece(target, source, 1, part))
    return tuple(pieces)


class RowSet:
    """Chosen rows of a batch, in any order.

    Args:
        rows: the rows.
        num_rows: rows of the whole batch.
    """

    def __init__(self, rows: Sequence[int], num_rows: int) -> None:
        self.rows = tuple(rows)
        self.num_rows = num_rows
        self.is_whole = self.rows == tuple(range(num_rows))
        self.pieces = pieces_of((target, 0, row) for target, row in enumerate(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The rows of a tensor with this batch along `dim`, or a multiple of it (frames folded into the batch).

        It is a view of the tensor where the rows are contiguous.
        """
        if self.is_whole:
            return tensor
        return join(self.pieces, [tensor], [self.num_rows], dim)

    def copy(self, tensor: Tensor) -> Tensor:
        """The rows in memory of their own."""
        taken = self.take(tensor)
        return taken.clone() if len(self.pieces) == 1 else taken


def join(pieces: Sequence[Piece], parts: Sequence[Tensor], counts: Sequence[int], dim: int = 0) -> Tensor:
    """A tensor of pieces of others, with `counts` rows each, in one kernel; one piece alone is a view."""
    taken = [_rows_of(parts[piece.part], piece, counts[piece.part], dim) for piece in pieces]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim)


def _rows_of(tensor: Tensor, piece: Piece, num_rows: int, dim: int = 0) -> Tensor:
    size = tensor.shape[dim] // num_rows
    if not piece.repeats:
        return tensor.narrow(dim, piece.source * size, piece.count * size)
    row = tensor.narrow(dim, piece.source * size, size)
    return torch.cat([row] * piece.count, dim)


@dataclass(frozen=True)
class Placement:
    """Where rows that were computed belong in the batch; a row may belong in several places.

    Args:
        pieces: targets in the batch, sources in what was computed.
        num_parts: rows that were computed.
        num_rows: rows of the whole batch.
    """

    pieces: tuple[Piece, ...]
    num_parts: int
    num_rows: int

    @property
    def targets(self) -> list[int]:
        """The rows of the batch that get something."""
        return [row for piece in self.pieces for row in range(piece.target, piece.target + piece.count)]

    @property
    def is_whole(self) -> bool:
        """Whether every row was computed, in its place."""
        return self.num_parts == self.num_rows and len(self.pieces) == 1

    def put(self, buffer: Tensor, part: Tensor) -> None:
        """Writes what was computed into the batch's buffer."""
        size, part_size = buffer.shape[0] // self.num_rows, part.shape[0] // self.num_parts
        for piece in self.pieces:
            target = buffer.narrow(0, piece.target * size, piece.count * size)
            if piece.repeats:
                row = part.narrow(0, piece.source * part_size, part_size)
                target.unflatten(0, (piece.count, size)).copy_(row[None])
            else:
                target.copy_(part.narrow(0, piece.source * part_size, piece.count * part_size))

    def merged(self, old: Tensor, part: Tensor) -> Tensor:
        """The batch with what was computed in its places, in new memory: what a backward pass can go through."""
        fresh = dict(self._sources())
        rows = [(row, 1, fresh[row]) if row in fresh else (row, 0, row) for row in range(self.num_rows)]
        return join(pieces_of(rows), [old, part], [self.num_rows, self.num_parts])

    def _sources(self) -> Iterable[tuple[int, int]]:
        for piece in self.pieces:
            for offset in range(piece.count):
                yield piece.target + offset, piece.source + (0 if piece.repeats else offset)


@dataclass(frozen=True)
class RowGroup:
    """Rows that run together.

    Args:
        action: what they do.
        rows: the rows that are run.
        placement: the rows that their results are for: themselves and their twins.
    """

    action: int
    rows: RowSet
    placement: Placement


class RowStep:
    """How the rows of one call are run: in groups of equal action, and of equal rows only the first.

    Args:
        actions: one per image.
        twins: for each image the first one that equals it so far; None where no two are known to be equal.
        num_branches: fused guidance branches.
        max_rows: most rows of a group; None for no limit.
    """

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
            RowGroup(
                action,
                RowSet([branch * num_images + image for branch in range(num_branches) for image in images], num_rows),
                Placement(
                    pieces_of((row, 0, source) for row, part, source in sources if part == number),
                    len(images) * num_branches,
                    num_rows,
                ),
            )
            for number, (action, images) in enumerate(parts)
        )
        self.is_whole = len(self.groups) == 1 and self.groups[0].rows.is_whole
        self._counts = [len(group.rows) for group in self.groups]

    def join(self, parts: Sequence[Any]) -> Any:
        """The batch's output from the groups': trees of tensors, or lists with one element per row."""
        first = parts[0]
        if isinstance(first, list):
            return [
                parts[piece.part][piece.source + (0 if piece.repeats else offset)]
                for piece in self.pieces
                for offset in range(piece.count)
            ]
        if isinstance(first, Tensor):
            return join(self.pieces, parts, self._counts)
        if type(first) is tuple:
            return tuple(self.join(leaves) for leaves in zip(*parts, strict=True))
        if isinstance(first, dict):  # diffusers' output classes
            return type(first)(**{name: self.join([part[name] for part in parts]) for name in first})
        return first


class RowPlan:
    """The groups of rows of one generation: worked out once for every combination of actions.

    Args:
        num_images: images of the batch.
        num_branches: fused guidance branches.
    """

    def __init__(self, num_images: int, num_branches: int) -> None:
        self.num_images = num_images
        self.num_branches = num_branches
        self._steps: dict[Any, RowStep] = {}

    def step(self, actions: Sequence[int], twins: Sequence[int] | None = None, max_rows: int | None = None) -> RowStep:
        """How rows run that take these actions; the rest as `RowStep` takes it."""
        key = (tuple(actions), None if twins is None else tuple(twins), max_rows)
        if key not in self._steps:
            self._steps[key] = RowStep(actions, twins, self.num_branches, max_rows)
        return self._steps[key]
