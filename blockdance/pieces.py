"""Rows of tensors taken out piece by piece, put in their places, and joined again.

Each piece is contiguous: one piece is narrowed, several are joined in one kernel. No index ever travels to the device, so that rows
of different actions cost no synchronisation.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Consecutive rows `target …` of a whole that are rows `source …` of part number `part`; `repeats` takes one row for all."""

    target: int
    source: int
    length: int
    part: int = 0
    repeats: bool = False


def pieces_of(sources: Sequence[tuple[int, int, int]]) -> tuple[Piece, ...]:
    """The fewest pieces for rows given as (target, part, source), ascending in target."""
    pieces: list[Piece] = []
    start = 0
    while start < len(sources):
        target, part, source = sources[start]
        end = start + 1
        repeats = end < len(sources) and sources[end] == (target + 1, part, source)
        stride = 0 if repeats else 1
        while end < len(sources) and sources[end] == (target + end - start, part, source + stride * (end - start)):
            end += 1
        pieces.append(Piece(target, source, end - start, part, repeats))
        start = end
    return tuple(pieces)


class Splitter:
    """Splits tensors at the edges of pieces: one call, which is quicker than taking out every piece.

    Args:
        spans: the pieces as (first row, number of rows).
        num_rows: rows of the tensors.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], num_rows: int) -> None:
        edges = sorted({0, num_rows, *(edge for start, count in spans for edge in (start, start + count))})
        self._num_rows = num_rows
        self._sizes = [end - start for start, end in pairwise(edges)]
        place = {edge: number for number, edge in enumerate(edges)}
        self.places = [range(place[start], place[start + count]) for start, count in spans]

    def split(self, tensor: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """The parts between the edges; a multiple of the rows may lie along the dimension."""
        factor = tensor.shape[dim] // self._num_rows
        sizes = self._sizes if factor == 1 else [size * factor for size in self._sizes]
        return tensor.split_with_sizes(sizes, dim)


class Joiner:
    """Makes a tensor of pieces of others.

    Args:
        pieces: which rows, in the order of the result.
        counts: how many rows each of the others has.
    """

    def __init__(self, pieces: Sequence[Piece], counts: Sequence[int]) -> None:
        self.is_view = len(pieces) == 1 and not pieces[0].repeats
        self._only = pieces[0]
        self._counts = counts
        self._splitters = [
            Splitter([(piece.source, _length(piece)) for piece in pieces if piece.part == part], count)
            for part, count in enumerate(counts)
        ]
        places = [iter(splitter.places) for splitter in self._splitters]
        self._chosen = [
            (piece.part, place)
            for piece in pieces
            for place in [*next(places[piece.part])] * (piece.length if piece.repeats else 1)
        ]

    def join(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The joined tensor, in one kernel, or a view where it is one piece."""
        if self.is_view:
            tensor, size = parts[self._only.part], parts[self._only.part].shape[dim] // self._counts[self._only.part]
            return tensor.narrow(dim, self._only.source * size, self._only.length * size)
        split = [splitter.split(tensor, dim) for splitter, tensor in zip(self._splitters, parts, strict=True)]
        return torch.cat([split[part][place] for part, place in self._chosen], dim)


def _length(piece: Piece) -> int:
    """Rows of the source that a piece reads."""
    return 1 if piece.repeats else piece.length


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
        self._joiner = Joiner(pieces_of([(target, 0, row) for target, row in enumerate(self.rows)]), [num_rows])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The rows of a tensor with this batch along `dim`, or a multiple of it (frames folded into the batch).

        It is a view of the tensor where the rows are contiguous, or all one.
        """
        if self.is_whole:
            return tensor
        if not tensor.stride(dim):  # one timestep for all
            return tensor.narrow(dim, 0, len(self) * (tensor.shape[dim] // self.num_rows))
        return self._joiner.join([tensor], dim)

    def is_view_of(self, tensor: Tensor, dim: int = 0) -> bool:
        """Whether what `take` gives shares the tensor's memory."""
        return self.is_whole or self._joiner.is_view or not tensor.stride(dim)

    def copy(self, tensor: Tensor) -> Tensor:
        """The rows in memory of their own."""
        taken = self.take(tensor)
        return taken.clone() if self.is_view_of(tensor) else taken


class Placement:
    """Where rows that were computed belong in the batch; a row may belong in several places.

    Args:
        pieces: targets in the batch, sources in what was computed.
        num_parts: rows that were computed.
        num_rows: rows of the whole batch.
    """

    def __init__(self, pieces: Sequence[Piece], num_parts: int, num_rows: int) -> None:
        self._pieces = _cut(pieces)
        self.num_parts = num_parts
        self.num_rows = num_rows
        self.targets = [row for piece in self._pieces for row in range(piece.target, piece.target + piece.length)]
        self.is_whole = num_parts == num_rows and len(self._pieces) == 1
        self._targets = Splitter([(piece.target, piece.length) for piece in self._pieces], num_rows)
        self._sources = Splitter([(piece.source, piece.length) for piece in self._pieces], num_parts)

    @cached_property
    def past(self) -> "Placement":
        """How the target rows of one buffer are put into the same places of another."""
        return Placement(pieces_of([(row, 0, row) for row in self.targets]), self.num_rows, self.num_rows)

    def put(self, buffer: Tensor, part: Tensor) -> None:
        """Writes what was computed into the batch's buffer."""
        if len(self._pieces) == 1:
            (piece,), size = self._pieces, part.shape[0] // self.num_parts
            source = part.narrow(0, piece.source * size, piece.length * size)
            buffer.narrow(0, piece.target * size, piece.length * size).copy_(source)
            return
        written, read = self._targets.split(buffer), self._sources.split(part)
        torch._foreach_copy_(
            [written[place.start] for place in self._targets.places], [read[place.start] for place in self._sources.places]
        )


def _cut(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Pieces cut until none repeats a row and none begins or ends inside the source of another."""
    edges = sorted({edge for piece in pieces for edge in (piece.source, piece.source + _length(piece))})
    cut = []
    for piece in pieces:
        if piece.repeats:
            cut += [Piece(piece.target + offset, piece.source, 1) for offset in range(piece.length)]
            continue
        inside = [edge for edge in edges if piece.source <= edge <= piece.source + piece.length]
        cut += [Piece(piece.target + start - piece.source, start, end - start) for start, end in pairwise(inside)]
    return tuple(cut)
