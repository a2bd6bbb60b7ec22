"""Rewards from the reference alone: how little an image changed."""

from collections.abc import Sequence

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ada.rewards.base import Reward


class PSNR(Reward):
    """Peak signal-to-noise ratio to the reference in dB, at most `maximum` (an identical image has no finite one)."""

    def __init__(self, maximum: float = 60.0, scale: float = 1.0) -> None:
        self.maximum = maximum
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        error = (images - reference).square().flatten(1).mean(1).clamp(min=10 ** (-self.maximum / 10))
        return self.scale * -10.0 * error.log10()


class SSIM(Reward):
    """Structural similarity to the reference (Wang et al., 2004), at most 1."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        values = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
        assert isinstance(values, Tensor)
        return self.scale * values.reshape(len(images))
