"""How often would a GPU wait for BlockDance? Values read back and numbers sent, per call of the transformer.

python benchmarks/syncs.py

Counted on any machine: what the pipeline's loop and the model do themselves is subtracted.
"""

import argparse
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from model import add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from sync_counter import SyncCounter

from blockdance import BlockDanceConfig, Plan, Reuse, ReuseSchedule, apply_blockdance, random_schedule

SCHEDULERS = (
    DPMSolverMultistepScheduler,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    CogVideoXDDIMScheduler,
    HeunDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)


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
            scaled = latents
            if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
                scaled = self.scheduler.scale_model_input(latents, timestep)
            with SyncCounter() as counter:
                rows = timestep.expand(len(latents))
                output = self.transformer(scaled, timestep=rows, **self._inputs, return_dict=False)[0]
            counts.append(counter.total)
            options = {} if not isinstance(self.scheduler, CogVideoXDDIMScheduler) else {"eta": 0.0}
            latents = self.scheduler.step(
                output[:, : latents.shape[1]], timestep, latents, return_dict=False, **options
            )[0]
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


def main() -> None:
    """Prints a row per scheduler and plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    base = pixart_loop(options, options.batch)
    inputs = {name: value for name, value in base.inputs.items() if name != "hidden_states"}
    boundary = round(len(base.transformer.transformer_blocks) * 20 / 28)
    table = Table("scheduler", "plan", "first call", "all later calls", title="Synchronisations that BlockDance adds")
    for scheduler in SCHEDULERS:
        for name, plan_of in plans(options.batch, boundary).items():
            loop = SchedulerLoop(base.transformer, inputs, base.inputs["hidden_states"], scheduler(), options.steps)
            table.add_row(scheduler.__name__, name, *map(str, count(loop, plan_of)))
    Console().print(table)


if __name__ == "__main__":
    main()
