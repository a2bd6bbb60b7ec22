"""The arguments of a forward call for some of its rows."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from blockdance.layouts import BlockLayout
from blockdance.pieces import RowSet
from blockdance.trees import map_tensors


def select_rows(
    layout: BlockLayout,
    name: str,
    value: Any,
    rows: RowSet,
    images: RowSet,
    take: Callable[[RowSet, Tensor, int], Tensor] = RowSet.take,
) -> Any:
    """Splits an argument that has a batch dimension; any other is given back as it is.

    Args:
        layout: tells where that dimension is.
        name, value: the argument.
        rows: the rows that are wanted.
        images: for each of them the image that it belongs to.
        take: takes rows of a tensor along a dimension.
    """
    if name in layout.shared_arguments:
        return value
    if name in layout.image_lists and value is not None:
        return [value[row] for row in rows.rows] if len(value) == rows.num_rows else value
    chosen = images if name in layout.per_image_arguments else rows
    dim = layout.batch_dims.get(name, 0)

    def select(leaf: Tensor) -> Tensor:
        return take(chosen, leaf, dim) if leaf.ndim > dim and leaf.shape[dim] == chosen.num_rows else leaf

    return map_tensors(select, value)
