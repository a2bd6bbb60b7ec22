"""Vision encoders: an embedding and the output of every layer, from CLIP, DINOv2 and their like."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from ada.rewards.clip import check_local, load_features
from ada.rewards.preprocess import CropPreparation


class VisionEncoder(Protocol):
    """What the rewards ask of an encoder."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit-length embeddings `(images, width)` of images `(images, 3, height, width)` in [0, 1]."""

    def hidden_images(self, images: Tensor) -> list[Tensor]:
        """Output of every vision layer: each `(images, positions, width)`."""

    def to(self, device: torch.device | str) -> None:
        """Moves the model."""


class VisionFeatures:
    """An encoder of images alone, such as DINOv2.

    Args:
        model: a transformers vision model with a pooled output, in evaluation mode, frozen.
        prepare: images in [0, 1] to pixel values.
    """

    def __init__(self, model: nn.Module, prepare: CropPreparation) -> None:
        self._model, self._prepare = model, prepare

    def to(self, device: torch.device | str) -> None:
        self._model.to(device)

    def embed_images(self, images: Tensor) -> Tensor:
        return F.normalize(self._model(pixel_values=self._pixels(images)).pooler_output, dim=-1)

    def hidden_images(self, images: Tensor) -> list[Tensor]:
        return list(self._model(pixel_values=self._pixels(images), output_hidden_states=True).hidden_states[1:])

    def _pixels(self, images: Tensor) -> Tensor:
        return self._prepare(images).to(next(self._model.parameters()).device)


@lru_cache(maxsize=4)
def load_vision(model: str) -> VisionEncoder:
    """Loads a vision encoder once; a CLIP is the same object that `load_features` gives.

    Args:
        model: folder or Hub id: `checkpoints/emoji-scorer`, `openai/clip-vit-large-patch14`, `facebook/dinov2-base`, …

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """
    check_local(model)
    if AutoConfig.from_pretrained(model).model_type == "clip":
        return load_features(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
    settings, _ = ImageProcessingMixin.get_image_processor_dict(model)
    size = _side(settings["size"])
    prepare = CropPreparation(
        size=size,
        crop=_side(settings["crop_size"]) if settings.get("do_center_crop", False) else size,
        mean=tuple(settings["image_mean"]),
        deviation=tuple(settings["image_std"]),
        offset="lower",
        eight_bits=False,
    )
    return VisionFeatures(network, prepare)


def _side(setting: int | Mapping[str, int]) -> int:
    """A length in the spellings that image processors have had."""
    if isinstance(setting, int):
        return setting
    return setting["shortest_edge"] if "shortest_edge" in setting else setting["height"]
