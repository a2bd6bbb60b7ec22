"""Carries out one forward call: groups the rows by action, skips, captures, injects, and puts the rows together again."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.cache import take_rows
from blockdance.errors import ScheduleError
from blockdance.layout import SHARED_ARGUMENTS, BlockLayout, block_stack, parameter_names
from blockdance.schedule import COMPUTE, BlockReuse, Kind, Reuse
from blockdance.state import ReuseState
from blockdance.views import views_of

Forward = Callable[..., Any]


class ReuseExecutor:
    """Runs forward calls of one transformer under per-image actions.

    Args:
        transformer: the model, which is left as it is between calls.
        layout: where its blocks are.
        kinds: the kinds of reuse that the actions refer to.
        observed: boundaries whose last two outputs are kept for a policy to see, though no kind extrapolates them.
        max_rows: most rows that the model is given at once; None for no limit.

    Raises:
        ScheduleError: a kind names a block that the model does not have.
    """

    def __init__(
        self,
        transformer: nn.Module,
        layout: BlockLayout,
        kinds: Sequence[Kind],
        observed: Sequence[int] = (),
        max_rows: int | None = None,
    ) -> None:
        self.num_blocks = len(block_stack(transformer, layout))
        for kind in kinds:
            if kind.skipped_blocks[-1] >= self.num_blocks:
                raise ScheduleError(
                    f"Block {kind.skipped_blocks[-1]} does not exist: the model has {self.num_blocks} blocks, 0 to "
                    f"{self.num_blocks - 1}."
                )
        self.kinds = tuple(kinds)
        self.max_rows = max_rows
        boundaries: dict[int, Literal[1, 2]] = {kind.boundary: 1 for kind in kinds if isinstance(kind, Reuse)}
        extrapolated = (kind.boundary for kind in kinds if isinstance(kind, Reuse) and kind.order == 1)
        self._histories = boundaries | dict.fromkeys((*extrapolated, *observed), 2)
        self._blocks = {block for kind in kinds if isinstance(kind, BlockReuse) for block in kind.blocks}
        self._layout = layout
        self._parameters = parameter_names(transformer)
        self._views = views_of(transformer, layout, kinds)

    def new_state(self, num_images: int, num_branches: int) -> ReuseState:
        """An empty state for a new generation."""
        return ReuseState.empty(num_images, num_branches, self._histories, self._blocks)

    def serves(self, state: ReuseState, action: int, image: int) -> bool:
        """Whether every branch of this image has computed often enough for the action."""
        return action == COMPUTE or state.serves(self.kinds[action - 1], image)

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: ReuseState,
        actions: Sequence[int],
        sigma: float,
        twins: Sequence[int] | None = None,
    ) -> Any:
        """Calls `forward` once per distinct action, on the rows that take it; returns the output of the whole batch.

        Args:
            forward: the transformer's call.
            args, kwargs: its inputs for all `state.num_rows` rows.
            state: updated by computing rows, read by reusing ones.
            actions: one per image.
            sigma: noise level of this step.
            twins: for each image the first image of the batch that equals it and takes the same action; only those run, and the
                others are given what they gave. None where all images differ.
        """
        twins = range(state.num_images) if twins is None else twins
        groups: dict[int, list[int]] = {}
        for image, first in enumerate(twins):
            if image == first:
                groups.setdefault(actions[image], []).append(image)
        parts = [_Part(action, images, twins, state) for action, some in groups.items() for images in self._chunks(some, state)]
        if len(parts) == 1 and len(parts[0].rows) == state.num_rows:
            return self._run_part(forward, args, kwargs, state, parts[0], sigma)
        outputs, runs = [], []
        for part in parts:
            part_args, part_kwargs = self._select(args, kwargs, part.rows, state.num_rows)
            outputs.append(self._run_part(forward, part_args, part_kwargs, state, part, sigma))
            runs.extend(part.rows)
        places = {row: place for place, row in enumerate(runs)}
        order = [places[state.row_of(row, twins)] for row in range(state.num_rows)]
        return tree_map(lambda *some: _restore_order(some, order, len(runs)), *outputs, is_leaf=_is_list)

    def _chunks(self, images: list[int], state: ReuseState) -> list[list[int]]:
        """Images that run together: no more rows than `max_rows`."""
        size = len(images) if self.max_rows is None else max(1, self.max_rows // state.num_branches)
        return [images[start : start + size] for start in range(0, len(images), size)]

    def clear(self) -> None:
        """Lets go of every tensor that a call left in the views."""
        self._views.clear()

    def _run_part(
        self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], state: ReuseState, part: "_Part", sigma: float
    ) -> Any:
        views, rows = self._views, part.rows
        if part.action == COMPUTE:
            with views.computing():
                output = forward(*args, **kwargs)
            state.shapes = views.take_shapes(len(rows))
            outputs, changes = views.take_captured()
            for boundary, kept in outputs.items():
                if any(output is None for output in kept):
                    continue  # the call left this block out, as skip-layer guidance does: nothing new to keep
                state.caches[boundary].store(part.for_twins(kept), sigma, part.served)
        else:
            kind = self.kinds[part.action - 1]
            if isinstance(kind, BlockReuse):
                views.add({block: state.changes[block].read(kind, sigma, rows) for block in kind.blocks})
            else:
                views.inject(kind.boundary, state.caches[kind.boundary].read(kind, sigma, rows), len(rows), state.shapes)
            with views.reusing(kind):
                output = forward(*args, **kwargs)
            views.let_go()
            changes = views.take_changes()
        for block, change in changes.items():
            state.changes[block].store(part.for_twins(change), sigma, part.served)
        return output

    def _select(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: list[int], num_rows: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Splits every input that has a batch dimension."""

        def select(name: str, value: Any) -> Any:
            if name in self._layout.shared_arguments or name in SHARED_ARGUMENTS:
                return value
            if name in self._layout.image_lists and value is not None:
                return [value[row] for row in rows] if len(value) == num_rows else value
            if name in self._layout.per_image_arguments and isinstance(value, Tensor):
                return take_rows(value, [row % len(value) for row in rows], len(value))
            dim = self._layout.batch_dims.get(name, 0)
            return tree_map(lambda leaf: _select_rows(leaf, rows, num_rows, dim), value)

        return (
            tuple(select(name, value) for name, value in zip(self._parameters, args, strict=False)),
            {name: select(name, value) for name, value in kwargs.items()},
        )


