"""Counts what would make a GPU wait: values read back from tensors, and tensors made of Python's numbers."""

from collections import Counter
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockdance import BlockDanceConfig, Plan, Reuse, ReuseSchedule, apply_blockdance, random_schedule

SCHEDULERS = (
    DPMSolverMultistepScheduler,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    CogVideoXDDIMScheduler,
    HeunDiscreteScheduler,
)

READS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Operations whose result, or its size, has to come back from the device."""


class SyncCounter(TorchDispatchMode):
    """Counts synchronisations while it is entered; it runs on any machine.

    Lists of a tensor's values count where they are floats: schedules are whole numbers, on the CPU by contract.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._tolist = patch.object(Tensor, "tolist", self._listed(Tensor.tolist))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __enter__(self) -> "SyncCounter":
        self._tolist.start()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tolist.stop()
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.counts[READS[function]] += 1
        elif function is torch.ops.aten.lift_fresh.default:
            self.counts["tensor of numbers"] += 1
        elif function is torch.ops.aten.index.Tensor:
            self.counts["index of a mask"] += any(one is not None and one.dtype == torch.bool for one in args[1])
        elif function is torch.ops.aten._to_copy.default and "device" in (kwargs or {}):
            self.counts["copy between devices"] += args[0].device != kwargs["device"]
        return function(*args, **kwargs or {})

    def _listed(self, plain: Any) -> Any:
        def tolist(tensor: Tensor) -> Any:
            self.counts["tolist"] += tensor.is_floating_point()
            return plain(tensor)

        return tolist


class SchedulerLoop:
    """A pipeline's loop with a real scheduler.

    Args:
        transformer: the model.
        inputs: its inputs but latents and timestep.
        latents: the noise.
        scheduler: drives the loop.
        num_steps: denoising steps.
    """

    def __init__(self, transformer: Any, inputs: dict[str, Any], latents: torch.Tensor, scheduler: Any, num_steps: int) -> None:
        self.transformer, self.scheduler, self.num_steps = transformer, scheduler, num_steps
        self._inputs, self._latents = inputs, latents

    @torch.no_grad()
    def __call__(self) -> list[int]:
        """Runs every step; returns the synchronisations inside each call of the transformer."""
        self.scheduler.set_timesteps(self.num_steps)
        latents, counts = self._latents * self.scheduler.init_noise_sigma, []
        for timestep in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, timestep)
            with SyncCounter() as counter:
                rows = timestep.expand(len(latents))
                output = self.transformer(scaled, timestep=rows, **self._inputs, return_dict=False)[0]
            counts.append(counter.total)
            options = {} if not isinstance(self.scheduler, CogVideoXDDIMScheduler) else {"eta": 0.0}
            latents = self.scheduler.step(output[:, : latents.shape[1]], timestep, latents, return_dict=False, **options)[0]
        return counts


def count(loop: SchedulerLoop, plan_of: Any) -> tuple[int, int]:
    """Synchronisations that BlockDance adds: in the first call, and in all others together."""
    plain = loop()
    with apply_blockdance(loop, plan_of(len(plain)), guidance_branches=1):
        counts = loop()
    added = [on - off for on, off in zip(counts, plain, strict=True)]
    return added[0], sum(added[1:])


def plans(batch: int, boundary: int) -> dict[str, Any]:
    """By name: what makes a plan for a number of calls."""
    kinds = (Reuse(boundary=boundary), Reuse(boundary=boundary, order=1))

    def mixed(num_steps: int) -> Plan:
        generator = torch.Generator().manual_seed(0)
        actions = random_schedule(batch, num_steps, 0.3 * num_steps, kinds[0], generator).actions
        return ReuseSchedule(actions * torch.randint(1, 3, actions.shape, generator=generator), kinds)

    return {"uniform": lambda num_steps: BlockDanceConfig(boundary=boundary), "mixed, two orders": mixed}
