"""What noise levels mean, and the clean latents that two of them predict."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from blockdance.observation import NoiseScale, predict_clean


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.6), (1.0, 0.8), (0.2, 0.05)])
def test_clean_latents_of_a_flow_are_exact(before: float, after: float) -> None:
    """x = (1 − σ)·x₀ + σ·ε at two levels; σ = 1 is a flow's first step, which holds no image at all."""
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    latents = [(1 - sigma) * clean + sigma * noise for sigma in (before, after)]
    found = predict_clean(latents[0], latents[1], (before, after), NoiseScale(is_flow=True))
    torch.testing.assert_close(found, clean, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("before", "after"), [(14.0, 5.0), (2.0, 0.7), (0.5, 0.1)])
def test_clean_latents_of_a_variance_preserving_diffusion_are_exact(before: float, after: float) -> None:
    """Levels are σ/α with α² + σ² = 1, so α = cos and σ = sin of the level's arctangent."""
    clean, noise = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    angles = torch.tensor([before, after], dtype=torch.float64).atan()
    latents = [angle.cos() * clean + angle.sin() * noise for angle in angles]
    found = predict_clean(latents[0], latents[1], (before, after), NoiseScale(is_flow=False))
    torch.testing.assert_close(found, clean.float(), atol=2e-4, rtol=0)


def test_clean_latents_after_a_step_of_noise_alone() -> None:
    """A terminal signal-to-noise ratio of zero: the first latents hold nothing but noise."""
    clean, noise, angle = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor(5.0).atan()
    scale = NoiseScale.of(DDIMScheduler(rescale_betas_zero_snr=True), [float("inf"), 5.0])
    found = predict_clean(noise, angle.cos() * clean + angle.sin() * noise, (float("inf"), 5.0), scale)
    torch.testing.assert_close(found, clean, atol=2e-5, rtol=0)
    assert scale.share(float("inf")) == 1


@pytest.mark.parametrize("name", ["LTXEulerAncestralRFScheduler", "FlowMapEulerDiscreteScheduler", "MiniMaxH3Scheduler"])
def test_flows_of_other_names_are_flows(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    assert NoiseScale.of(scheduler, [1.0, 0.5]) == NoiseScale(is_flow=True)


def test_scale_is_read_from_the_scheduler() -> None:
    flow = NoiseScale(is_flow=True)
    assert NoiseScale.of(EDMEulerScheduler(), [0.9, 0.5]) == NoiseScale(is_flow=False), "begun late, its highest level is 80"
    assert NoiseScale.of(FlowMatchEulerDiscreteScheduler(), [5.0]) == flow
    assert NoiseScale.of(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), [5.0]) == flow
    assert NoiseScale.of(None, [1.0, 0.5]) == flow
    assert NoiseScale.of(DDIMScheduler(), [0.9, 0.5]) == NoiseScale(is_flow=False)
    assert NoiseScale.of(DPMSolverMultistepScheduler(), [0.9]) == NoiseScale(is_flow=False)
    assert NoiseScale.of(None, [14.0, 0.5]) == NoiseScale(is_flow=False)


def test_share_of_noise_runs_from_one_to_zero() -> None:
    assert [NoiseScale(is_flow=True).share(level) for level in (1.0, 0.25, 0.0)] == [1.0, 0.25, 0.0]
    assert [NoiseScale(is_flow=False).share(level) for level in (3.0, 1.0, 0.0)] == pytest.approx([0.75, 0.5, 0.0])
