"""Rewards from the reference: how little an image changed."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from ada.rewards.base import Reward
from ada.rewards.vision import load_vision


class PSNR(Reward):
    """Peak signal-to-noise ratio to the reference in dB, at most `maximum` (an identical image has no finite one)."""

    compares_with_reference = True

    def __init__(self, maximum: float = 60.0, scale: float = 1.0) -> None:
        self.maximum = maximum
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        error = (images - reference).square().flatten(1).mean(1).clamp(min=10 ** (-self.maximum / 10))
        return self.scale * -10.0 * error.log10()


class SSIM(Reward):
    """Structural similarity to the reference (Wang et al., 2004), at most 1: Gaussian windows of 11 pixels, deviation 1.5.

    Borders count, mirrored, as in torchmetrics; scikit-image leaves five pixels of each out.
    """

    compares_with_reference = True

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        values = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
        assert isinstance(values, Tensor)
        return self.scale * values.reshape(len(images))


class PerceptualDistance(Reward):
    """Minus the distance to the reference in a vision encoder's layers; between −4 and 0.

    As LPIPS (Zhang et al., 2018) without learnt weights: the squared difference of unit-length features, averaged over
    positions and layers. Images are brought to the encoder's size, without rounding, so that small changes count.

    Args:
        model: folder or Hub id of a CLIP, DINOv2 or another vision model.
        scale: factor of the value.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """

    compares_with_reference = True

    def __init__(self, model: str = "checkpoints/emoji-scorer", scale: float = 1.0) -> None:
        self.model = model
        self.features = load_vision(model)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        layers = zip(self.features.hidden_images(images), self.features.hidden_images(reference), strict=True)
        distances = [
            (F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).square().sum(-1).mean(-1) for ours, theirs in layers
        ]
        return -self.scale * torch.stack(distances).mean(0)

    def to(self, device: torch.device | str) -> "PerceptualDistance":
        self.features.to(device)
        return self


class LatentDistance(Reward):
    """Minus the root mean square difference to the reference in the latents of an autoencoder (the posterior's mean, scaled).

    Args:
        model: folder or Hub id of a pipeline, or of an `AutoencoderKL`.
        subfolder: where in it the autoencoder lies; None for an autoencoder by itself.
        scale: factor of the value.
    """

    compares_with_reference = True

    def __init__(self, model: str = "checkpoints/emoji-dit", subfolder: str | None = "vae", scale: float = 1.0) -> None:
        vae: Any = AutoencoderKL.from_pretrained(model, subfolder=subfolder, torch_dtype=torch.float32)
        self.model, self.subfolder = model, subfolder
        self._vae = vae.eval().requires_grad_(False)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        difference = self._encode(images) - self._encode(reference)
        return -self.scale * difference.square().flatten(1).mean(1).sqrt()

    def _encode(self, images: Tensor) -> Tensor:
        pixels = images.float().to(self._vae.device) * 2 - 1
        latents: Tensor = self._vae.encode(pixels).latent_dist.mean * self._vae.config.scaling_factor
        return latents

    def to(self, device: torch.device | str) -> "LatentDistance":
        self._vae.to(device)
        return self
