"""Small models of the video transformer classes, and inputs for them."""

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    ChronoEditTransformer3DModel,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    Cosmos3OmniTransformer,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    Kandinsky5Transformer3DModel,
    Kandinsky6Transformer3DModel,
    LatteTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    SanaVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimate2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from families.base import BATCH, Family

CHANNELS = 4
TEXT_WIDTH = 12
TEXT_LENGTH = 5


def thousands(rows: int, value: float) -> dict[str, Any]:
    return {"timestep": torch.full((rows,), 1000 * value)}


def text(rows: int, length: int = TEXT_LENGTH, width: int = TEXT_WIDTH) -> dict[str, Tensor]:
    return {"encoder_hidden_states": torch.randn(rows, length, width)}


def padding(rows: int, length: int = TEXT_LENGTH) -> Tensor:
    """A caption mask; the captions of a batch have different lengths and are padded at the end."""
    valid = torch.tensor([length - row % 3 for row in range(rows)])
    return torch.arange(length) < valid[:, None]


def masked_text(rows: int, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    return text(rows) | {"encoder_attention_mask": padding(rows).to(dtype)}


def channels_first(rows: int, channels: int = CHANNELS, frames: int = 2, size: int = 4) -> dict[str, Tensor]:
    return {"hidden_states": torch.randn(rows, channels, frames, size, size)}


def cogvideox(rows: int) -> dict[str, Any]:
    """One token a frame, so that the rotary embedding has as many rows as the batch."""
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (1, 1)), (1, 1), temporal_size=BATCH)
    return {"hidden_states": torch.randn(rows, BATCH, CHANNELS, 2, 2)} | text(rows) | {"image_rotary_emb": rotary}


def consisid(rows: int) -> dict[str, Any]:
    """As in the pipeline, all rows share one face, whose features are a list with an element a scale, not an image."""
    return cogvideox(rows) | {"id_cond": torch.randn(1, 10), "id_vit_hidden": [torch.randn(1, 3, 16) for _ in range(BATCH)]}


def allegro(rows: int) -> dict[str, Any]:
    *freqs, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (1, 1)), (1, 1), temporal_size=BATCH)
    grid = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long()).T.reshape(3, 1, -1).contiguous()
    rotary = (tuple(freqs), tuple(grid))
    return channels_first(rows, frames=BATCH, size=2) | masked_text(rows) | {"image_rotary_emb": rotary}


def ltx(rows: int) -> dict[str, Any]:
    grid = {"num_frames": 2, "height": 2, "width": 2, "rope_interpolation_scale": (8 / 25, 32, 32)}
    return {"hidden_states": torch.randn(rows, 8, CHANNELS)} | masked_text(rows) | grid


def ltx2(rows: int) -> dict[str, Any]:
    """Video and audio; the timestep's twin `sigma` is in the timestep arguments."""
    return {
        "hidden_states": torch.randn(rows, 8, CHANNELS),
        "audio_hidden_states": torch.randn(rows, 3, CHANNELS),
        **masked_text(rows),
        "audio_encoder_hidden_states": torch.randn(rows, TEXT_LENGTH, TEXT_WIDTH),
        "audio_encoder_attention_mask": padding(rows).long(),
        **{"num_frames": 2, "height": 2, "width": 2, "fps": 24.0, "audio_num_frames": 3},
        "video_coords": torch.rand(1, 3, 8, 2).sort().values.repeat(rows, 1, 1, 1),
        "audio_coords": torch.rand(1, 1, 3, 2).sort().values.repeat(rows, 1, 1, 1),
        "use_cross_timestep": True,
    }


def wan(rows: int) -> dict[str, Any]:
    return channels_first(rows) | text(rows)


def wan_image(rows: int) -> dict[str, Any]:
    """The image attention counts on 512 text tokens."""
    return channels_first(rows) | text(rows, length=512) | {"encoder_hidden_states_image": torch.randn(rows, 3, TEXT_WIDTH)}


def wan_vace(rows: int) -> dict[str, Any]:
    """The control scale has one value a control block, not an image."""
    return wan(rows) | {
        "control_hidden_states": torch.randn(rows, 6, 2, 4, 4),
        "control_hidden_states_scale": torch.linspace(0.5, 1, BATCH),
    }


