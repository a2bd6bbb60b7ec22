"""Which denoising step is a call? From the pipeline's cache context, else the scheduler's position, else the timestep."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blockdance.errors import StepUnknownError
from blockdance.schedulers import is_unset, steps_of

FUSED_GUIDANCE = "cond_uncond"
"""The `cache_context` in which diffusers' pipelines call the model for both guidance branches at once."""
MAX_CALLS = 64
"""Most calls of one name at one step where nothing but the timestep tells the step: with more, it is not guidance that repeats it."""
MAX_RESTARTS = 8
"""Generations given up after their first step, one after the other, of which nothing is said."""


class Location(NamedTuple):
    """Where a forward call stands in the denoising loop.

    Args:
        step: index of the denoising step.
        branch: which of the calls of this step: the pipeline's name for it (`cond`, `uncond`), and a count where a name repeats.
        is_first: whether it is the first call that carries its name in this step.
        is_new_generation: whether everything before belongs to another generation.
    """

    step: int
    branch: str
    is_first: bool
    is_new_generation: bool


class StepTracker:
    """Follows one pipeline's denoising loop.

    Args:
        pipeline: the pipeline, whose `scheduler` may be exchanged at any time, or None when there is no pipeline.
        num_inference_steps: number of steps, for a transformer used without a pipeline.
        timestep_rises: whether the model counts time from noise to image, against the scheduler: 1 − t, or 1000 − t.
    """

    def __init__(self, pipeline: Any, num_inference_steps: int | None, timestep_rises: bool = False) -> None:
        self._pipeline = pipeline
        self._given_steps = num_inference_steps
        self._timestep_rises = timestep_rises
        self._timesteps: Tensor | None = None
        self._values: list[float] = []
        self.num_steps = 0
        """Steps of the loop."""
        self.sigmas: list[float] = []
        """Noise level of every step: the scheduler's sigmas, else from its alphas, else the timestep."""
        self._last_step: dict[str, int] = {}
        self._last_timestep: dict[str, float] = {}
        self._repeats: dict[str, int] = {}
        self._latents: dict[str, Any] = {}
        self._guess: float | None = None
        self._restarts = 0
        self._rises = timestep_rises
        self._has_turned = False

    def locate(self, timestep: Tensor | float | None, context: Any, latents: Any = None) -> Location:
        """Finds the place of a call.

        Args:
            timestep: what the model was given; of several, the noisiest counts (clean frames of a video have 0).
            context: the `CacheContext` that the pipeline has set, or None.
            latents: what the model was given. Without a pipeline they tell, where a timestep repeats, another guidance branch of the
                same latents from the first step of another generation.

        Raises:
            StepUnknownError: neither context, scheduler nor `num_inference_steps` tells, or the timestep stands still for `MAX_CALLS`.
        """
        name = "call" if context is None else context.name
        changed = self._read_scheduler(context)
        if changed:
            self._guess = None
        step = self._find(name, timestep, context)
        if step >= self.num_steps:
            raise StepUnknownError(
                f"The model was called for step {step + 1} of {self.num_steps}. {self._remedy_for_extra_call}"
            )
        if self._pipeline is None and context is not None:
            self._note_level(step, getattr(context, "sigma", None), timestep)
        is_restart = self._last_step.get(name) == step and self._is_restart(name, context, latents)
        if is_restart and self._pipeline is None:
            step = 0
            self.sigmas[0] = self._values[0] = float("nan") if timestep is None else float(torch.as_tensor(timestep).max())
        is_new_generation = changed or is_restart or not self._last_step or step < self._last_step.get(name, -1)
        if is_new_generation:
            self._last_step.clear()
        # a name that comes again in its step is one more guidance branch of a pipeline that does not name them
        self._repeats[name] = self._repeats[name] + 1 if self._last_step.get(name) == step else 0
        self._last_step[name] = step
        repeat = self._repeats[name]
        if repeat == 0:
            self._restarts = self._restarts if step == 0 else 0
            self._latents[name] = latents.clone() if self._pipeline is None and isinstance(latents, Tensor) else None
        return Location(step, f"{name} {repeat}" if repeat else name, repeat == 0, is_new_generation)

    @property
    def _remedy_for_extra_call(self) -> str:
        if self._pipeline is None:
            return "Pass the number of denoising steps that this loop really takes."
        return (
            "Before another loop over the pipeline's transformer, call `pipe.scheduler.set_timesteps(…)`; for a single call that is no "
            "denoising step, turn BlockDance off: `remove_blockdance(pipe)`."
        )

    def _is_restart(self, name: str, context: Any, latents: Any) -> bool:
        """Whether a call whose timestep is that of the last call belongs to another generation."""
        if self._pipeline is not None or getattr(context, "step_index", None) is not None:
            return False  # the step is told: whatever is called again in it, guidance or tiles, belongs to it
        before = self._latents.get(name)
        is_restart = isinstance(before, Tensor) and not (before.shape == latents.shape and torch.equal(before, latents))
        if not is_restart and self._repeats[name] + 1 == MAX_CALLS:
            raise StepUnknownError(
                f"The model was called more than {MAX_CALLS} times at the same timestep with equal latents, which is no denoising loop. "
                "To time single calls, turn BlockDance off; else apply it to the pipeline, or tell the step: "
                "`with transformer.cache_context(name, step_index=…)`."
            )
        if is_restart:
            self._restarts += 1
            if self._restarts == MAX_RESTARTS:
                warnings.warn(
                    "The timestep does not move from call to call, so BlockDance takes each for the first step of a generation and "
                    "reuses nothing. Apply it to the pipeline, or tell the step: `with transformer.cache_context(name, step_index=…)`.",
                    stacklevel=2,
                )
        return is_restart

    def forget(self) -> None:
        """Drops the position: the next call starts a new generation."""
        self._last_step.clear()
        self._last_timestep.clear()
        self._latents.clear()
        self._guess = None
        self._rises, self._has_turned = self._timestep_rises, False

    def _read_scheduler(self, context: Any) -> bool:
        """Reads timesteps and noise levels where they changed; returns whether they did."""
        scheduler = getattr(self._pipeline, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None:
            count = getattr(context, "num_inference_steps", None) or self._given_steps
            if count is None:
                raise StepUnknownError(
                    "BlockDance was applied to a transformer without its pipeline and cannot know the denoising step. Apply it "
                    "to the pipeline, or pass `num_inference_steps`."
                )
            if len(self._values) != count:
                self.num_steps, self._values, self.sigmas = count, [float("nan")] * count, [float("nan")] * count
                return True
            return False
        # `set_timesteps` makes a new tensor, so identity tells two generations apart even with equal values
        if timesteps is self._timesteps:
            return False
        if is_unset(scheduler):
            raise StepUnknownError(
                f"The {type(scheduler).__name__} of this {self._pipeline.__class__.__name__} was never given its timesteps, so another "
                "scheduler drives this loop, and the denoising step is unknown. Use the pipeline's own, after "
                "`pipe.scheduler.set_timesteps(…)`, or apply BlockDance to the transformer alone: `apply_blockdance(pipe.transformer, …, "
                "num_inference_steps=…)`."
            )
        self._timesteps = timesteps
        self._values, self.sigmas = steps_of(scheduler)
        self.num_steps = len(self._values)
        return True

    def _note_level(self, step: int, sigma: float | None, timestep: Tensor | float | None) -> None:
        """Without a scheduler: the noise level that the context tells, else the timestep."""
        if sigma is not None:
            self.sigmas[step] = float(sigma)
        elif timestep is not None and math.isnan(self.sigmas[step]):
            self.sigmas[step] = float(torch.as_tensor(timestep).max())

    def _find(self, name: str, timestep: Tensor | float | None, context: Any) -> int:
        if context is not None and context.step_index is not None:
            return int(context.step_index)
        scheduler = getattr(self._pipeline, "scheduler", None)
        # most schedulers count their own steps; asking them spares reading the timestep back from the GPU
        position = getattr(scheduler, "step_index", None)
        position = getattr(scheduler, "begin_index", None) if position is None else position
        if position is None and isinstance(timestep, Tensor) and isinstance(self._timesteps, Tensor):
            position = _place_in(self._timesteps, timestep)
        if position is not None:
            return int(position)
        value = None if timestep is None else float(torch.as_tensor(timestep).max())
        if scheduler is not None:
            is_float = isinstance(timestep, Tensor) and timestep.is_floating_point()
            return self._search(name, value, scheduler, torch.finfo(timestep.dtype).eps if is_float else 0.0)  # type: ignore[union-attr]
        return self._count(name, value)

    def _search(self, name: str, value: float | None, scheduler: Any, precision: float) -> int:
        """Position of a timestep, which is rounded to its `precision`, in the scheduler's; the next equal one when a Heun-like scheduler
        repeats it."""
        if value is None:
            raise StepUnknownError("The model was called without a timestep, so its denoising step is unknown.")
        # half precision rounds timesteps; some pipelines scale them to [0, 1], or turn them round
        given = (value, value * 1000) if not self._timestep_rises else (1000 - value, 1000 * (1 - value))
        distances = [min(abs(one - candidate) for one in given) for candidate in self._values]
        nearest = min(distances)
        if nearest > max(1e-3 * max(1.0, max(self._values)), value * precision):
            is_first = not self._last_step or self._guess == value
            if hasattr(scheduler, "step_index") and is_first:  # no step taken yet, by a pipeline with timesteps of its own
                self._guess = value
                return 0
            raise StepUnknownError(
                f"The model was called at timestep {value:g}, which is none of the scheduler's {self.num_steps} timesteps "
                f"({self._values[0]:g} … {self._values[-1]:g}). Apply BlockDance to the pipeline whose scheduler drives this loop; for a "
                "single call that is no denoising step, turn it off: `remove_blockdance(pipe)`."
            )
        equal = [step for step in range(self.num_steps) if distances[step] == nearest]
        last = self._last_step.get(name, -1)
        later = [step for step in equal if step > last]
        repeats = bool(later) and last in equal and later[0] == last + 1
        return later[0] if repeats or (later and last not in equal) else equal[0]

    def _count(self, name: str, value: float | None) -> int:
        """Without a scheduler: one step further, unless the timestep turned back, which starts a new generation. The model tells which
        way is back; where the timestep turns at two steps in a row, this loop goes the other way, as inversion does."""
        last, previous = self._last_step.get(name), self._last_timestep.get(name)
        if last is None:
            step = 0
        elif value is None or previous is None:
            step = last + 1
        elif value == previous:
            step = last
        else:
            turns = (value > previous) != self._rises
            if turns and self._has_turned:
                self._rises, turns = not self._rises, False
            self._has_turned = turns
            step = 0 if turns else last + 1
            if turns:  # also from a first step, where only the timestep tells that this is not the same step again
                self._last_step.clear()
        if value is not None:
            self._last_timestep[name] = value
            if step < self.num_steps:
                self.sigmas[step] = self._values[step] = value
        return step


def _place_in(timesteps: Tensor, timestep: Tensor) -> int | None:
    """Index of a timestep that is a view of one of these, as a loop over them gives it: told by its address, so that nothing is read
    from the device. None where it is not such a view."""
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr() or timesteps.ndim != 1:
        return None
    is_one = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    place, rest = divmod(int(timestep.storage_offset() - timesteps.storage_offset()), timesteps.stride(0))
    return place if is_one and rest == 0 and 0 <= place < len(timesteps) else None
