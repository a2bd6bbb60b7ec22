"""Inputs that are the same at every step, such as prompt embeddings: a group's rows of them are gathered once."""

from dataclasses import dataclass, field
from weakref import ref

import torch
from torch import Tensor

from blockdance.pieces import RowSet

_BATCHES = 2
"""The rows that are kept of an input, in batches: those of the groups of the last two steps, if every step splits the batch anew."""


@dataclass
class _Source:
    """An input, and the rows that were gathered of it.

    Args:
        tensor: the input, which is not kept alive.
        version: counts what was written into it.
        call: the call that brought it first.
        taken: what was gathered of it with the version that it had then, by rows and dimension.
    """

    tensor: ref[Tensor]
    version: int
    call: int
    taken: dict[tuple[tuple[int, ...], int], tuple[Tensor, int]] = field(default_factory=dict)


class GatheredInputs:
    """The rows of constant inputs, during one generation of one branch.

    An input is constant when a later call brings the same tensor, and nothing was written into it since. Latents, which no later call
    brings again, are never kept. Inference tensors do not tell what is written into them, so theirs, and all in inference mode, are
    gathered at every call.
    """

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}
        self._call = 0

    def next_call(self) -> None:
        """A call begins."""
        self._call += 1

    def take(self, rows: RowSet, tensor: Tensor, dim: int) -> Tensor:
        """The rows of an input, as `rows.take` gives them."""
        if rows.is_view_of(tensor, dim) or tensor.is_inference() or torch.is_inference_mode_enabled():
            return rows.take(tensor, dim)
        source = self._sources.get(id(tensor))
        if source is None or source.tensor() is not tensor or source.version != tensor._version:
            sources, key = self._sources, id(tensor)
            # what was gathered goes with it
            gone = ref(tensor, lambda _: sources.pop(key, None))
            sources[key] = _Source(gone, tensor._version, self._call)
            return rows.take(tensor, dim)
        if source.call == self._call:
            return rows.take(tensor, dim)
        chosen = rows.rows, dim
        kept = source.taken.pop(chosen, None)
        if kept is None or kept[0]._version != kept[1]:  # a model may write into what it is given
            taken = rows.take(tensor, dim)
            kept = taken, taken._version
        source.taken[chosen] = kept  # the last used is the last
        while sum(len(other) for other, _ in source.taken) > _BATCHES * rows.num_rows:
            source.taken.pop(next(iter(source.taken)))
        return kept[0]
