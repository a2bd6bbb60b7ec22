"""Which step is it, and at what noise level: from contexts, schedulers and timesteps."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    PNDMScheduler,
    SCMScheduler,
)
from diffusers.hooks.hooks import CacheContext

from blockdance import StepUnknownError
from blockdance.schedulers import noise_levels, steps_of
from blockdance.steps import MAX_CALLS, StepTracker


def tracker_on(timesteps: list[float]) -> tuple[StepTracker, Any]:
    scheduler = SimpleNamespace(timesteps=torch.tensor(timesteps))
    return StepTracker(SimpleNamespace(scheduler=scheduler), None), scheduler


def steps(tracker: StepTracker, *timesteps: float | torch.Tensor) -> list[int]:
    return [tracker.locate(timestep, None).step for timestep in timesteps]


def test_position_in_the_schedulers_timesteps() -> None:
    tracker, scheduler = tracker_on([900.0, 600.0, 300.0])
    assert steps(tracker, 900, 600, 300) == [0, 1, 2]
    assert tracker.locate(900, None).is_new_generation
    assert not tracker.locate(600, None).is_new_generation
    scheduler.timesteps = torch.tensor([900.0, 450.0])
    late = tracker.locate(450, None)
    assert late.step == 1, "img2img starts late"
    assert late.is_new_generation
    assert tracker.num_steps == 2


def test_timesteps_scaled_or_turned_round_are_found() -> None:
    tracker, _ = tracker_on([1000.0, 600.0, 400.0])
    assert steps(tracker, torch.tensor([1.0]), torch.tensor([0.6]), torch.tensor([0.4])) == [0, 1, 2]
    turning = SimpleNamespace(timesteps=torch.tensor([1000.0, 600.0]))
    turned = StepTracker(SimpleNamespace(scheduler=turning), None, timestep_rises=True)
    assert steps(turned, torch.tensor([0.0]), torch.tensor([0.4])) == [0, 1]


def test_timesteps_in_half_precision_are_found() -> None:
    """HunyuanDiT tells them in the precision of its latents: bfloat16 makes 952 of 950."""
    timesteps = [float(step) for step in range(950, 0, -50)]
    tracker, _ = tracker_on(timesteps)
    rounded = [torch.tensor([step]).to(torch.bfloat16) for step in timesteps]
    assert float(rounded[0]) == 952
    assert steps(tracker, *rounded) == [*range(len(timesteps))]


def test_clean_frames_of_a_video_do_not_hide_the_step() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    assert steps(tracker, torch.tensor([[0.0, 900.0]]), torch.tensor([[0.0, 600.0]])) == [0, 1]


def test_a_scheduler_that_counts_its_steps_is_asked() -> None:
    tracker, scheduler = tracker_on([900.0, 600.0, 300.0])
    scheduler.step_index, scheduler.begin_index = None, 1
    assert steps(tracker, 77.0) == [1]
    scheduler.step_index = 2
    assert steps(tracker, 77.0) == [2]


def test_separate_branches_share_steps() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    calls = [("cond", 900), ("uncond", 900), ("cond", 600), ("uncond", 600)]
    places = [tracker.locate(timestep, CacheContext(name)) for name, timestep in calls]
    assert [(place.branch, place.step) for place in places] == [("cond", 0), ("uncond", 0), ("cond", 1), ("uncond", 1)]


def test_calls_without_names_are_told_apart_by_their_order() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    places = [tracker.locate(timestep, None) for timestep in (900, 900, 600, 600)]
    assert [(place.branch, place.step, place.is_first) for place in places] == [
        ("call", 0, True),
        ("call 1", 0, False),
        ("call", 1, True),
        ("call 1", 1, False),
    ]
    assert [place.is_new_generation for place in places] == [True, False, False, False]


def test_a_context_that_tells_the_step_comes_first() -> None:
    tracker, _ = tracker_on([900.0, 600.0, 300.0])
    assert tracker.locate(900, CacheContext("cond", step_index=2)).step == 2


def test_a_timestep_of_another_scheduler_is_named() -> None:
    tracker, _ = tracker_on([900.0, 600.0])
    with pytest.raises(StepUnknownError, match="none of the scheduler's 2 timesteps"):
        tracker.locate(123, None)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(), DPMSolverMultistepScheduler(), SCMScheduler()]
)
def test_a_scheduler_that_was_never_set_is_not_the_loops(scheduler: Any) -> None:
    """A loop of one's own with a scheduler of its own: the pipeline's still has the 1000 timesteps of its training."""
    tracker = StepTracker(SimpleNamespace(scheduler=scheduler), None)
    with pytest.raises(StepUnknownError, match=r"was never given its timesteps(.|\n)*num_inference_steps"):
        tracker.locate(500.0, None)


@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        (DDPMScheduler(), {"timesteps": [900, 500, 100]}),
        (FlowMatchEulerDiscreteScheduler(), {"num_inference_steps": 3}),
        (FlowMatchEulerDiscreteScheduler(), {"sigmas": [0.9, 0.5, 0.1]}),
        (DDIMScheduler(), {"num_inference_steps": 1000}),
        (DPMSolverMultistepScheduler(), {"timesteps": [900, 500, 100]}),
    ],
)
def test_a_scheduler_that_was_set_is_followed(scheduler: Any, given: dict[str, Any]) -> None:
    """Whatever it was given, also where it keeps no `num_inference_steps` then, or really takes as many steps as its training."""
    scheduler.set_timesteps(**given)
    tracker = StepTracker(SimpleNamespace(scheduler=scheduler), None)
    assert steps(tracker, *scheduler.timesteps[:3]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("scheduler", "given", "expected"),
    [
        (SCMScheduler(), {"num_inference_steps": 2}, [1.5708, 1.3]),
        (LTXEulerAncestralRFScheduler(), {"sigmas": [1.0, 0.6, 0.0]}, [1000, 600]),
        (LTXEulerAncestralRFScheduler(), {"num_inference_steps": 2}, [1000, 1]),
        (PNDMScheduler(skip_prk_steps=True), {"num_inference_steps": 4}, [750, 500, 500, 250, 0]),
        (KDPM2DiscreteScheduler(), {"num_inference_steps": 2}, [999, 246.1073, 0]),
        (DDIMScheduler(), {"num_inference_steps": 4}, [750, 500, 250, 0]),
    ],
)  # fmt: skip
def test_a_timestep_at_which_no_noise_is_left_is_no_step(scheduler: Any, given: dict[str, Any], expected: list[float]) -> None:
    scheduler.set_timesteps(**given)
    timesteps, levels = steps_of(scheduler)
    assert timesteps == pytest.approx(expected, abs=1e-3)
    assert len(levels) == len(timesteps)


def test_a_call_after_the_last_step_is_told_what_to_do() -> None:
    tracker, scheduler = tracker_on([900.0, 600.0])
    scheduler.step_index = 2
    with pytest.raises(StepUnknownError, match=r"step 3 of 2.*set_timesteps.*remove_blockdance"):
        tracker.locate(500.0, None)


@pytest.mark.parametrize("sign", [1, -1], ids=["falling", "rising"])
def test_without_a_scheduler_a_timestep_that_turns_back_starts_anew(sign: int) -> None:
    tracker = StepTracker(None, 3, timestep_rises=sign < 0)
    places = [tracker.locate(sign * timestep, None) for timestep in (9, 5, 9, 5, 1)]
    assert [place.step for place in places] == [0, 1, 0, 1, 2]
    assert [place.is_new_generation for place in places] == [True, False, True, False, False]


@pytest.mark.parametrize("warm_up", [5, 4, 1, 9])
def test_without_a_scheduler_a_single_call_later_in_the_loop_leaves_the_loop_as_it_is(warm_up: int) -> None:
    """A warm-up with latents of its own or those of the loop; the first generation has all its steps, and reuses nothing from before."""
    tracker = StepTracker(None, 4)
    tracker.locate(warm_up, None, torch.full((1,), float(warm_up == 9)))
    places = [tracker.locate(timestep, None, torch.zeros(1)) for timestep in (9, 7, 4, 2) * 2]
    assert [place.step for place in places] == [0, 1, 2, 3] * 2
    assert [place.is_new_generation for place in places] == [True, False, False, False] * 2


def test_without_a_scheduler_a_loop_that_goes_the_other_way_is_followed_from_its_third_call_on() -> None:
    """Inversion, whose calls of two names turn together; then generations again, whose first timestep turned already."""
    tracker = StepTracker(None, 5)
    for timesteps, expected in (
        ((1, 3, 5, 7, 9), [0, 0, 1, 2, 3]),
        ((1, 3, 5, 7, 9), [0, 1, 2, 3, 4]),
        ((8, 6, 4, 2), [0, 1, 2, 3]),
        ((9, 7, 5, 3, 1), [0, 1, 2, 3, 4]),
    ):
        places = [[tracker.locate(at, CacheContext(name)).step for name in ("cond", "uncond")] for at in timesteps]
        assert places == [[step, step] for step in expected]
    tracker.locate(1, CacheContext("cond"))
    tracker.forget()
    assert steps(tracker, 9, 7, 5) == [0, 1, 2]


def test_noise_levels_of_flow_and_of_alphas() -> None:
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    assert noise_levels(flow, flow.timesteps.tolist()) == pytest.approx((flow.timesteps / 1000).tolist(), abs=1e-6)
    ddim = DDIMScheduler()
    ddim.set_timesteps(4)
    alphas = ddim.alphas_cumprod[ddim.timesteps]
    assert noise_levels(ddim, ddim.timesteps.tolist()) == pytest.approx(((1 - alphas) / alphas).sqrt().tolist())
    assert noise_levels(SimpleNamespace(), [3.0, 1.0]) == [3.0, 1.0]


def test_second_order_stages_have_levels_of_their_own() -> None:
    """KDPM2 evaluates the model between two of its sigmas; what its own input scaling divides by tells where."""
    scheduler = KDPM2DiscreteScheduler()
    scheduler.set_timesteps(4)
    levels = noise_levels(scheduler, scheduler.timesteps.tolist())
    sample, seen = torch.ones(1), []
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        seen.append(float((1 / scaled**2 - 1).sqrt()))
        scheduler.step(torch.zeros(1), timestep, sample)
    assert levels == pytest.approx(seen, rel=1e-3)
    assert all(later < earlier for earlier, later in pairwise(levels))


def test_an_unknown_timestep_is_the_first_step_once_only() -> None:
    """Before a scheduler has counted a step its pipeline may pass a timestep of its own; a loop that never counts is named."""
    tracker, scheduler = tracker_on([900.0, 600.0, 300.0])
    scheduler.step_index = None
    assert steps(tracker, 77.0, 77.0) == [0, 0]
    with pytest.raises(StepUnknownError, match="timestep 55"):
        tracker.locate(55.0, None)


def test_without_a_scheduler_other_latents_at_the_same_timestep_are_another_generation() -> None:
    """The one before was given up after its first step. The same latents again are another guidance branch."""
    tracker = StepTracker(None, 3)
    first, second = torch.zeros(1, 2), torch.ones(1, 2)
    calls = [(9, first), (9, first), (9, second), (9, second), (5, second + 1), (5, second + 1)]
    places = [tracker.locate(timestep, None, latents) for timestep, latents in calls]
    assert [place.is_new_generation for place in places] == [True, False, True, False, False, False]
    assert [place.branch for place in places] == ["call", "call 1"] * 3
    assert [place.step for place in places] == [0, 0, 0, 0, 1, 1]


def test_where_the_scheduler_or_a_context_tells_the_step_every_call_has_a_name_of_its_own() -> None:
    """A tiled epilogue calls the model for each tile: more calls than any guidance makes."""
    tracker, _ = tracker_on([900.0, 600.0])
    told = StepTracker(None, 2)
    for step, timestep in enumerate((900.0, 600.0)):
        names = [tracker.locate(timestep, None).branch for _ in range(100)]
        assert names == ["call", *(f"call {tile}" for tile in range(1, 100))]
        context = CacheContext("cond", step_index=step)
        places = [told.locate(timestep, context, torch.full((1,), float(tile))) for tile in range(100)]
        assert len({place.branch for place in places}) == 100
        assert [place.is_new_generation for place in places] == [step == 0, *[False] * 99]


def test_a_timestep_that_does_not_move_is_said() -> None:
    tracker = StepTracker(None, 30)
    with pytest.warns(UserWarning, match="timestep does not move"):
        places = [tracker.locate(9, None, torch.full((1,), float(call))) for call in range(100)]
    assert {place.branch for place in places} == {"call"}


def test_calls_that_never_move_are_refused_before_their_names_run_out() -> None:
    tracker, latents = StepTracker(None, 30), torch.zeros(1)
    names = {tracker.locate(9, None, latents).branch for _ in range(MAX_CALLS)}
    assert len(names) == MAX_CALLS
    with pytest.raises(StepUnknownError, match=r"64 times at the same timestep(.|\n)*step_index"):
        tracker.locate(9, None, latents)


def test_the_levels_that_contexts_tell() -> None:
    tracker = StepTracker(None, None)
    for step, sigma in enumerate((0.9, 0.4)):
        tracker.locate(100.0, CacheContext("cond", step_index=step, num_inference_steps=2, sigma=sigma))
    assert tracker.sigmas == pytest.approx([0.9, 0.4])
