"""Equal rows of a batch are computed once, and only so many at a time: for everything whose rows do not depend on one another."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from blockdance.rows import RowPlan


def first_equal(tensors: Sequence[Tensor], keys: Sequence[Hashable] | None = None) -> list[int]:
    """For each row the first one that equals it, itself if none.

    Rows are compared by their sums first, which cost one read of the device, and bit by bit where those agree.

    Args:
        tensors: one or more of `(rows, …)`; rows are equal where they are in all of them.
        keys: further things, one per row, that equal rows agree in.
    """
    num_rows = len(tensors[0])
    sums = [tensor.reshape(num_rows, -1).sum(1).double().tolist() for tensor in tensors]
    first: list[int] = []
    known: dict[Hashable, list[int]] = {}
    for row, key in enumerate(zip(*sums, keys or [None] * num_rows, strict=True)):
        alike = known.setdefault(key, [])
        same = next((other for other in alike if all(_are_equal(tensor, row, other) for tensor in tensors)), row)
        if same == row:
            alike.append(row)
        first.append(same)
    return first


def plan_distinct(tensors: Sequence[Tensor], max_rows: int | None = None, keys: Sequence[Hashable] | None = None) -> RowPlan:
    """How to run a batch so that each distinct row is run once.

    Args:
        tensors, keys: what tells rows apart, as in `first_equal`.
        max_rows: most rows that are run at once; None for no limit.
    """
    first = tuple(first_equal(tensors, keys))
    return RowPlan.of((0,) * len(first), first, 1, max_rows)


def _are_equal(tensor: Tensor, row: int, other: int) -> bool:
    return bool(tensor[row].equal(tensor[other]))
