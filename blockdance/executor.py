"""Carries out one forward call: groups the rows by action, skips, captures, injects, and puts the rows together again."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from blockdance.errors import ScheduleError
from blockdance.gathered import GatheredInputs
from blockdance.kinds import Keep, Kind
from blockdance.kinds.views import Capture
from blockdance.layouts import BlockLayout, BlockStack, parameter_names
from blockdance.overrides import is_compiled
from blockdance.rows import RowGroup, RowPlan
from blockdance.schedule import COMPUTE
from blockdance.selection import select_rows
from blockdance.state import ReuseState
from blockdance.trees import map_tensors, tensors_of
from blockdance.views import form_of, views_of

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
        stack = BlockStack.of(transformer, layout)
        self.num_blocks = len(stack)
        for kind in kinds:
            if kind.skipped_blocks[-1] >= self.num_blocks:
                raise ScheduleError(
                    f"Block {kind.skipped_blocks[-1]} does not exist: the model has {self.num_blocks} blocks, 0 to "
                    f"{self.num_blocks - 1}."
                )
        self.kinds = tuple(kinds)
        self.max_rows = max_rows
        self._reads = [kind.keeps(stack) for kind in kinds]
        self._histories: dict[Keep, Literal[1, 2]] = {keep: 1 for reads in self._reads for keep in reads}
        for kind, reads in zip(kinds, self._reads, strict=True):
            self._histories |= dict.fromkeys(reads if kind.order else (), 2)
        self._histories |= {Keep(boundary, Capture): 2 for boundary in observed}
        self._layout = layout
        self._parameters = parameter_names(transformer)
        forms = [form_of(kind, stack) for kind in kinds]
        self._views = views_of(transformer, layout, tuple(self._histories), forms)
        self._lists = [self._views.lists[form] for form in (self._views.computing, *forms)]
        # where no block runs, a model without a head would hand out the cache's own memory
        self._gives_cache = [False, *(len(kind.skipped_blocks) == self.num_blocks for kind in kinds)]

    def new_state(self, num_images: int, num_branches: int) -> ReuseState:
        """An empty state for a new generation."""
        return ReuseState.empty(num_images, num_branches, self._histories)

    def possible(self, state: ReuseState, actions: Sequence[int]) -> list[int]:
        """The actions, one per image; those that need more computed steps than a branch of the image has become compute."""
        scarce = {
            action
            for action in set(actions)
            if action != COMPUTE
            and any(state.caches[keep].depth <= self.kinds[action - 1].order for keep in self._reads[action - 1])
        }
        if not scarce:
            return list(actions)
        return [
            COMPUTE if action in scarce and not self._serves(state, action, image) else action
            for image, action in enumerate(actions)
        ]

    def _serves(self, state: ReuseState, action: int, image: int) -> bool:
        kind, rows = self.kinds[action - 1], range(image, state.num_rows, state.num_images)
        return all(state.caches[keep].serves(kind, row) for keep in self._reads[action - 1] for row in rows)

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
            twins: for each image the first one of the batch that equals it so far, itself if none: of equal images that take the
                same action only the first is run, and what it gives is given to all. None where no two are known to be equal.
        """
        plan = RowPlan.of(tuple(actions), None if twins is None else tuple(twins), state.num_branches, self.max_rows)
        if plan.is_whole:
            return self._run_group(forward, args, kwargs, state, plan.groups[0], sigma)
        outputs = []
        state.inputs.next_call()
        for group in plan.groups:
            group_args, group_kwargs = self._select(args, kwargs, group, state.inputs)
            outputs.append(self._run_group(forward, group_args, group_kwargs, state, group, sigma))
        return plan.join(outputs)

    def clear(self) -> None:
        """Lets go of every tensor that a call left in the views."""
        self._views.clear()

    def _run_group(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: ReuseState,
        group: RowGroup,
        sigma: float,
    ) -> Any:
        views, action = self._views, group.action
        if action != COMPUTE:
            kind = self.kinds[action - 1]
            # held by the views alone, which let go as soon as it has been read
            views.inject({keep: self._read(state, keep, kind, sigma, group) for keep in self._reads[action - 1]})
        views.receive(
            {keep: partial(cache.store, sigma=sigma, placement=group.placement) for keep, cache in state.caches.items()}
        )
        views.install(self._lists[action])
        try:
            output = forward(*args, **kwargs)
        finally:
            views.restore()
        views.deliver()
        return _apart(output, state) if self._gives_cache[action] else output

    def _read(self, state: ReuseState, keep: Keep, kind: Kind, sigma: float, group: RowGroup) -> Any:
        """What a kind of reuse gives to the group's rows in place of what it skips."""
        read = state.caches[keep].read(kind, sigma, group.rows)
        return map_tensors(_at_start, read) if is_compiled() else read

    def _select(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], group: RowGroup, inputs: GatheredInputs
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Splits every input that has a batch dimension."""

        def select(name: str, value: Any) -> Any:
            taken = select_rows(self._layout, name, value, group.rows, group.images, inputs.take)
            return map_tensors(_at_start, taken) if is_compiled() and taken is not value else taken

        return (
            tuple(select(name, value) for name, value in zip(self._parameters, args, strict=False)),
            {name: select(name, value) for name, value in kwargs.items()},
        )


def _at_start(leaf: Tensor) -> Tensor:
    """The tensor in memory that begins with it: compiled code would be made anew for views that begin elsewhere."""
    return leaf.clone() if leaf.storage_offset() else leaf


def _apart(output: Any, state: ReuseState) -> Any:
    """The output, copied where it lies in the cache's memory, which later steps write over."""
    held = set().union(*(cache.addresses for cache in state.caches.values()))
    if not any(leaf.untyped_storage().data_ptr() in held for leaf in tensors_of(output)):
        return output
    return map_tensors(lambda leaf: leaf.clone() if leaf.untyped_storage().data_ptr() in held else leaf, output)
