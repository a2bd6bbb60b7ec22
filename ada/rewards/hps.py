"""HPSv2.1 (Wu et al., "Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences", 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ada.rewards.base import Reward
from ada.rewards.clip import ClipFeatures
from ada.rewards.loading import find_weights
from ada.rewards.open_clip import load_open_clip
from ada.rewards.preprocess import PadPreparation

FILES = ("HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.safetensors", "model.safetensors")
NUM_HEADS = 16  # of both towers of ViT-H/14


class HPS(Reward):
    """How people would rank an image for its prompt: the cosine of a tuned CLIP, about 0.2 to 0.35. Differentiable in the images.

    Sees the whole image, padded to a square, where other CLIP rewards crop the centre.

    Args:
        model: Hub id, folder or file (`.pt`, `.safetensors`) of the weights in open_clip's format.
        tokenizer: Hub id or folder of CLIP's tokenizer.
        scale: factor of the score; the authors report 100.

    Raises:
        FileNotFoundError: no weights are there.
        WeightsError: a tensor is missing, left over or of another shape.
    """

    needs_text = True

    def __init__(
        self, model: str = "xswu/HPSv2", tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", scale: float = 1.0
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        network: Any = load_open_clip(find_weights(model, FILES), NUM_HEADS)
        prepare = PadPreparation(size=network.config.vision_config.image_size)
        self.features = ClipFeatures(network, AutoTokenizer.from_pretrained(tokenizer), prepare, clean=True)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor | None = None) -> Tensor:
        return self.scale * self.features.cosine(images, prompts)

    def to(self, device: torch.device | str) -> "HPS":
        self.features.to(device)
        return self
