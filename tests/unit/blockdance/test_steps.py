"""Which step is it, and at what noise level: from contexts, schedulers and timesteps."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.hooks.hooks import CacheContext

from blockdance import StepUnknownError
from blockdance.steps import StepTracker, noise_levels


def tracker_on(timesteps: list[float]) -> tuple[StepTracker, Any]:
    scheduler = SimpleNamespace(timesteps=torch.tensor(timesteps))
    return StepTracker(lambda: scheduler, None), scheduler


def test_position_in_the_schedulers_timesteps() -> None:
    tracker, scheduler = tracker_on([900.0, 600.0, 300.0])
    assert [tracker.locate("all", timestep, None) for timestep in (900, 600, 300)] == [0, 1, 2]
    assert not tracker.is_new_generation
    assert tracker.locate("all", 900, None) == 0
    assert tracker.is_new_generation
    scheduler.timesteps = torch.tensor([900.0, 450.0])
    assert tracker.locate("all", 450, None) == 1, "img2img starts late"
    assert tracker.is_new_generation
    assert tracker.num_steps == 2


def test_timesteps_scaled_to_one_are_found() -> None:
    tracker, _ = tracker_on([1000.0, 500.0])
    assert [tracker.locate("all", torch.tensor([timestep]), None) for timestep in (1.0, 0.5)] == [0, 1]


def test_separate_branches_share_steps() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    calls = [("cond", 900), ("uncond", 900), ("cond", 600), ("uncond", 600)]
    assert [tracker.locate(branch, timestep, None) for branch, timestep in calls] == [0, 0, 1, 1]
    assert tracker.num_branches == 2


def test_a_context_that_tells_the_step_comes_first() -> None:
    tracker, _ = tracker_on([900.0, 600.0, 300.0])
    assert tracker.locate("cond", 900, CacheContext("cond", step_index=2)) == 2


def test_a_timestep_of_another_scheduler_is_named() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    with pytest.raises(StepUnknownError, match="none of the scheduler's 2 timesteps"):
        tracker.locate("all", 123, None)


def test_without_a_scheduler_the_timesteps_rise_starts_anew() -> None:
    tracker = StepTracker(None, 3)
    assert [tracker.locate("all", timestep, None) for timestep in (9, 5, 9, 5, 1)] == [0, 1, 0, 1, 2]


def test_noise_levels_of_flow_and_of_alphas() -> None:
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    assert noise_levels(flow, flow.timesteps.tolist()) == pytest.approx((flow.timesteps / 1000).tolist(), abs=1e-6)
    ddim = DDIMScheduler()
    ddim.set_timesteps(4)
    alphas = ddim.alphas_cumprod[ddim.timesteps]
    assert noise_levels(ddim, ddim.timesteps.tolist()) == pytest.approx(((1 - alphas) / alphas).sqrt().tolist())
    assert noise_levels(SimpleNamespace(), [3.0, 1.0]) == [3.0, 1.0]
