"""Carries out one forward call: groups the rows by action, skips, captures, injects, and puts the rows together again."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.cache import BoundaryCache, take_rows
from blockdance.errors import ScheduleError
from blockdance.layout import BlockLayout
from blockdance.schedule import COMPUTE, Reuse
from blockdance.views import BlockViews


@dataclass
class ReuseState:
    """What a batch carries from step to step: one cache per boundary. Rows are ordered branch by branch."""

    num_images: int
    num_branches: int
    caches: dict[int, BoundaryCache]

    @property
    def num_rows(self) -> int:
        return self.num_images * self.num_branches

    @property
    def num_bytes(self) -> int:
        """Bytes of all caches."""
        return sum(cache.num_bytes for cache in self.caches.values())

    def take(self, images: Sequence[int]) -> "ReuseState":
        """The state of the given images, which may repeat: several continuations of one image share its past."""
        rows = [branch * self.num_images + image for branch in range(self.num_branches) for image in images]
        caches = {boundary: cache.take(rows) for boundary, cache in self.caches.items()}
        return ReuseState(len(images), self.num_branches, caches)

    @staticmethod
    def cat(states: Sequence["ReuseState"]) -> "ReuseState":
        """Several batches at the same step as one."""
        branches = states[0].num_branches
        rows = [
            (index, branch * state.num_images + image)
            for branch in range(branches)
            for index, state in enumerate(states)
            for image in range(state.num_images)
        ]
        caches = {
            boundary: BoundaryCache.gather([state.caches[boundary] for state in states], rows) for boundary in states[0].caches
        }
        return ReuseState(sum(state.num_images for state in states), branches, caches)


class ReuseExecutor:
    """Runs forward calls of one transformer under per-image actions.

    Args:
        transformer: the model, which is left as it is between calls.
        layout: where its blocks are.
        kinds: the kinds of reuse that the actions refer to.

    Raises:
        ScheduleError: a kind names a block that the model does not have.
    """

    def __init__(self, transformer: nn.Module, layout: BlockLayout, kinds: Sequence[Reuse]) -> None:
        self.num_blocks = sum(len(getattr(transformer, name)) for name in layout.lists)
        for kind in kinds:
            if kind.boundary >= self.num_blocks:
                raise ScheduleError(
                    f"Boundary {kind.boundary} does not exist: the model has {self.num_blocks} blocks, 0 to {self.num_blocks - 1}."
                )
        self.kinds = tuple(kinds)
        self._shared = layout.shared_arguments
        self._parameters = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._views = BlockViews(transformer, layout, sorted({kind.boundary for kind in kinds}))

    def new_state(self, num_images: int, num_branches: int) -> ReuseState:
        """An empty state for a new generation."""
        caches = {boundary: BoundaryCache(num_images * num_branches) for boundary in self._views.captured}
        return ReuseState(num_images, num_branches, caches)

    def serves(self, state: ReuseState, action: int, image: int) -> bool:
        """Whether this image has computed often enough for the action."""
        if action == COMPUTE:
            return True
        kind = self.kinds[action - 1]
        return state.caches[kind.boundary].serves(kind, image)

    def run(
        self,
        forward: Callable[..., Any],
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
        order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
        return tree_map(lambda *parts: _restore_order(parts, order), *outputs)

    def clear(self) -> None:
        """Lets go of every tensor that a call left in the views."""
        self._views.clear()

    def _run_group(
        self,
        forward: Callable[..., Any],
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
            views.learn_shapes(len(rows))
            for boundary, slot in views.captured.items():
                state.caches[boundary].store(slot.value, sigma, rows)
                slot.value = None
            return output
        kind = self.kinds[action - 1]
        views.injected[kind.boundary].value = state.caches[kind.boundary].read(kind, sigma, rows)
        views.place_shapes(len(rows))
        with views.reusing(kind.boundary):
            output = forward(*args, **kwargs)
        views.injected[kind.boundary].value = None
        return output

    def _select(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: list[int], num_rows: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Splits every input that has a batch dimension."""

        def select(leaf: Any) -> Any:
            is_batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == num_rows
            return take_rows(leaf, rows, num_rows) if is_batched else leaf

        def select_all(name: str, value: Any) -> Any:
            return value if name in self._shared else tree_map(select, value)

        return (
            tuple(select_all(name, value) for name, value in zip(self._parameters, args, strict=False)),
            {name: select_all(name, value) for name, value in kwargs.items()},
        )


def _restore_order(parts: Sequence[Any], order: Tensor) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return torch.cat(list(parts)).index_select(0, order.to(parts[0].device))
