"""A frozen CLIP: prompts and images to features, shared by the rewards that need them."""

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import ftfy
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from ada.rewards.preprocess import CropPreparation, Prepare


class ClipFeatures:
    """A CLIP with its tokenizer and preprocessing.

    Args:
        model: in evaluation mode, frozen.
        tokenizer: of the prompts; longer ones are cut to the model's length.
        prepare: images in [0, 1] to pixel values, for embeddings.
        prepare_hidden: the same for `hidden_images`; as `prepare` if None.
        clean: mends mojibake and HTML entities in prompts first, as the tokenizers of OpenAI and open_clip do.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        prepare: Prepare,
        prepare_hidden: Prepare | None = None,
        clean: bool = False,
    ) -> None:
        self._model = cast(Any, model)  # transformers types its configs as unions
        self._tokenizer, self._clean = tokenizer, clean
        self._prepare, self._prepare_hidden = prepare, prepare_hidden or prepare
        self._max_tokens = self._model.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> Tensor:
        """What the model multiplies cosines by."""
        scale: Tensor = self._model.logit_scale.exp()
        return scale

    def to(self, device: torch.device | str) -> None:
        """Moves the model."""
        self._model.to(device)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit-length embeddings `(images, width)` of images `(images, 3, height, width)` in [0, 1]."""
        pixels = self._prepare(images).to(self._model.device)
        return F.normalize(self._model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit-length embeddings `(prompts, width)`; a prompt that comes several times is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        texts = [html.unescape(html.unescape(ftfy.fix_text(text))).strip() for text in distinct] if self._clean else distinct
        encoded = self._tokenizer(texts, padding=True, max_length=self._max_tokens, truncation=True, return_tensors="pt").to(
            self._model.device
        )
        features = self._model.get_text_features(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask)
        rows = {prompt: row for row, prompt in enumerate(distinct)}
        return F.normalize(features.pooler_output, dim=-1)[[rows[prompt] for prompt in prompts]]

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each image and its prompt, `(images,)`."""
        return (self.embed_images(images) * self.embed_prompts(prompts)).sum(-1)

    def hidden_images(self, images: Tensor) -> list[Tensor]:
        """Output of every vision layer: each `(images, positions, width)`."""
        pixels = self._prepare_hidden(images).to(self._model.device)
        output = self._model.vision_model(pixel_values=pixels, output_hidden_states=True)
        return list(output.hidden_states[1:])


def check_local(model: str) -> None:
    """Tells a missing folder from a Hub id.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """
    if not Path(model).exists() and model.startswith((".", "/", "checkpoints/")):
        raise FileNotFoundError(
            f"No scorer in {model}. Paths are relative to the folder you run in; the embedded scorer is "
            "checkpoints/emoji-scorer in a clone of the repository."
        )


@lru_cache(maxsize=4)
def load_features(model: str, processor: str | None = None) -> ClipFeatures:
    """Loads a CLIP once, for all the rewards that use it.

    Args:
        model: folder or Hub id of a transformers CLIP.
        processor: folder or Hub id of its tokenizer and image processor; `model`'s own if None.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
    """
    check_local(model)
    network: Any = CLIPModel.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
    settings = CLIPImageProcessorPil.from_pretrained(processor or model)
    common = {
        "size": settings.size["shortest_edge"],
        "crop": network.config.vision_config.image_size,
        "mean": tuple(settings.image_mean),
        "deviation": tuple(settings.image_std),
        "offset": "lower",
    }
    return ClipFeatures(
        network,
        AutoTokenizer.from_pretrained(processor or model),
        CropPreparation(**common),
        CropPreparation(**common, eight_bits=False),
    )
