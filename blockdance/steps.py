"""Which denoising step is a call? From the pipeline's cache context, else the scheduler's timesteps, else their rise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blockdance.errors import StepUnknownError


class StepTracker:
    """Follows one pipeline's denoising loop.

    Args:
        scheduler: returns the scheduler in use, or None when there is no pipeline.
        num_inference_steps: number of steps, for a transformer used without a pipeline.
    """

    def __init__(self, scheduler: Callable[[], Any] | None, num_inference_steps: int | None) -> None:
        self._scheduler = scheduler
        self._given_steps = num_inference_steps
        self._timesteps: Tensor | None = None
        self._values: list[float] = []
        self._sigmas: list[float] = []
        self._last: dict[str, int] = {}
        self._last_timestep: dict[str, float] = {}
        self.is_new_generation = False

    @property
    def num_steps(self) -> int:
        return len(self._values)

    @property
    def num_branches(self) -> int:
        """Separate calls per step in this generation: `cond` and `uncond`, or one."""
        return len(self._last)

    @property
    def sigmas(self) -> list[float]:
        """Noise level of every step: the scheduler's sigmas, else from its alphas, else the timestep."""
        return self._sigmas

    def locate(self, branch: str, timestep: Tensor | float | None, context: Any) -> int:
        """Returns the step of this call and sets `is_new_generation`.

        Raises:
            StepUnknownError: neither context, scheduler nor `num_inference_steps` tells.
        """
        value = None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        changed = self._read_scheduler(context)
        if context is not None and context.step_index is not None:
            step = int(context.step_index)
        elif self._scheduler is not None:
            step = self._search(branch, value)
        else:
            step = self._count(branch, value)
        self.is_new_generation = changed or not self._last or step <= self._last.get(branch, -1)
        if self.is_new_generation:
            self._last.clear()
        self._last[branch] = step
        if value is not None:
            self._last_timestep[branch] = value
        if step >= self.num_steps:
            raise StepUnknownError(
                f"The model was called for step {step + 1} of {self.num_steps}. Pass the number of denoising steps that this "
                "loop really takes."
            )
        return step

    def forget(self) -> None:
        """Drops the position: the next call starts a new generation."""
        self._last.clear()
        self._last_timestep.clear()

    def _read_scheduler(self, context: Any) -> bool:
        """Reads timesteps and noise levels where they changed; returns whether they did."""
        scheduler = self._scheduler() if self._scheduler is not None else None
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None:
            count = getattr(context, "num_inference_steps", None) or self._given_steps
            if count is None:
                raise StepUnknownError(
                    "BlockDance was applied to a transformer without its pipeline and cannot know the denoising step. Apply it "
                    "to the pipeline, or pass `num_inference_steps`."
                )
            if len(self._values) != count:
                self._values, self._sigmas = [float("nan")] * count, [float("nan")] * count
                return True
            return False
        # `set_timesteps` makes a new tensor, so identity tells two generations apart even with equal values
        if timesteps is self._timesteps:
            return False
        self._timesteps = timesteps
        self._values = torch.as_tensor(timesteps).float().tolist()
        self._sigmas = noise_levels(scheduler, self._values)
        return True

    def _search(self, branch: str, value: float | None) -> int:
        """Position of a timestep in the scheduler's; the next equal one when a Heun-like scheduler repeats it."""
        if value is None:
            raise StepUnknownError("The model was called without a timestep, so its denoising step is unknown.")
        distances = [abs(value - candidate) for candidate in self._values]
        # half precision rounds timesteps; pipelines that scale them to [0, 1] are off by a constant factor
        scaled = [abs(value * 1000 - candidate) for candidate in self._values]
        nearest = min(min(distances), min(scaled))
        tolerance = 1e-3 * max(1.0, max(self._values))
        if nearest > tolerance:
            raise StepUnknownError(
                f"The model was called at timestep {value:g}, which is none of the scheduler's {self.num_steps} timesteps "
                f"({self._values[0]:g} … {self._values[-1]:g}). Apply BlockDance to the pipeline whose scheduler drives this loop."
            )
        equal = [step for step in range(self.num_steps) if min(distances[step], scaled[step]) == nearest]
        last = self._last.get(branch, -1)
        later = [step for step in equal if step > last]
        repeats = bool(later) and last in equal and later[0] == last + 1
        return later[0] if repeats or (later and last not in equal) else equal[0]

    def _count(self, branch: str, value: float | None) -> int:
        """Without a scheduler: one step further, unless the timestep rose, which starts a new generation."""
        last = self._last.get(branch)
        if last is None or (value is not None and value > self._last_timestep.get(branch, value)):
            step = 0
        elif value is not None and value == self._last_timestep.get(branch):
            step = last
        else:
            step = last + 1
        if value is not None and step < self.num_steps:
            self._sigmas[step] = self._values[step] = value
        return step


def noise_levels(scheduler: Any, timesteps: list[float]) -> list[float]:
    """Noise level of every timestep: the scheduler's `sigmas`, else √((1 − ᾱ)/ᾱ), else the timestep itself."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(timesteps):
        given: list[float] = torch.as_tensor(sigmas).float().tolist()
        return given[: len(timesteps)]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is not None:
        chosen = alphas[torch.tensor(timesteps).round().long().clamp(0, len(alphas) - 1).cpu()].float()
        levels: list[float] = ((1 - chosen) / chosen).sqrt().tolist()
        return levels
    return timesteps
