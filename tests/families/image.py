"""Small models of the text-to-image classes of diffusers (and the class-to-image DiT), and inputs as their pipelines give them.

Inputs without a batch dimension (position ids, rotary embeddings, lists of conditions) have `BATCH` as their first size.
"""

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
    Krea2Transformer2DModel,
    LongCatImageTransformer2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    OmniGenTransformer2DModel,
    OvisImageTransformer2DModel,
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor

from families.base import BATCH, Family

TEXT_WIDTH = 12
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def _thousandths(rows: int, value: float) -> dict[str, Any]:
    return {"timestep": torch.full((rows,), 1000 * value)}


def _from_noise(rows: int, value: float) -> dict[str, Any]:
    """For models whose time runs from 0, noise, to 1, image."""
    return {"timestep": torch.full((rows,), 1 - value)}


def _latents(rows: int, size: int = 4) -> Tensor:
    return torch.randn(rows, 4, size, size)


def _text(rows: int, length: int = 6) -> Tensor:
    return torch.randn(rows, length, TEXT_WIDTH)


def _mask(rows: int, length: int = 6) -> Tensor:
    """Of a tokenizer: every caption has a length of its own, at least half of `length`."""
    return (torch.arange(length) < length - torch.arange(rows)[:, None] % (length // 2)).long()


def _same_mask(rows: int, length: int = 6) -> Tensor:
    """For models that cut captions down to the longest one: all of the same length, padded by two."""
    return (torch.arange(length) < length - 2).long().repeat(rows, 1)


def _grid_ids(axes: int = 3) -> Tensor:
    """Position ids of 2×2 image tokens, with row and column on axes 1 and 2."""
    ids = torch.zeros(2, 2, axes)
    ids[..., 1] = torch.arange(2.0)[:, None]
    ids[..., 2] = torch.arange(2.0)
    return ids.flatten(0, 1)


def _line_ids(axes: int) -> Tensor:
    """Position ids of `BATCH` text tokens, which Flux 2 and 3 count on the last axis."""
    ids = torch.zeros(BATCH, axes)
    ids[:, -1] = torch.arange(BATCH)
    return ids


def _packed(rows: int) -> dict[str, Any]:
    """Inputs of Flux and its descendants: 2×2 packed image tokens, as many text tokens, their position ids."""
    return {
        "hidden_states": torch.randn(rows, BATCH, 4),
        "encoder_hidden_states": _text(rows, BATCH),
        "img_ids": _grid_ids(),
        "txt_ids": torch.zeros(BATCH, 3),
    }


TWO_LISTS = HEADS | {"num_layers": 2, "num_single_layers": 2}
PACKED = TWO_LISTS | {"in_channels": 4, "joint_attention_dim": TEXT_WIDTH, "axes_dims_rope": (2, 2, 4)}


def _micro_conditions(rows: int) -> dict[str, Any]:
    return {name: torch.randint(8, 64, (rows, 2)).float() for name in ("original_size", "target_size", "crop_coords")}


def _cogview(rows: int) -> dict[str, Any]:
    return {"hidden_states": _latents(rows), "encoder_hidden_states": _text(rows)} | _micro_conditions(rows)


COGVIEW = HEADS | {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "text_embed_dim": TEXT_WIDTH,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "sample_size": 4,
}


def _hunyuan_dit(rows: int) -> dict[str, Any]:
    angles = torch.rand(BATCH, 8)
    return {
        "hidden_states": _latents(rows),
        "encoder_hidden_states": _text(rows),
        "text_embedding_mask": _mask(rows),
        "encoder_hidden_states_t5": torch.randn(rows, 5, 16),
        "text_embedding_mask_t5": _mask(rows, 5),
        "image_meta_size": torch.randint(8, 64, (rows, 6)).float(),
        "style": torch.zeros(rows, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _hunyuan_image(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": _latents(rows, 2),
        "encoder_hidden_states": _text(rows),
        "encoder_attention_mask": _mask(rows),
        "encoder_hidden_states_2": torch.randn(rows, 5, 16),
        "encoder_attention_mask_2": _mask(rows, 5),
    }


def _omnigen(rows: int) -> dict[str, Any]:
    """Of equal caption lengths: the model takes every row's rotary embedding from the position ids of the first."""
    text, image = 4, 4
    length = text + 1 + image
    mask = torch.ones(length, length).tril()
    mask[-image:] = 1
    return {
        "hidden_states": _latents(rows),
        "input_ids": torch.randint(1, 32, (rows, text)),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.repeat(rows, 1, 1),
        "position_ids": torch.arange(length).repeat(rows, 1),
    }


def _qwen_image(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 4, 16),
        "encoder_hidden_states": _text(rows),
        "encoder_hidden_states_mask": _mask(rows),
        "img_shapes": [[(1, 2, 2)]] * rows,
    }


def _qwen_image21(rows: int) -> dict[str, Any]:
    """The joint mask has one slot for four image tokens."""
    return {
        "hidden_states": torch.randn(rows, 4, 4),
        "encoder_hidden_states": _text(rows),
        "encoder_hidden_states_mask": _mask(rows),
        "img_shapes": [[(1, 2, 2)]] * rows,
        "img_mask": torch.tensor([False] * 6 + [True]).repeat(rows, 1),
    }


FAMILIES: list[Family] = [
    Family(
        model_class=DiTTransformer2DModel,
        config=HEADS | {"in_channels": 4, "out_channels": 8, "num_layers": 4, "sample_size": 8},
        inputs=lambda rows: {"hidden_states": _latents(rows, 8), "class_labels": torch.randint(1000, (rows,))},
        timestep=_thousandths,
    ),
    Family(
        model_class=PixArtTransformer2DModel,
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "num_layers": 4,
            "cross_attention_dim": 24,
            "sample_size": 4,
            "use_additional_conditions": True,
            "caption_channels": TEXT_WIDTH,
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": _text(rows),
            "encoder_attention_mask": _mask(rows),
            "added_cond_kwargs": {"resolution": torch.rand(rows, 2) * 64, "aspect_ratio": torch.rand(rows, 1)},
        },
        timestep=_thousandths,
    ),
    Family(
        model_class=HunyuanDiT2DModel,
        # Blocks 4 and 5 read the outputs of blocks 1 and 0.
        config=HEADS
        | {
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 4,
            "hidden_size": 16,
            "num_layers": 6,
            "mlp_ratio": 1.0,
            "cross_attention_dim": TEXT_WIDTH,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 16,
            "text_len": 6,
            "text_len_t5": 5,
        },
        inputs=_hunyuan_dit,
        timestep=_thousandths,
        spread=0.1,
    ),
    Family(
        model_class=SanaTransformer2DModel,
        config=HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": TEXT_WIDTH,
            "sample_size": 4,
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": _text(rows),
            "encoder_attention_mask": _mask(rows),
        },
        timestep=_thousandths,
    ),
    Family(
        model_class=LuminaNextDiT2DModel,
        config={
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 4,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cross_attention_dim": TEXT_WIDTH,
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows, 8),
            "encoder_hidden_states": _text(rows),
            "encoder_mask": _mask(rows),
            "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, BATCH, BATCH),
            "cross_attention_kwargs": {},
        },
        timestep=_from_noise,
        spread=0.4,
    ),
    Family(
        model_class=Lumina2Transformer2DModel,
        config={
            "sample_size": 4,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 4,
            "num_refiner_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (16, 8, 8),
            "cap_feat_dim": TEXT_WIDTH,
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": _text(rows),
            "encoder_attention_mask": _same_mask(rows),
        },
        timestep=_from_noise,
        spread=0.25,
    ),
    Family(
        model_class=AuraFlowTransformer2DModel,
        config=HEADS
        | {
            "sample_size": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        inputs=lambda rows: {"hidden_states": _latents(rows), "encoder_hidden_states": _text(rows)},
    ),
    Family(
        model_class=SD3Transformer2DModel,
        config=HEADS
        | {
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": TEXT_WIDTH,
            "caption_projection_dim": 16,
            "pooled_projection_dim": TEXT_WIDTH,
            "dual_attention_layers": (0, 1),
            "qk_norm": "rms_norm",
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": _text(rows),
            "pooled_projections": torch.randn(rows, TEXT_WIDTH),
        },
        timestep=_thousandths,
    ),
    Family(
        model_class=FluxTransformer2DModel,
        config=PACKED | {"pooled_projection_dim": TEXT_WIDTH, "guidance_embeds": True},
        inputs=lambda rows: (
            _packed(rows) | {"pooled_projections": torch.randn(rows, TEXT_WIDTH), "guidance": torch.full((rows,), 3.5)}
        ),
    ),
    Family(
        model_class=Flux2Transformer2DModel,
        config=PACKED | {"timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
        # The pipelines repeat the position ids for every row.
        inputs=lambda rows: (
            _packed(rows)
            | {
                "img_ids": _grid_ids(4).repeat(rows, 1, 1),
                "txt_ids": _line_ids(4).repeat(rows, 1, 1),
                "guidance": torch.full((rows,), 4.0),
            }
        ),
    ),
    Family(
        model_class=Flux3Transformer2DModel,
        config=PACKED | {"cond_in_channels": 4, "timestep_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
        inputs=lambda rows: _packed(rows) | {"img_ids": _grid_ids(4), "txt_ids": _line_ids(4)},
        spread=0.25,
    ),
    Family(
        model_class=ChromaTransformer2DModel,
        config=PACKED | {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 2},
        inputs=lambda rows: (
            _packed(rows) | {"attention_mask": torch.cat([_mask(rows, BATCH).float(), torch.ones(rows, BATCH)], dim=1)}
        ),
    ),
    Family(model_class=BriaTransformer2DModel, config=PACKED, inputs=_packed, timestep=_thousandths),
    Family(
        model_class=BriaFiboTransformer2DModel,
        config=PACKED | {"text_encoder_dim": TEXT_WIDTH},
        # A list with one text tensor per block, and a batched mask inside a dictionary.
        inputs=lambda rows: (
            _packed(rows)
            | {
                "text_encoder_layers": [_text(rows, BATCH) for _ in range(4)],
                "joint_attention_kwargs": {
                    "attention_mask": torch.cat([_mask(rows, BATCH), torch.ones(rows, BATCH)], dim=1)[:, None, None].bool()
                },
            }
        ),
        timestep=_thousandths,
    ),
    Family(
        model_class=BriaFibo2Transformer2DModel,
        config={
            "in_channels": 4,
            "dim": 16,
            "n_layers": 4,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "cap_feat_dim": TEXT_WIDTH,
            "injection_layer_ids": (1, 3),
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 4,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (2, 2, 4),
            "axes_lens": (16, 8, 8),
        },
        # One set of text features for the perceiver and one per layer that reads text; a list of images to edit, each batched.
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": torch.randn(rows, 3, 6, TEXT_WIDTH),
            "encoder_attention_mask": _same_mask(rows).bool(),
            "context_latents": [_latents(rows, 2) for _ in range(BATCH)],
        },
    ),
    Family(
        model_class=CogView3PlusTransformer2DModel,
        config=COGVIEW | {"pos_embed_max_size": 4},
        inputs=_cogview,
        timestep=_thousandths,
        spread=0.25,
    ),
    Family(
        model_class=CogView4Transformer2DModel,
        config=COGVIEW | {"rope_axes_dim": (8, 8)},
        inputs=_cogview,
        timestep=_thousandths,
        spread=0.25,
    ),
    Family(
        model_class=QwenImageTransformer2DModel,
        config=HEADS
        | {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": TEXT_WIDTH,
            "axes_dims_rope": (2, 2, 4),
        },
        inputs=_qwen_image,
    ),
    Family(
        model_class=QwenImage21Transformer2DModel,
        config=HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "context_in_dim": TEXT_WIDTH,
            "axes_dims_rope": (2, 2, 4),
        },
        inputs=_qwen_image21,
    ),
    Family(
        model_class=ZImageTransformer2DModel,
        config={
            "in_channels": 4,
            "dim": 16,
            "n_layers": 4,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": TEXT_WIDTH,
            "axes_dims": [2, 2, 4],
            "axes_lens": [128, 8, 8],
        },
        inputs=lambda rows: {
            "x": list(torch.randn(rows, 4, 1, 4, 4)),
            "cap_feats": list(_text(rows)),
        },
        timestep=lambda rows, value: {"t": torch.full((rows,), 1 - value)},
    ),
    Family(
        model_class=HiDreamImageTransformer2DModel,
        config=TWO_LISTS
        | {
            "patch_size": 2,
            "in_channels": 4,
            "caption_channels": [TEXT_WIDTH, TEXT_WIDTH],
            "text_emb_dim": TEXT_WIDTH,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (4, 4),
            "llama_layers": [0, 1, 2, 3],
        },
        # The Llama features have the batch in their second dimension.
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states_t5": _text(rows),
            "encoder_hidden_states_llama3": torch.randn(BATCH, rows, 5, TEXT_WIDTH),
            "pooled_embeds": torch.randn(rows, TEXT_WIDTH),
        },
        timestep=lambda rows, value: {"timesteps": torch.full((rows,), 1000 * value)},
    ),
    Family(
        model_class=HunyuanImageTransformer2DModel,
        config=TWO_LISTS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": TEXT_WIDTH,
            "text_embed_2_dim": 16,
            "rope_axes_dim": (4, 4),
        },
        inputs=_hunyuan_image,
        timestep=_thousandths,
    ),
    Family(
        model_class=Krea2Transformer2DModel,
        config=HEADS
        | {
            "in_channels": 4,
            "num_layers": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": TEXT_WIDTH,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 16,
            "axes_dims_rope": (2, 2, 4),
        },
        # Two text tokens and two image tokens, so that there are `BATCH` position ids.
        inputs=lambda rows: {
            "hidden_states": torch.randn(rows, 2, 4),
            "encoder_hidden_states": torch.randn(rows, 2, 3, TEXT_WIDTH),
            "position_ids": torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]),
            "encoder_attention_mask": torch.tensor([True, False]).repeat(rows, 1),
        },
        spread=0.2,
    ),
    Family(
        model_class=LongCatImageTransformer2DModel,
        config=PACKED,
        inputs=lambda rows: _packed(rows) | {"txt_ids": torch.arange(BATCH)[:, None].float() * torch.tensor([0, 1, 1])},
    ),
    Family(
        model_class=OvisImageTransformer2DModel,
        config=PACKED | {"out_channels": 4},
        inputs=lambda rows: _packed(rows) | {"txt_ids": torch.arange(BATCH)[:, None].float() * torch.tensor([0, 1, 1])},
    ),
    Family(
        model_class=OmniGenTransformer2DModel,
        config={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 4,
            "pad_token_id": 0,
            "vocab_size": 32,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
            "pos_embed_max_size": 4,
            "time_step_dim": 16,
        },
        inputs=_omnigen,
        timestep=_from_noise,
        spread=0.4,
    ),
    Family(
        model_class=PRXTransformer2DModel,
        config={
            "in_channels": 4,
            "context_in_dim": TEXT_WIDTH,
            "hidden_size": 16,
            "num_heads": 2,
            "depth": 4,
            "axes_dim": [4, 4],
        },
        inputs=lambda rows: {
            "hidden_states": _latents(rows),
            "encoder_hidden_states": _text(rows),
            "attention_mask": _mask(rows).bool(),
        },
        # The pipeline passes one timestep for all rows.
        timestep=lambda rows, value: {"timestep": torch.tensor([value])},
    ),
]
