"""What the controller keeps during one generation."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from blockdance.call_shape import CallShape
from blockdance.observation import Observer
from blockdance.schedule import COMPUTE, ReuseSchedule
from blockdance.state import ReuseState


@dataclass
class Call:
    """One forward call as the report needs it."""

    shape: CallShape
    actions: tuple[int, ...]


@dataclass
class Branch:
    """A guidance branch that has calls of its own.

    Args:
        state: its caches; None before its first call and when they are freed.
        size: shape of its latents, without batch and fused branches.
        sizes: shapes of its last call's tensors.
        shape: the same as the report needs it.
        last_step: the last step that called it.
    """

    state: ReuseState | None = None
    size: Any = None
    sizes: list[Any] | None = None
    shape: CallShape | None = None
    last_step: int = -1

    def look(self, inputs: dict[str, Any], timestep: str) -> CallShape:
        """The shape of a call, looked at anew only where its tensors' shapes are not the last call's."""
        sizes = [value.shape for value in inputs.values() if isinstance(value, Tensor)]
        if self.shape is None or self.sizes != sizes:
            self.sizes, self.shape = sizes, CallShape.of(inputs, timestep)
        return self.shape


@dataclass
class Generation:
    """One pass through the denoising loop.

    Args:
        num_images: images of the batch, guidance branches not counted.
        num_steps: steps of the loop.
        schedule: the actions, for each image or one row for all; None as long as a decider has not decided.
        last_step: the last step that ran; −1 before the first.
        branches: by name.
        calls: the forward calls so far.
        observed: what a decider will see at its next decision.
        observer: collects what a decider sees.
        predicted_damage: what the decider expects, `(images,)`; None where it expects nothing.
        is_over: whether the caches are freed for good.
        is_unsplit: whether images computed because their actions differed and the model cannot run rows apart.
    """

    num_images: int
    num_steps: int
    schedule: ReuseSchedule | None
    last_step: int = -1
    branches: dict[str, Branch] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    observed: dict[str, Any] | None = None
    observer: Observer = field(default_factory=Observer)
    predicted_damage: Tensor | None = None
    is_over: bool = False
    is_unsplit: bool = False
    _freed_bytes: int = 0
    _taken: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _planned: tuple[ReuseSchedule | None, list[tuple[int, ...]]] = (None, [])

    def planned(self, step: int) -> tuple[int, ...]:
        """The schedule's actions at a step, one per image; all compute as long as nothing is decided."""
        if self.schedule is None:
            return (COMPUTE,) * self.num_images
        if self._planned[0] is not self.schedule:
            # read once, and not a column of a tensor at every call
            repeats = self.num_images // self.schedule.batch_size
            self._planned = self.schedule, [tuple(actions) * repeats for actions in self.schedule.actions.T.tolist()]
        return self._planned[1][step]

    def take(self, step: int, actions: tuple[int, ...]) -> None:
        """Notes what a call does. Where a step has several calls, one that reuses makes it a step that reuses."""
        before = self._taken.setdefault(step, actions)
        if before != actions:
            self._taken[step] = tuple(max(pair) for pair in zip(before, actions, strict=True))

    def is_beginning(self, step: int) -> bool:
        """Whether a step is the first or the second that runs."""
        return len(self._taken.keys() - {step}) < 2

    @property
    def taken(self) -> list[list[int]]:
        """For each image and step, the action taken; −1 for steps that have not run."""
        not_run = (-1,) * self.num_images
        columns = [self._taken.get(step, not_run) for step in range(self.num_steps)]
        return [list(actions) for actions in zip(*columns, strict=True)]

    @property
    def cache_bytes(self) -> int:
        return sum(branch.state.num_bytes for branch in self.branches.values() if branch.state is not None)

    @property
    def peak_cache_bytes(self) -> int:
        """Most bytes that the caches held: they grow until they are freed."""
        return max(self._freed_bytes, self.cache_bytes)

    @property
    def has_reused(self) -> bool:
        return any(action > 0 for actions in self._taken.values() for action in actions)

    def free(self) -> None:
        """Frees the caches; what is computed next is kept again."""
        for branch in self.branches.values():
            self.keep(branch, None)

    def keep(self, branch: Branch, state: ReuseState | None) -> None:
        """Gives a branch other caches, or none."""
        self._freed_bytes = self.peak_cache_bytes
        branch.state = state

    def end(self) -> None:
        """Frees everything but what the report needs."""
        self.free()
        self.observed, self.observer = None, Observer()
        self.is_over = True
