"""On what methods are compared: prompts and noise, and what a stock pipeline makes of them. Images and videos alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ada.rollouts import FrozenPipeline


@dataclass(frozen=True)
class Cases:
    """What every method is run on, `batch_size` at a time: every prompt once per sampler seed, all prompts of a seed in a row.

    Args:
        prompts: one per case.
        seeds: of each case's noise.
        batch_size: cases per call of the pipeline.
        num_seeds: how often each prompt occurs.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_size: int
    num_seeds: int = 1

    @classmethod
    def of(cls, prompts: Sequence[str], indices: Sequence[int], batch_size: int, seed: int = 0, num_seeds: int = 1) -> "Cases":
        """Cases of prompts, whose noise depends on their index in the data set and on the sampler seeds `seed`, `seed + 1`, …"""
        seeds = [prompt_seed(seed + offset, index) for offset in range(num_seeds) for index in indices]
        return cls(list(prompts) * num_seeds, seeds, batch_size, num_seeds)

    def batches(self) -> list[slice]:
        """Places of the batches among the cases; the last may be smaller."""
        count = len(self.prompts)
        return [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]


@dataclass(frozen=True)
class Generated:
    """What a pipeline made of a batch.

    Args:
        images: `(images, 3, height, width)`, for videos `(videos, frames, 3, height, width)`, float32 in [0, 1].
        latents: what its VAE was given, `(images, …)`, float32.
    """

    images: Tensor
    latents: Tensor


def generate(
    frozen: FrozenPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int,
    call: Callable[..., Any] | None = None,
) -> Generated:
    """Runs the pipeline as a user would.

    Args:
        frozen: the pipeline.
        prompts: one per image.
        seeds: of each image's noise.
        num_inference_steps: denoising steps.
        call: called in place of the pipeline; see `Run`.
    """
    with recorded_latents(frozen.pipeline.vae) as latents:
        output = (call or frozen.pipeline)(
            list(prompts),
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            return_dict=False,
            **frozen.arguments,
        )
    images: Tensor = output[0]
    # a VAE that decodes frames in chunks is called several times
    return Generated(images.float(), torch.cat(latents).float().reshape(len(prompts), -1))


@contextmanager
def recorded_latents(vae: Any) -> Iterator[list[Tensor]]:
    """Collects what the VAE decodes, which is the end of denoising in every family of pipelines."""
    decode, overridden, seen = vae.decode, "decode" in vars(vae), list[Tensor]()

    def record(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(latents.detach().clone())
        return decode(latents, *args, **kwargs)

    vae.decode = record
    try:
        yield seen
    finally:
        if overridden:
            vae.decode = decode
        else:
            del vae.decode


def prompt_seed(seed: int, index: int) -> int:
    """Seed of a prompt's noise, from a noise seed and the prompt's index in its data set; it depends on no batch."""
    return (seed * 1_000_003 + index) % 2**63