def wan_animate(rows: int) -> dict[str, Any]:
    return wan_image(rows) | {
        "hidden_states": torch.randn(rows, 2 * CHANNELS + 4, 2, 4, 4),
        "pose_hidden_states": torch.randn(rows, CHANNELS, 1, 4, 4),
        "face_pixel_values": torch.randn(rows, 3, 4, 8, 8),
    }


def wan_animate_2(rows: int) -> dict[str, Any]:
    """One image whatever `rows` is, as in the pipeline: the cache that the reference pass filled belongs to it."""
    kv_cache = WanAnimate2KVCache(num_layers=4)
    for layer in kv_cache.layer_caches:
        layer.store(torch.randn(1, 4, 2, 12), torch.randn(1, 4, 2, 12))
    return {
        "hidden_states": [torch.randn(CHANNELS, 2, 4, 4)],
        "encoder_hidden_states": [torch.randn(TEXT_LENGTH, TEXT_WIDTH)],
        "encoder_hidden_states_image": torch.randn(1, 3, 1280),
        "condition_latents": [torch.randn(CHANNELS + 4, 2, 4, 4)],
        "kv_cache": kv_cache,
        "kv_cache_mode": "cached",
        "seq_len": 8,
        "reference_grid_sizes": torch.tensor([[1, 2, 2]]),
        "origin_len": 1,
        "origin_area": [32, 32],
        "is_uncondtion": False,
    }


def hunyuan_video(rows: int) -> dict[str, Any]:
    pooled = {"pooled_projections": torch.randn(rows, 10), "guidance": torch.full((rows,), 6000.0)}
    return channels_first(rows) | masked_text(rows) | pooled


def hunyuan_video_framepack(rows: int) -> dict[str, Any]:
    """Frame indices have no batch dimension."""
    return hunyuan_video(rows) | {
        "hidden_states": torch.randn(rows, CHANNELS, BATCH, 4, 4),
        "image_embeds": torch.randn(rows, 3, 6),
        "indices_latents": torch.arange(9, 9 + BATCH),
        "latents_clean": torch.randn(rows, CHANNELS, 2, 4, 4),
        "indices_latents_clean": torch.tensor([0, 8]),
        "latents_history_2x": torch.randn(rows, CHANNELS, 2, 4, 4),
        "indices_latents_history_2x": torch.tensor([6, 7]),
        "latents_history_4x": torch.randn(rows, CHANNELS, BATCH, 4, 4),
        "indices_latents_history_4x": torch.arange(1, 1 + BATCH),
    }


def hunyuan_video15(rows: int) -> dict[str, Any]:
    """Noise, first frame and mask side by side; two text encoders; a conditioning image."""
    return masked_text(rows) | {
        "hidden_states": torch.randn(rows, 2 * CHANNELS + 1, 2, 2, 2),
        "encoder_hidden_states_2": torch.randn(rows, 3, 8),
        "encoder_attention_mask_2": padding(rows, 3).long(),
        "image_embeds": torch.randn(rows, 3, 6),
    }


def cosmos3(rows: int) -> dict[str, Any]:
    """One image whatever `rows` is: text and video tokens are packed in one sequence without a batch dimension."""
    words, frames = torch.arange(BATCH), torch.arange(BATCH)
    tokens = BATCH + frames  # one a frame
    video_positions = torch.stack([BATCH + frames, torch.zeros_like(frames), torch.zeros_like(frames)])
    return {
        "input_ids": torch.randint(16, (BATCH,)),
        "text_indexes": words,
        "position_ids": torch.cat([words.expand(3, -1), video_positions], dim=1),
        "und_len": BATCH,
        "sequence_length": 2 * BATCH,
        "vision_tokens": [torch.randn(1, CHANNELS, BATCH, 2, 2)],
        "vision_token_shapes": [(BATCH, 1, 1)],
        "vision_sequence_indexes": tokens,
        "vision_mse_loss_indexes": tokens,
        "vision_noisy_frame_indexes": [frames],
    }


