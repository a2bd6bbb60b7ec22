"""CLIPScore (Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ada.rewards.base import Reward
from ada.rewards.clip import load_features


class ClipScore(Reward):
    """Agreement of image and prompt: 100 · max(cos, 0), times `scale`. Differentiable in the images.

    The paper's own factor is 2.5 rather than 100, and it puts "A photo depicts" before captions; 100 is what the field reports.

    Args:
        model: folder or Hub id of a CLIP.
        scale: 1 gives the published score; smaller values suit a weighted sum.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """

    needs_text = True

    def __init__(self, model: str = "checkpoints/emoji-scorer", scale: float = 1.0) -> None:
        self.model = model
        self.features = load_features(model)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor | None = None) -> Tensor:
        return self.scale * 100.0 * self.features.cosine(images, prompts).clamp(min=0)

    def to(self, device: torch.device | str) -> "ClipScore":
        self.features.to(device)
        return self
