"""Rewards of videos `(batch, frames, 3, height, width)`, made of rewards of images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ada.rewards.base import Reward
from ada.rewards.vision import load_vision


class VideoReward(Reward):
    """A reward of every frame, pooled: the mean, or the worst frame, which a mean hides.

    Args:
        reward: of images; with a `Relative` one, each frame is compared with its own reference frame.
        pool: `mean` or `worst`.

    Raises:
        ValueError: another `pool`.
    """

    def __init__(self, reward: Reward, pool: Literal["mean", "worst"] = "mean") -> None:
        if pool not in ("mean", "worst"):
            raise ValueError(f"`pool` must be 'mean' or 'worst'; got {pool!r}.")
        self.reward = reward
        self.pool = pool
        self.compares_with_reference = reward.compares_with_reference

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        num_frames = _frames(images)
        repeated = [prompt for prompt in prompts for _ in range(num_frames)]
        frames = self.reward(images.flatten(0, 1), repeated, reference.flatten(0, 1))
        scores = frames.reshape(len(images), num_frames)
        return scores.mean(1) if self.pool == "mean" else scores.amin(1)

    def to(self, device: torch.device | str) -> "VideoReward":
        self.reward.to(device)
        return self


class TemporalConsistency(Reward):
    """How much frames agree with the first and with the one before, in a vision encoder; at most 1.

    The mean over frames t ≥ 2 of ½(⟨d₁, dₜ⟩ + ⟨dₜ₋₁, dₜ⟩), d unit-length embeddings: subject consistency of VBench (Huang et
    al., 2024) with DINO, its background consistency with CLIP. A still image scores 1: use it beside the reference, as
    `WeightedReward` does by default.

    Args:
        model: folder or Hub id of a CLIP, DINOv2 or another vision model.
        scale: factor of the value.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """

    def __init__(self, model: str = "checkpoints/emoji-scorer", scale: float = 1.0) -> None:
        self.model = model
        self.features = load_vision(model)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str] = (), reference: Tensor | None = None) -> Tensor:
        num_frames = _frames(images)
        if num_frames < 2:
            raise ValueError(f"Temporal consistency needs two frames or more; got videos of {num_frames}.")
        embeddings = self.features.embed_images(images.flatten(0, 1)).reshape(len(images), num_frames, -1)
        first = (embeddings[:, :1] * embeddings[:, 1:]).sum(-1)
        previous = (embeddings[:, :-1] * embeddings[:, 1:]).sum(-1)
        return self.scale * (first + previous).mean(1) / 2

    def to(self, device: torch.device | str) -> "TemporalConsistency":
        self.features.to(device)
        return self


def _frames(videos: Tensor) -> int:
    """Frames of each video.

    Raises:
        ValueError: not of the shape of videos.
    """
    if videos.ndim != 5:
        raise ValueError(f"Videos must be `(batch, frames, 3, height, width)`; got the shape {tuple(videos.shape)}.")
    return videos.shape[1]