def kandinsky5(rows: int) -> dict[str, Any]:
    return text(rows, length=BATCH) | {
        "hidden_states": torch.randn(rows, BATCH, 4, 4, 2 * CHANNELS + 1),
        "pooled_projections": torch.randn(rows, 10),
        "visual_rope_pos": [torch.arange(BATCH), torch.arange(2), torch.arange(2)],
        "text_rope_pos": torch.arange(BATCH),
        "scale_factor": (1.0, 2.0, 2.0),
    }


def kandinsky6(rows: int) -> dict[str, Any]:
    """Image to video: the last frame is the clean reference and has token type 1."""
    return masked_text(rows, torch.bool) | {
        "hidden_states": torch.randn(rows, BATCH, 4, 4, 2 * CHANNELS + 1),
        "audio_hidden_states": torch.randn(rows, 3, 6),
        "pooled_projections": torch.randn(rows, 10),
        "visual_rope_pos": (torch.tensor([0, 1, 2, 0]), torch.arange(2), torch.arange(2)),
        "visual_token_type_ids": torch.tensor([[0, 0, 0, 1]]).repeat(rows, 1),
    }


COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 8,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 4,
    "sample_width": 2,
    "sample_height": 2,
    "max_text_seq_length": TEXT_LENGTH,
    "use_rotary_positional_embeddings": True,
}
WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}
WAN_IMAGE = WAN | {"image_dim": TEXT_WIDTH, "added_kv_proj_dim": 24}
HUNYUAN: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 4, 4),
}
KANDINSKY: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": TEXT_WIDTH,
    "in_text_dim2": 10,
    "time_dim": 16,
    "model_dim": 24,
    "ff_dim": 32,
    "num_text_blocks": 2,
    "num_visual_blocks": 4,
    "axes_dims": (4, 4, 4),
    "visual_cond": True,
}

