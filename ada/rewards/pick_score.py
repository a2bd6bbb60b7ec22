"""PickScore (Kirstain et al., "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation", 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ada.rewards.base import Reward
from ada.rewards.clip import load_features


class PickScore(Reward):
    """Which image people would pick for a prompt: the model's logit scale times the cosine, about 20 to 23 for good images.

    The difference of two images' scores is the log-odds of picking the first. Differentiable in the images.

    Args:
        model: folder or Hub id of PickScore v1.
        processor: folder or Hub id of its tokenizer and image processor (of the CLIP that it was trained from).
        scale: factor of the score; smaller values suit a weighted sum.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """

    needs_text = True

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        scale: float = 1.0,
    ) -> None:
        self.model, self.processor = model, processor
        self.features = load_features(model, processor)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor | None = None) -> Tensor:
        return self.scale * self.features.logit_scale * self.features.cosine(images, prompts)

    def to(self, device: torch.device | str) -> "PickScore":
        self.features.to(device)
        return self
