"""Frozen records that cross module borders."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from blockdance import PolicyState, ReuseState, find_layout

__all__ = ["BaseModel", "Conditioning", "PolicyState", "RewardResult", "Rollout", "Snapshot"]


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Fingerprint of the model that a policy was trained on."""

    transformer: str
    """Class name of the transformer."""
    num_blocks: int
    """Length of the block stack."""
    latent_channels: int
    """Channels of the latents."""
    prompt_width: int
    """Width of the prompt embeddings that the transformer takes."""

    @classmethod
    def of(cls, transformer: nn.Module) -> "BaseModel":
        """Reads the fingerprint of a diffusers transformer."""
        config: Mapping[str, Any] = transformer.config  # type: ignore[assignment]
        widths = [config.get(name) for name in ("caption_channels", "joint_attention_dim", "text_dim", "cross_attention_dim")]
        return cls(
            transformer=type(transformer).__name__,
            num_blocks=sum(len(getattr(transformer, name)) for name in find_layout(transformer).lists),
            latent_channels=int(config["in_channels"]),
            prompt_width=int(next((width for width in widths if width), 0)),
        )

    def differences(self, other: "BaseModel") -> list[str]:
        """What differs, one line a field."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]} here, {theirs[name]} there" for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Args:
        prompt_embeds: `(images, tokens, width)`.
        prompt_mask: `(images, tokens)`, 1 for real tokens.
        negative_embeds: `(images, tokens, width)`, of the empty prompt, for classifier-free guidance.
        negative_mask: `(images, tokens)`.
    """

    prompt_embeds: Tensor
    prompt_mask: Tensor
    negative_embeds: Tensor
    negative_mask: Tensor

    def take(self, images: Sequence[int]) -> "Conditioning":
        """The given images, which may repeat."""
        return Conditioning(*(getattr(self, part.name)[list(images)] for part in fields(self)))

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Several batches as one."""
        return Conditioning(*(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(Conditioning)))


@dataclass(frozen=True)
class Snapshot:
    """A batch between two denoising steps: enough to continue from here, in several ways.

    Args:
        latents: `(images, channels, height, width)`, the input of step `step`.
        scheduler: a copy of the pipeline's scheduler with its multistep history of these images.
        reuse: cached block outputs.
        conditioning: encoded prompts.
        step: the next step.
    """

    latents: Tensor
    scheduler: Any
    reuse: ReuseState
    conditioning: Conditioning
    step: int


@dataclass(frozen=True)
class Rollout:
    """What sampled schedules of a batch of prompts led to.

    Args:
        actions: int64 `(prompts, group, num_steps)`.
        images: `(prompts, group, 3, height, width)` in [0, 1].
        quality: `(prompts, group)`, Q.
        compute_saved: `(prompts, group)`, C: share of the MACs of the steps that decide.
        parts: the named parts of the quality, each `(prompts, group)`.
        kept: bool `(prompts, group)`, False for images that the reward dropped.
        denoised: image-steps that were really denoised, after sharing equal prefixes.
    """

    actions: Tensor
    images: Tensor
    quality: Tensor
    compute_saved: Tensor
    parts: dict[str, Tensor]
    kept: Tensor
    denoised: int


@dataclass(frozen=True)
class RewardResult:
    """A reward and its named parts, each `(images,)`, and which images count, bool `(images,)`."""

    total: Tensor
    parts: dict[str, Tensor]
    kept: Tensor