FAMILIES: list[Family] = [
    Family(
        model_class=LatteTransformer3DModel,
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "sample_size": 4,
            "patch_size": 2,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": TEXT_WIDTH,
            "video_length": 2,
        },
        inputs=wan,
        timestep=thousands,
    ),
    Family(model_class=CogVideoXTransformer3DModel, config=COGVIDEOX, inputs=cogvideox, timestep=thousands),
    Family(
        model_class=ConsisIDTransformer3DModel,
        config=COGVIDEOX
        | {
            "is_train_face": True,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 10,
            "LFE_vit_dim": 16,
            "LFE_depth": BATCH,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 3,
            "LFE_output_dim": 21,
            "LFE_ff_mult": 2,
            "LFE_num_scale": BATCH,
        },
        inputs=consisid,
        timestep=thousands,
    ),
    Family(
        model_class=AllegroTransformer3DModel,
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": 4,
            "cross_attention_dim": 24,
            "sample_height": 2,
            "sample_width": 2,
            "sample_frames": BATCH,
            "caption_channels": TEXT_WIDTH,
        },
        inputs=allegro,
        timestep=thousands,
    ),
    Family(
        model_class=MochiTransformer3DModel,
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 4,
            "pooled_projection_dim": 12,
            "in_channels": CHANNELS,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        inputs=lambda rows: channels_first(rows) | masked_text(rows, torch.bool) | text(rows, width=16),
        timestep=thousands,
    ),
    Family(
        model_class=LTXVideoTransformer3DModel,
        config={
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "num_layers": 4,
            "caption_channels": TEXT_WIDTH,
        },
        inputs=ltx,
        timestep=thousands,
    ),
    Family(
        model_class=LTX2VideoTransformer3DModel,
        config={
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "audio_in_channels": CHANNELS,
            "audio_out_channels": CHANNELS,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 4,
            "caption_channels": TEXT_WIDTH,
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "perturbed_attn": True,
        },
        inputs=ltx2,
        timestep=lambda rows, value: thousands(rows, value) | {"sigma": torch.full((rows,), 1000 * value)},
    ),
    Family(model_class=WanTransformer3DModel, config=WAN, inputs=wan, timestep=thousands),
    Family(
        model_class=WanVACETransformer3DModel,
        config=WAN | {"num_layers": 5, "vace_layers": [0, 1, 3, 4], "vace_in_channels": 6},
        inputs=wan_vace,
        timestep=thousands,
    ),
    Family(
        model_class=WanAnimateTransformer3DModel,
        config=WAN_IMAGE
        | {
            "in_channels": None,
            "latent_channels": CHANNELS,
            "motion_encoder_channel_sizes": {"4": 6, "8": 6},
            "motion_encoder_size": 8,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        inputs=wan_animate,
        timestep=thousands,
    ),
    Family(
        model_class=WanAnimate2Transformer3DModel,
        config={
            "text_len": TEXT_LENGTH + 3,
            "in_dim": 2 * CHANNELS + 4,
            "dim": 24,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": TEXT_WIDTH,
            "out_dim": CHANNELS,
            "num_heads": 2,
            "num_layers": 4,
        },
        inputs=wan_animate_2,
        timestep=lambda rows, value: thousands(1, value),
    ),
    Family(model_class=HunyuanVideoTransformer3DModel, config=HUNYUAN, inputs=hunyuan_video, timestep=thousands),
    Family(
        model_class=HunyuanVideoFramepackTransformer3DModel,
        config=HUNYUAN | {"has_image_proj": True, "image_proj_dim": 6, "has_clean_x_embedder": True},
        inputs=hunyuan_video_framepack,
        timestep=thousands,
    ),
    Family(
        model_class=HunyuanVideo15Transformer3DModel,
        config={
            "in_channels": 2 * CHANNELS + 1,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": TEXT_WIDTH,
            "text_embed_2_dim": 8,
            "image_embed_dim": 6,
            "rope_axes_dim": (4, 4, 4),
        },
        inputs=hunyuan_video15,
        timestep=thousands,
    ),
    Family(model_class=SkyReelsV2Transformer3DModel, config=WAN, inputs=wan, timestep=thousands),
    Family(model_class=ChronoEditTransformer3DModel, config=WAN_IMAGE, inputs=wan_image, timestep=thousands),
    Family(
        model_class=EasyAnimateTransformer3DModel,
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "patch_size": 2,
            "num_layers": 4,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "add_norm_text_encoder": True,
            "text_embed_dim": TEXT_WIDTH,
        },
        inputs=wan,
        timestep=thousands,
    ),
    Family(
        model_class=CosmosTransformer3DModel,
        config={
            "in_channels": CHANNELS + 1,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 4,
            "text_embed_dim": TEXT_WIDTH,
            "adaln_lora_dim": 8,
            "max_size": (4, 8, 8),
            "concat_padding_mask": False,  # resizing the mask takes torchvision
        },
        inputs=lambda rows: wan(rows) | {"condition_mask": torch.ones(rows, 1, 2, 4, 4), "fps": 16},
    ),
    Family(
        model_class=Cosmos3OmniTransformer,
        config={
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 32,
            "latent_channel": CHANNELS,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "patch_latent_dim": 4 * CHANNELS,
            "vocab_size": 16,
            "rope_axes_dim": [2, 2, 2],
        },
        inputs=cosmos3,
        timestep=lambda rows, value: {"vision_timesteps": torch.full((BATCH,), 1000 * value)},
    ),
    Family(
        model_class=SanaVideoTransformer3DModel,
        config={
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": TEXT_WIDTH,
            "rope_max_seq_len": 32,
        },
        inputs=lambda rows: channels_first(rows) | masked_text(rows),
        timestep=thousands,
    ),
    Family(model_class=Kandinsky5Transformer3DModel, config=KANDINSKY, inputs=kandinsky5, timestep=thousands),
    Family(
        model_class=Kandinsky6Transformer3DModel,
        config=KANDINSKY
        | {
            "in_audio_dim": 6,
            "out_audio_dim": 6,
            "model_dim_a": 16,
            "ff_dim_a": 24,
            "axes_dims_a": (4, 2, 2),
            "visual_token_type_num_embeddings": 2,
        },
        inputs=kandinsky6,
        timestep=thousands,
    ),
]
