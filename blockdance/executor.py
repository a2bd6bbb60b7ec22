"""Carries out one forward call: groups the rows by action, skips, captures, injects, and puts the rows together again."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from blockdance.errors import ScheduleError
from blockdance.gathered import GatheredInputs
from blockdance.joining import endings_of, stages_of
from blockdance.kinds import Keep, Kind
from blockdance.kinds.views import Capture
from blockdance.layouts import BlockLayout, BlockStack, blocks_of, parameter_names
from blockdance.offloading import led_by_what_runs
from blockdance.overrides import is_compiled
from blockdance.pieces import RowSet
from blockdance.rows import RowGroup, RowPlan
from blockdance.schedule import COMPUTE
from blockdance.selection import select_rows
from blockdance.state import ReuseState
from blockdance.trees import map_tensors, tensors_of
from blockdance.views import form_of, views_of

Forward = Callable[..., Any]
_AS_IT_IS: AbstractContextManager[None] = nullcontext()


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
        self.max_rows = max_rows
        self._histories: dict[Keep, Literal[1, 2]] = {keep: 1 for kind in kinds for keep in kind.keeps(stack)}
        for kind in kinds:
            self._histories |= dict.fromkeys(kind.keeps(stack) if kind.order else (), 2)
        self._histories |= {Keep(boundary, Capture): 2 for boundary in observed}
        self._layout = layout
        self._parameters = parameter_names(transformer)
        forms = [form_of(kind, stack) for kind in kinds]
        views = self._views = views_of(transformer, layout, tuple(self._histories), forms)
        self._actions = [_Action(views.lists[views.computing], views.writes(views.computing))]
        blocks = blocks_of(transformer, layout)
        for kind, form in zip(kinds, forms, strict=True):
            skipped = tuple(blocks[position] for position in kind.skipped_blocks)
            self._actions.append(
                _Action(views.lists[form], views.writes(form), kind, kind.keeps(stack), skipped, len(skipped) == len(blocks))
            )
        self._gives_cache = any(action.gives_cache for action in self._actions)
        self._endings = endings_of(kinds, stack)
        self.joins_rows = True
        """Whether rows may join others between blocks, where the layout lets them: code compiled for blocks would be made anew for it."""
        self.offloaded: Sequence[ModuleGroup] = ()
        """The groups of blocks whose weights are loaded together, where they are."""

    def new_state(self, num_images: int, num_branches: int) -> ReuseState:
        """An empty state for a new generation."""
        return ReuseState.empty(num_images, num_branches, self._histories)

    def possible(self, state: ReuseState, actions: tuple[int, ...]) -> tuple[int, ...]:
        """The actions, one per image; those that need more computed steps than a branch of the image has become compute."""
        scarce = {
            number
            for number in set(actions)
            for keep in self._actions[number].reads
            if state.caches[keep].depth <= self._actions[number].order
        }
        if not scarce:
            return actions
        return tuple(
            COMPUTE if action in scarce and not self._serves(state, self._actions[action], image) else action
            for image, action in enumerate(actions)
        )

    def _serves(self, state: ReuseState, action: "_Action", image: int) -> bool:
        rows = range(image, state.num_rows, state.num_images)
        return all(state.caches[keep].serves(action.order, row) for keep in action.reads for row in rows)

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: ReuseState,
        actions: Sequence[int],
        sigma: float,
        twins: Sequence[int] | None = None,
        apart: bool = True,
    ) -> Any:
        """Calls `forward` once per distinct action on the rows that take it, or once where these can join one another between blocks;
        returns the output of the whole batch.

        Args:
            forward: the transformer's call.
            args, kwargs: its inputs for all `state.num_rows` rows.
            state: updated by computing rows, read by reusing ones.
            actions: one per image.
            sigma: noise level of this step.
            twins: for each image the first one of the batch that equals it so far, itself if none: of equal images that take the
                same action only the first is run, and what it gives is given to all. None where no two are known to be equal.
            apart: whether the rows of this call can run apart; where not, all of them run at once, however many they are.
        """
        twins, max_rows = (twins, self.max_rows) if apart else (None, None)
        plan = RowPlan.of(tuple(actions), None if twins is None else tuple(twins), state.num_branches, max_rows)
        if plan.is_whole:
            return self._run_group(forward, args, kwargs, state, plan.groups[0], sigma)
        if twins is None and self._joins(actions, args, kwargs):
            return self._run_joined(forward, args, kwargs, state, plan, sigma)
        outputs = []
        state.inputs.next_call()
        for group in plan.groups:
            group_args, group_kwargs = self._select(args, kwargs, group, state.inputs)
            outputs.append(self._run_group(forward, group_args, group_kwargs, state, group, sigma))
        return plan.join(outputs)

    def _joins(self, actions: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the rows that do not compute can join those that do, in one call."""
        is_possible = bool(self._endings) and COMPUTE in actions and self.max_rows is None
        return (
            is_possible
            and self.joins_rows
            and not is_compiled()
            and self._layout.joins_rows(dict(zip(self._parameters, args, strict=False)) | kwargs)
        )

    def _run_joined(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: ReuseState,
        plan: RowPlan,
        sigma: float,
    ) -> Any:
        views = self._views
        caches = {keep.position: cache for keep, cache in state.caches.items()}

        def read(number: int, rows: RowSet) -> Any:
            action = self._actions[number]
            return self._read(state, action.reads[0], action, sigma, rows)

        views.flow.begin(stages_of(plan, self._endings), caches, sigma, read)
        views.install(views.joining)
        try:
            output = forward(*args, **kwargs)
            assert views.flow.is_whole, "a boundary whose output is kept is one that runs"
        finally:
            views.restore()
            views.flow.end()
        return _apart(output, state) if self._gives_cache else output

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
        views, action = self._views, self._actions[group.action]
        for keep in action.reads:
            # held by the view alone, which lets go as soon as it has been read
            views.read[keep].value = self._read(state, keep, action, sigma, group.rows)
        for keep in action.writes:
            views.written[keep].receive = partial(state.caches[keep].store, sigma=sigma, placement=group.placement)
        views.install(action.lists)
        try:
            with led_by_what_runs(self.offloaded, action.skipped) if self.offloaded else _AS_IT_IS:
                output = forward(*args, **kwargs)
        finally:
            views.restore()
        views.deliver()
        return _apart(output, state) if action.gives_cache else output

    def _read(self, state: ReuseState, keep: Keep, action: "_Action", sigma: float, rows: RowSet) -> Any:
        """What a kind of reuse gives to rows in place of what it skips."""
        assert action.kind is not None, "steps that compute read nothing"
        read = state.caches[keep].read(action.kind, sigma, rows)
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


