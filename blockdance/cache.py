"""The last one or two computed outputs at one boundary, kept per image row."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from blockdance.block_views import fit_tokens
from blockdance.errors import StepUnknownError
from blockdance.schedule import Kind, Reuse


class BoundaryCache:
    """Keeps what a boundary put out at the last computed steps of every row, and the noise levels of those steps.

    Rows may have been computed at different steps. What is kept is a tree of tensors (None allowed) whose first size is a multiple of
    the number of rows: at a boundary the tuple (the block's output, outputs that long skips read later, …).

    Args:
        num_rows: images times fused guidance branches.
        history: how many outputs are kept; extrapolation and a policy's features need two.
    """

    def __init__(self, num_rows: int, history: Literal[1, 2] = 2) -> None:
        self.num_rows = num_rows
        self._history = history
        self._newest: Any = None
        self._previous: Any = None
        self._newest_sigma: list[float] = [0.0] * num_rows
        self._previous_sigma: list[float] = [0.0] * num_rows
        self._depth = [0] * num_rows

    def store(self, output: Any, sigma: float, rows: list[int]) -> None:
        """Adds the output that `rows` computed at noise level `sigma`."""
        if self._history == 2 and len(rows) == self.num_rows:
            self._previous = self._newest
        elif self._history == 2:
            self._previous = self._merge(self._previous, self._take(self._newest, rows), rows)
        self._newest = output if len(rows) == self.num_rows else self._merge(self._newest, output, rows)
        for row in rows:
            self._previous_sigma[row], self._newest_sigma[row] = self._newest_sigma[row], sigma
            self._depth[row] = min(self._depth[row] + 1, self._history)

    def serves(self, kind: Kind, row: int) -> bool:
        """Whether `row` has computed often enough for this kind of reuse."""
        return self._depth[row] > kind.order

    def read(self, kind: Kind, sigma: float, rows: list[int]) -> Any:
        """What a reuse step at noise level `sigma` injects for `rows`.

        Order 0 is the newest output o₁ (BlockDance). Order 1 is o₁ + w·(σ − σ₁)/(σ₁ − σ₀)·(o₁ − o₀).

        Raises:
            StepUnknownError: for order 1 where the noise level is not known.
        """
        newest = self._take(self._newest, rows)
        if not isinstance(kind, Reuse) or kind.order == 0:
            return newest
        if math.isnan(sigma):
            raise StepUnknownError(
                "Extrapolation (order 1) needs the noise levels, which neither scheduler, context nor timestep tells here. Apply "
                "BlockDance to the pipeline, or use order 0."
            )
        steps = [kind.weight * self._extrapolation(row, sigma) for row in rows]
        previous = self._take(self._previous, rows)
        return tree_map(lambda new, old: _extrapolate(new, old, steps), newest, previous)

    def _extrapolation(self, row: int, sigma: float) -> float:
        """How far beyond the last two outputs of a row a noise level lies; 0 where both are of one level, as in Heun's two stages."""
        step = self._newest_sigma[row] - self._previous_sigma[row]
        return (sigma - self._newest_sigma[row]) / step if step else 0.0

    def take(self, rows: list[int]) -> "BoundaryCache":
        """A cache of the given rows, which may repeat."""
        return BoundaryCache.gather([self], [(0, row) for row in rows])

    @staticmethod
    def gather(caches: Sequence["BoundaryCache"], rows: Sequence[tuple[int, int]]) -> "BoundaryCache":
        """A cache of chosen rows of several caches, each given as (cache, row)."""
        gathered = BoundaryCache(len(rows), caches[0]._history)
        for name in ("_newest", "_previous"):
            outputs = [getattr(cache, name) for cache in caches]
            if all(output is not None for output in outputs):
                setattr(gathered, name, tree_map(lambda *leaves: _gather(leaves, caches, rows), *outputs))
        for name in ("_newest_sigma", "_previous_sigma", "_depth"):
            setattr(gathered, name, [getattr(caches[cache], name)[row] for cache, row in rows])
        return gathered

    def newest_and_rate(self, index: int, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The boundary's newest output of `rows`, and its change since the one before per change of noise level (zero for rows that
        computed once only), of one stream of the output."""
        newest = _stream(self._take(self._newest, rows)[0], index)
        if self._previous is None:
            return newest, torch.zeros_like(newest)
        change = newest - _stream(self._take(self._previous, rows)[0], index)
        steps = [
            self._newest_sigma[row] - self._previous_sigma[row] if self._depth[row] > 1 else float("inf") for row in rows
        ]
        scale = torch.tensor([1 / step if step else 0.0 for step in steps], dtype=newest.dtype, device=newest.device)
        return newest, change * scale.view(-1, *[1] * (newest.ndim - 1))

    def forget(self, rows: list[int]) -> None:
        """Takes these rows as never computed."""
        for row in rows:
            self._depth[row] = 0

    @property
    def storages(self) -> dict[int, int]:
        """Bytes by address of every storage held."""
        leaves = [leaf for leaf in tree_leaves((self._newest, self._previous)) if isinstance(leaf, Tensor)]
        return {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}

    def _take(self, output: Any, rows: list[int]) -> Any:
        if len(rows) == self.num_rows or output is None:
            return output
        return tree_map(lambda leaf: take_rows(leaf, rows, self.num_rows), output)

    def _merge(self, old: Any, new: Any, rows: list[int]) -> Any:
        if new is None:
            return old
        if old is None:
            old = tree_map(lambda leaf: _empty_rows(leaf, len(rows), self.num_rows), new)
        return tree_map(lambda whole, part: _put_rows(*_of_equal_length(whole, part), rows, self.num_rows), old, new)


def take_rows(tensor: Any, rows: list[int], num_rows: int) -> Any:
    """Selects rows of a tensor whose first size is `num_rows` or a multiple of it (frames folded into the batch)."""
    if not isinstance(tensor, Tensor):
        return tensor
    index = torch.tensor(rows, device=tensor.device)
    return tensor.unflatten(0, (num_rows, -1)).index_select(0, index).flatten(0, 1)


def _gather(leaves: Sequence[Any], caches: Sequence[BoundaryCache], rows: Sequence[tuple[int, int]]) -> Any:
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    offsets = [0, *accumulate(cache.num_rows for cache in caches)]
    whole = leaves[0] if len(leaves) == 1 else torch.cat(list(leaves))
    return take_rows(whole, [offsets[cache] + row for cache, row in rows], offsets[-1])


def _put_rows(whole: Any, part: Any, rows: list[int], num_rows: int) -> Any:
    if not isinstance(whole, Tensor):
        return whole
    index = torch.tensor(rows, device=whole.device)
    return whole.unflatten(0, (num_rows, -1)).index_copy(0, index, part.unflatten(0, (len(rows), -1))).flatten(0, 1)


def _of_equal_length(whole: Any, part: Any) -> tuple[Any, Any]:
    """Some models pad tokens to the longest sequence of a call, so that rows that ran apart differ in length."""
    if not isinstance(whole, Tensor) or whole.shape[1:] == part.shape[1:]:
        return whole, part
    tokens = max(whole.shape[1], part.shape[1])
    return fit_tokens(whole, tokens), fit_tokens(part, tokens)


def _empty_rows(part: Any, num_part: int, num_rows: int) -> Any:
    if not isinstance(part, Tensor):
        return part
    return part.new_zeros(part.shape[0] // num_part * num_rows, *part.shape[1:])


def _extrapolate(newest: Any, previous: Any, steps: list[float]) -> Any:
    if not isinstance(newest, Tensor):
        return newest
    if len(set(steps)) == 1:
        return torch.lerp(previous, newest, 1.0 + steps[0])
    factor = torch.tensor(steps, dtype=newest.dtype, device=newest.device)
    factor = factor.repeat_interleave(newest.shape[0] // len(steps)).view(-1, *[1] * (newest.ndim - 1))
    return newest + factor * (newest - previous)


def _stream(output: Any, index: int) -> Tensor:
    return output if isinstance(output, Tensor) else output[index]
