"""Rewards from a CLIP model: agreement of image and prompt, and distance to the reference in its features."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from ada.rewards.base import Reward


class ClipFeatures:
    """A frozen CLIP: prompts and images to features. Gives the embedded scorer's and any Hub CLIP's.

    Args:
        model: folder or Hub id.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """

    def __init__(self, model: str) -> None:
        folder = Path(model)
        if not folder.exists() and model.startswith((".", "/", "checkpoints/")):
            raise FileNotFoundError(
                f"No scorer in {folder}. Paths are relative to the folder you run in; the embedded scorer is checkpoints/emoji-scorer."
            )
        self._model = CLIPModel.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
        processor = CLIPImageProcessorPil.from_pretrained(model)
        self._mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self._deviation = torch.tensor(processor.image_std).view(3, 1, 1)
        self._size = self._model.config.vision_config.image_size
        self._max_tokens = self._model.config.text_config.max_position_embeddings

    def to(self, device: torch.device | str) -> None:
        self._model.to(device)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit-length embeddings `(images, width)` of images `(images, 3, height, width)` in [0, 1]."""
        return F.normalize(self._model.get_image_features(pixel_values=self._prepare(images)).pooler_output, dim=-1)

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit-length embeddings `(prompts, width)`."""
        encoded = self._tokenizer(
            list(prompts), padding="max_length", max_length=self._max_tokens, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        features = self._model.get_text_features(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask)
        return F.normalize(features.pooler_output, dim=-1)

    @torch.inference_mode()
    def hidden_images(self, images: Tensor) -> list[Tensor]:
        """Output of every vision layer: each `(images, positions, width)`."""
        output = self._model.vision_model(pixel_values=self._prepare(images), output_hidden_states=True)
        return list(output.hidden_states[1:])

    def _prepare(self, images: Tensor) -> Tensor:
        """Resizes the short side, crops the centre, normalises."""
        size = self._size
        scale = size / min(images.shape[-2:])
        if images.shape[-2:] != (size, size):
            shape = [round(length * scale) for length in images.shape[-2:]]
            images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
            top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
            images = images[..., top : top + size, left : left + size]
        return (images.float() - self._mean) / self._deviation


@lru_cache(maxsize=4)
def load_features(model: str) -> ClipFeatures:
    """Loads a CLIP once, for all the rewards that use it."""
    return ClipFeatures(model)


class ClipScore(Reward):
    """Agreement of image and prompt: 100 · max(cos, 0) (CLIPScore, Hessel et al., 2021), times `scale`.

    Args:
        model: folder or Hub id of a CLIP.
        scale: 1 gives the published score; smaller values suit a weighted sum.
    """

    def __init__(self, model: str = "checkpoints/emoji-scorer", scale: float = 1.0) -> None:
        self.features = load_features(model)
        self.scale = scale

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        cosine = (self.features.embed_images(images) * self.features.embed_prompts(prompts)).sum(-1)
        return self.scale * 100.0 * cosine.clamp(min=0)

    def to(self, device: torch.device | str) -> "ClipScore":
        self.features.to(device)
        return self


class PerceptualDistance(Reward):
    """Minus the distance to the reference in a CLIP's vision layers.

    As LPIPS (Zhang et al., 2018) without learnt weights: the squared difference of unit-length features, averaged over
    positions and layers; between −4 and 0.
    """

    def __init__(self, model: str = "checkpoints/emoji-scorer", scale: float = 1.0) -> None:
        self.features = load_features(model)
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