class _Part:
    """Rows that go through the model together.

    Args:
        action: what they do.
        images: the images that run.
        twins: for each image of the batch, the one that runs for it.
        state: tells how rows belong to images.
    """

    def __init__(self, action: int, images: Sequence[int], twins: Sequence[int], state: ReuseState) -> None:
        self.action = action
        self.rows = state.rows_of(images)
        running = set(images)
        served = [image for image, first in enumerate(twins) if first in running]
        self.served = state.rows_of(served)
        places = {row: place for place, row in enumerate(self.rows)}
        self._places = [places[state.row_of(row, twins)] for row in self.served]

    def for_twins(self, output: Any) -> Any:
        """What the rows that ran gave, for all rows that they serve."""
        if len(self.served) == len(self.rows):
            return output
        return tree_map(lambda leaf: take_rows(leaf, self._places, len(self.rows)), output)


def _select_rows(leaf: Any, rows: list[int], num_rows: int, dim: int) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim <= dim or leaf.shape[dim] != num_rows:
        return leaf
    return take_rows(leaf.transpose(0, dim), rows, num_rows).transpose(0, dim)


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _restore_order(parts: Sequence[Any], order: list[int], num_rows: int) -> Any:
    """Joins the parts' outputs, tensors or lists with one element per image, and gives every row its own; rows may repeat."""
    if isinstance(parts[0], list):
        joined = [element for part in parts for element in part]
        return [joined[row] for row in order]
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return take_rows(torch.cat(list(parts)), order, num_rows)
