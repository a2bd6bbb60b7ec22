"""The LAION aesthetic predictor V2 (Schuhmann, "improved-aesthetic-predictor", 2022; Schuhmann et al., "LAION-5B", 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ada.rewards.base import Reward
from ada.rewards.clip import load_features
from ada.rewards.head import LAYERS, LinearHead
from ada.rewards.loading import Origin, find_weights, load_strictly, read_tensors, shape_of

FILES = ("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth", "model.safetensors")


class AestheticScore(Reward):
    """How well an image looks, whatever its prompt: about 1 to 10. Differentiable in the images.

    A head of linear layers on the unit-length image embedding of CLIP ViT-L/14.

    Args:
        head: Hub id, folder or file (`.pth`, `.safetensors`) of the head.
        model: folder or Hub id of the CLIP.
        scale: factor of the score; smaller values suit a weighted sum.

    Raises:
        FileNotFoundError: no weights are there.
        WeightsError: a tensor is missing, left over or of another shape.
    """

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        model: str = "openai/clip-vit-large-patch14",
        scale: float = 1.0,
    ) -> None:
        self.head, self.model = head, model
        self.features = load_features(model)
        self.scale = scale
        path = find_weights(head, FILES)
        tensors = read_tensors(path)
        widths = [shape_of(tensors, f"layers.{name}.weight", str(path)) for name in LAYERS]
        with torch.device("meta"):
            self._head = LinearHead((widths[0][1], *(outputs for outputs, _ in widths)))
        load_strictly(self._head, tensors, {name: Origin(name) for name in self._head.state_dict()}, source=str(path))

    def __call__(self, images: Tensor, prompts: Sequence[str] = (), reference: Tensor | None = None) -> Tensor:
        scores: Tensor = self._head(self.features.embed_images(images))
        return self.scale * scores

    def to(self, device: torch.device | str) -> "AestheticScore":
        self.features.to(device)
        self._head.to(device)
        return self
