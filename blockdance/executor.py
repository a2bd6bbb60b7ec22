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

    Raises:
        ScheduleError: a kind names a block that the model does not have.
    """

    def __init__(
        self, transformer: nn.Module, layout: BlockLayout, kinds: Sequence[Kind], observed: Sequence[int] = ()
    ) -> None:
        self.num_blocks = len(block_stack(transformer, layout))
        for kind in kinds:
            if kind.skipped_blocks[-1] >= self.num_blocks:
                raise ScheduleError(
                    f"Block {kind.skipped_blocks[-1]} does not exist: the model has {self.num_blocks} blocks, 0 to "
                    f"{self.num_blocks - 1}."
                )
        self.kinds = tuple(kinds)
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
    ) -> Any:
        """Calls `forward` once per distinct action, on the rows that take it; returns the output of the whole batch.

        Args:
            forward: the transformer's call.
            args, kwargs: its inputs for all `state.num_rows` rows.
            state: updated by computing rows, read by reusing ones.
            actions: one per image.
            sigma: noise level of this step.
        """
        groups: dict[int, list[int]] = {}
        for row in range(state.num_rows):
            groups.setdefault(actions[row % state.num_images], []).append(row)
        if len(groups) == 1:
            action, rows = groups.popitem()
            return self._run_group(forward, args, kwargs, state, action, rows, sigma)
        outputs = []
        for action, rows in groups.items():
            group_args, group_kwargs = self._select(args, kwargs, rows, state.num_rows)
            outputs.append(self._run_group(forward, group_args, group_kwargs, state, action, rows, sigma))
        order = torch.tensor([row for rows in groups.values() for row in rows]).argsort().tolist()
        return tree_map(lambda *parts: _restore_order(parts, order), *outputs, is_leaf=_is_list)

    def clear(self) -> None:
        """Lets go of every tensor that a call left in the views."""
        self._views.clear()

    def _run_group(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: ReuseState,
        action: int,
        rows: list[int],
        sigma: float,
    ) -> Any:
        views = self._views
        if action == COMPUTE:
            with views.computing():
                output = forward(*args, **kwargs)
            state.shapes = views.take_shapes(len(rows))
            outputs, changes = views.take_captured()
            for boundary, kept in outputs.items():
                if any(output is None for output in kept):
                    continue  # the call left this block out, as skip-layer guidance does: nothing new to keep
                state.caches[boundary].store(kept, sigma, rows)
        else:
            kind = self.kinds[action - 1]
            if isinstance(kind, BlockReuse):
                views.add({block: state.changes[block].read(kind, sigma, rows) for block in kind.blocks})
            else:
                views.inject(kind.boundary, state.caches[kind.boundary].read(kind, sigma, rows), len(rows), state.shapes)
            with views.reusing(kind):
                output = forward(*args, **kwargs)
            views.let_go()
            changes = views.take_changes()
        for block, change in changes.items():
            state.changes[block].store(change, sigma, rows)
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
            dim = self._layout.batch_dims.get(name, 0)
            return tree_map(lambda leaf: _select_rows(leaf, rows, num_rows, dim), value)

        return (
            tuple(select(name, value) for name, value in zip(self._parameters, args, strict=False)),
            {name: select(name, value) for name, value in kwargs.items()},
        )


def _select_rows(leaf: Any, rows: list[int], num_rows: int, dim: int) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim <= dim or leaf.shape[dim] != num_rows:
        return leaf
    return take_rows(leaf.transpose(0, dim), rows, num_rows).transpose(0, dim)


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _restore_order(parts: Sequence[Any], order: list[int]) -> Any:
    """Joins the groups' outputs, tensors or lists with one element per image, and puts the rows in their order."""
    if isinstance(parts[0], list):
        joined = [element for part in parts for element in part]
        return [joined[row] for row in order]
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return take_rows(torch.cat(list(parts)), order, len(order))
