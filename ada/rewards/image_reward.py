"""ImageReward-v1.0 (Xu et al., "ImageReward: Learning and Evaluating Human Preferences", 2023) on transformers' BLIP classes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ada.rewards.base import Reward
from ada.rewards.head import LAYERS, LinearHead
from ada.rewards.loading import Origin, count_layers, find_weights, load_strictly, read_tensors, shape_of
from ada.rewards.preprocess import CropPreparation

FILES = ("ImageReward.pt", "ImageReward.safetensors", "model.safetensors")
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the raw scores over the authors' data
MAX_TOKENS = 35
HEAD_WIDTH = 64  # of both towers' attention heads
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
UNUSED = (TEXT + "embeddings.position_ids", "blip.vision_proj.", "blip.text_proj.")


class ImageRewardNetwork(nn.Module):
    """BLIP's image tower, its text tower reading the image by cross-attention, and a head on the text's first token."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head_widths: tuple[int, ...]) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = LinearHead(head_widths)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `(images,)`, of mean 0 and deviation 1 over the authors' data.

        Args:
            pixel_values: `(images, 3, size, size)`, normalised.
            input_ids, attention_mask: `(images, tokens)`.
        """
        image = self.vision(pixel_values=pixel_values).last_hidden_state
        text = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image, is_decoder=False
        ).last_hidden_state
        scores: Tensor = self.head(text[:, 0])
        return (scores - MEAN) / DEVIATION


class ImageReward(Reward):
    """How well people would like an image for its prompt: about 0 on average, 1 is one standard deviation better.

    Runs in float32: bfloat16 moves scores. Differentiable in the images.

    Args:
        model: Hub id, folder or file (`.pt`, `.safetensors`) of the weights; sizes are read off the tensors.
        tokenizer: Hub id or folder of BERT's uncased tokenizer.

    Raises:
        FileNotFoundError: no weights are there.
        WeightsError: a tensor is missing, left over or of another shape.
    """

    needs_text = True

    def __init__(self, model: str = "THUDM/ImageReward", tokenizer: str = "google-bert/bert-base-uncased") -> None:
        self.model, self.tokenizer = model, tokenizer
        self._network = load_image_reward(find_weights(model, FILES))
        vision: Any = self._network.vision.config
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        # BLIP's two extra words: prompts that contain them must not be cut into pieces
        self._tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        self._prepare = CropPreparation(size=vision.image_size, crop=vision.image_size)

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor | None = None) -> Tensor:
        device = next(self._network.parameters()).device
        tokens = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        scores: Tensor = self._network(
            self._prepare(images).to(device), tokens.input_ids.to(device), tokens.attention_mask.to(device)
        )
        return scores

    def to(self, device: torch.device | str) -> "ImageReward":
        self._network.to(device)
        return self


def load_image_reward(path: Path) -> ImageRewardNetwork:
    """Builds the network that a file of the original package's keys describes, and fills it.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape.
    """
    tensors = read_tensors(path)
    with torch.device("meta"):
        network = ImageRewardNetwork(*_configs(tensors, str(path)))
    origins = {name: Origin(original_name(name)) for name in network.state_dict()}
    load_strictly(network, tensors, origins, ignored=UNUSED, source=str(path))
    return network


def original_name(name: str) -> str:
    """What the original package calls a parameter of `ImageRewardNetwork`."""
    for ours, theirs in _RENAMED:
        if re.match(ours, name):
            return re.sub(ours, theirs, name)
    raise AssertionError(f"the parameter {name} has no original")


_RENAMED = (
    (r"vision\.embeddings\.class_embedding$", VISION + "cls_token"),
    (r"vision\.embeddings\.position_embedding$", VISION + "pos_embed"),
    (r"vision\.embeddings\.patch_embedding\.", VISION + "patch_embed.proj."),
    (r"vision\.encoder\.layers\.(\d+)\.layer_norm([12])\.", VISION + r"blocks.\1.norm\2."),
    (r"vision\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", VISION + r"blocks.\1.attn.qkv."),
    (r"vision\.encoder\.layers\.(\d+)\.self_attn\.projection\.", VISION + r"blocks.\1.attn.proj."),
    (r"vision\.encoder\.layers\.(\d+)\.mlp\.", VISION + r"blocks.\1.mlp."),
    (r"vision\.post_layernorm\.", VISION + "norm."),
    (r"text\.", TEXT),
    (r"head\.", HEAD),
)


def _configs(tensors: Mapping[str, Tensor], source: str) -> tuple[BlipVisionConfig, BlipTextConfig, tuple[int, ...]]:
    """Sizes of the three parts; what shapes do not tell is v1.0's."""

    def shape(key: str) -> torch.Size:
        return shape_of(tensors, key, source)

    width, _, patch, _ = shape(VISION + "patch_embed.proj.weight")
    positions = shape(VISION + "pos_embed")[1] - 1
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape(VISION + "blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=count_layers(tensors, VISION + "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round(positions**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    vocabulary, text_width = shape(TEXT + "embeddings.word_embeddings.weight")
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=shape(TEXT + "encoder.layer.0.intermediate.dense.weight")[0],
        num_hidden_layers=count_layers(tensors, TEXT + "encoder.layer."),
        num_attention_heads=text_width // HEAD_WIDTH,
        max_position_embeddings=shape(TEXT + "embeddings.position_embeddings.weight")[0],
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        bos_token_id=vocabulary - 2,
        sep_token_id=None,
        is_decoder=True,  # only so that cross-attention exists; nothing is causal
    )
    return vision, text, (text_width, *(shape(f"{HEAD}layers.{name}.weight")[0] for name in LAYERS))