@dataclass(frozen=True)
class _Action:
    """What a call of one action takes.

    Args:
        lists: the views, by the paths of the model's lists.
        writes: what its blocks leave for later steps.
        kind: the kind of reuse; None computes.
        reads: what it needs of earlier steps.
        skipped: the blocks that it does not call.
        gives_cache: whether no block runs: a model without a head would hand out the cache's own memory.
    """

    lists: dict[str, nn.ModuleList]
    writes: tuple[Keep, ...]
    kind: Kind | None = None
    reads: tuple[Keep, ...] = ()
    skipped: tuple[nn.Module, ...] = ()
    gives_cache: bool = False

    @property
    def order(self) -> int:
        return 0 if self.kind is None else self.kind.order


def _at_start(leaf: Tensor) -> Tensor:
    """The tensor in memory that begins with it: compiled code would be made anew for views that begin elsewhere."""
    return leaf.clone() if leaf.storage_offset() else leaf


def _apart(output: Any, state: ReuseState) -> Any:
    """The output, copied where it lies in the cache's memory, which later steps write over."""
    held = set().union(*(cache.addresses for cache in state.caches.values()))
    if not any(leaf.untyped_storage().data_ptr() in held for leaf in tensors_of(output)):
        return output
    return map_tensors(lambda leaf: leaf.clone() if leaf.untyped_storage().data_ptr() in held else leaf, output)
