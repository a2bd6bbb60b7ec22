"""What a scheduler tells of its loop: whether it is set for one, its timesteps, and their noise levels."""

from typing import Any

import torch


def is_unset(scheduler: Any) -> bool:
    """Whether a scheduler still has the timesteps of its training, which most of diffusers' begin with. `num_inference_steps` alone does
    not tell: some do not set it for timesteps that they are given."""
    trained_on = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    has_count = getattr(scheduler, "num_inference_steps", None) is not None
    return not has_count and trained_on is not None and len(scheduler.timesteps) >= trained_on


def steps_of(scheduler: Any) -> tuple[list[float], list[float]]:
    """The timesteps at which the model is called, and their noise levels."""
    timesteps: list[float] = torch.as_tensor(scheduler.timesteps).float().tolist()
    levels = noise_levels(scheduler, timesteps)
    steps = slice(-1) if _has_terminal(scheduler, timesteps, levels) else slice(None)
    return timesteps[steps], levels[steps]


def _has_terminal(scheduler: Any, timesteps: list[float], levels: list[float]) -> bool:
    """Whether the last timestep is only where the last step ends, which the loops of SCM and of LTX's RF sampler leave out: no noise is
    left there. Others have a noise level more than timesteps; PNDM, which also has a timestep more than steps, calls the model at it."""
    if getattr(scheduler, "sigmas", None) is not None:
        return len(scheduler.sigmas) == len(timesteps) and levels[-1] == 0
    is_one_more = len(timesteps) - 1 == getattr(scheduler, "num_inference_steps", None)
    return is_one_more and timesteps[-1] == 0 and getattr(scheduler, "alphas_cumprod", None) is None


def noise_levels(scheduler: Any, timesteps: list[float]) -> list[float]:
    """Noise level of every timestep: the scheduler's `sigmas`, else √((1 − ᾱ)/ᾱ), else the timestep itself."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(timesteps):
        given: list[float] = torch.as_tensor(sigmas).float().tolist()
        between = getattr(scheduler, "sigmas_interpol", None)
        if between is not None:  # KDPM2's second stages are at levels between two of its sigmas
            given[1::2] = torch.as_tensor(between).float().tolist()[1 : len(given) : 2]
        return given[: len(timesteps)]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is not None:
        chosen = alphas[torch.tensor(timesteps).round().long().clamp(0, len(alphas) - 1).cpu()].float()
        levels: list[float] = ((1 - chosen) / chosen).sqrt().tolist()
        return levels
    return timesteps
