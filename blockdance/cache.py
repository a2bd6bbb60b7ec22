"""What one block gave at the last one or two steps that ran it, kept per image row in buffers of our own."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from blockdance.kinds import Kind
from blockdance.pieces import Placement, RowSet
from blockdance.trees import fit_tokens, map_tensors, tensors_of


class RowCache:
    """Keeps what a block gave at the last computed steps of every row, and the noise levels of those steps.

    Rows may have been computed at different steps. What is kept is a tensor or a tuple of tensors (None allowed) whose first size is a
    multiple of the number of rows. The buffers are written in place: what a model or a CUDA graph gives may be freed or overwritten
    afterwards, and an old output never lives beside a new one.

    Args:
        num_rows: images times fused guidance branches.
        history: how many outputs are kept; extrapolation and a policy's features need two.
    """

    def __init__(self, num_rows: int, history: Literal[1, 2] = 2) -> None:
        self.num_rows = num_rows
        self._history = history
        self._newest: Any = None
        self._previous: Any = None
        self._levels: list[tuple[float, ...]] = [()] * num_rows
        """Noise levels of every row's computed steps, the newest first."""
        self.depth = 0
        """How many outputs every row has at least."""

    def store(self, output: Any, sigma: float, placement: Placement) -> None:
        """Adds what rows computed at noise level `sigma`; a copy is taken, which no backward pass goes through."""
        if torch.is_grad_enabled():
            output = map_tensors(Tensor.detach, output)
        if placement.is_whole:
            if self._history == 2:
                self._newest, self._previous = self._previous, self._newest
            self._newest = _overwrite(self._newest, output)
            self._levels = (
                [(sigma,)] * self.num_rows if self._history == 1 else [(sigma, *levels[:1]) for levels in self._levels]
            )
            self.depth = min(self.depth + 1, self._history)
            return
        targets = placement.targets
        if self._history == 2 and self._newest is not None:
            self._previous = _write(self._previous, self._newest, placement.past)
        self._newest = _write(self._newest, output, placement)
        for row in targets:
            self._levels[row] = (sigma, *self._levels[row][: self._history - 1])
        self.depth = min(map(len, self._levels))

    def serves(self, order: int, row: int) -> bool:
        """Whether `row` has computed often enough for reuse of this order."""
        return len(self._levels[row]) > order

    def read(self, kind: Kind, sigma: float, rows: RowSet) -> Any:
        """What a reuse step at noise level `sigma` injects for `rows`: o₁ + s·(o₁ − o₀), or the newest output o₁ as it is.

        It may share the buffer's memory until the next `store`.
        """
        newest = map_tensors(rows.take, self._newest)
        if kind.order == 0:
            return newest
        slopes = [kind.slope(sigma, *self._levels[row]) for row in rows.rows]
        return map_tensors(lambda new, old: _extrapolate(new, old, slopes), newest, map_tensors(rows.take, self._previous))

    def take(self, rows: Sequence[int]) -> "RowCache":
        """A cache of chosen rows, which may repeat, in memory of its own."""
        chosen = RowSet(rows, self.num_rows)
        taken = RowCache(len(rows), self._history)
        taken._newest, taken._previous = (map_tensors(chosen.copy, kept) for kept in (self._newest, self._previous))
        taken._levels = [self._levels[row] for row in rows]
        taken.depth = min(map(len, taken._levels))
        return taken

    def newest_and_rate(self, index: int, rows: RowSet) -> tuple[Tensor, Tensor]:
        """Copies of the newest output of `rows`, and of its change since the one before per change of noise level (zero for rows that
        computed once only), of one stream of the output."""
        newest = _stream(self._newest, index)
        if self._previous is None:
            return rows.copy(newest), torch.zeros_like(rows.take(newest))
        change = rows.take(newest) - rows.take(_stream(self._previous, index))
        steps = [levels[0] - levels[1] if len(levels) > 1 else 0.0 for levels in (self._levels[row] for row in rows.rows)]
        rates = [1.0 / step if step else 0.0 for step in steps]
        return rows.copy(newest), _by_row(torch._foreach_mul, rates, change)

    def forget(self, rows: Sequence[int]) -> None:
        """Takes these rows as never computed."""
        for row in rows:
            self._levels[row] = ()
        self.depth = 0

    @property
    def newest(self) -> Any:
        """The newest output of all rows, in the cache's own memory; None before the first."""
        return self._newest

    @property
    def addresses(self) -> set[int]:
        """Where the memory of what is held lies."""
        return {leaf.untyped_storage().data_ptr() for leaf in tensors_of((self._newest, self._previous))}

    @property
    def num_bytes(self) -> int:
        """Bytes of everything held; no two buffers share memory."""
        # asked for after every call
        return sum(
            [
                kept.nbytes if isinstance(kept, Tensor) else sum(leaf.nbytes for leaf in tensors_of(kept))
                for kept in (self._newest, self._previous)
                if kept is not None
            ]
        )


def _overwrite(buffer: Any, output: Any) -> Any:
    """Copies a whole batch's output into the buffer, or into a new one where it does not fit."""
    if isinstance(output, tuple):
        buffers = buffer if buffer is not None else (None,) * len(output)
        return tuple(_overwrite(one, other) for one, other in zip(buffers, output, strict=True))
    if not isinstance(output, Tensor):
        return output
    if buffer is None or buffer.shape != output.shape:
        return output.clone()
    return buffer.copy_(output)


def _write(buffer: Any, part: Any, placement: Placement) -> Any:
    """Copies some rows' output into the buffer of the whole batch."""
    if isinstance(part, tuple):
        buffers = buffer if buffer is not None else (None,) * len(part)
        return tuple(_write(one, other, placement) for one, other in zip(buffers, part, strict=True))
    if not isinstance(part, Tensor):
        return part
    if buffer is None:
        size = part.shape[0] // placement.num_parts
        buffer = part.new_zeros(size * placement.num_rows, *part.shape[1:])
    elif buffer.shape[1:] != part.shape[1:]:
        # some models pad tokens to the longest sequence of a call, so that rows that ran apart differ in length
        tokens = max(buffer.shape[1], part.shape[1])
        buffer, part = fit_tokens(buffer, tokens), fit_tokens(part, tokens)
    placement.put(buffer, part)
    return buffer


def _stream(output: Any, index: int) -> Tensor:
    return output if isinstance(output, Tensor) else output[index]


def _by_row(function: Callable[..., Sequence[Tensor]], numbers: Sequence[float], *tensors: Tensor) -> Tensor:
    """Applies one of torch's functions of lists to all rows, each with its own number, which travels to the device as an argument of a
    kernel, not as a tensor."""
    runs = [(number, len(list(group))) for number, group in groupby(numbers)]
    size = tensors[0].shape[0] // len(numbers)
    sizes = [count * size for _, count in runs]
    parts = function(*(tensor.split_with_sizes(sizes) for tensor in tensors), [number for number, _ in runs])
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _extrapolate(newest: Tensor, previous: Tensor, slopes: Sequence[float]) -> Tensor:
    """o₁ + s·(o₁ − o₀) with a slope per row."""
    return _by_row(torch._foreach_lerp, [1.0 + slope for slope in slopes], previous, newest)
