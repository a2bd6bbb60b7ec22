"""Small models of the audio and music transformers, and of recent image and video transformers.

Each text mask is what the class's pipeline makes: real tokens first, or last where the pipeline pads on the left; all tokens
real where the pipeline pads to the longest caption of the batch.
"""

from typing import Any

import torch
from diffusers import (
    AceStepTransformer1DModel,
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    ErnieImageTransformer2DModel,
    GlmImageTransformer2DModel,
    HeliosTransformer3DModel,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Kandinsky6SRTransformer3DModel,
    LongCatAudioDiTTransformer,
    MiniMaxH3Transformer3DModel,
    MiniMaxMusic3Transformer1DModel,
    MotifVideoTransformer3DModel,
    NucleusMoEImageTransformer2DModel,
    PriorTransformer,
    SanaWMLTX2RefinerTransformer3DModel,
    SanaWMTransformer3DModel,
    StableAudio3DiTModel,
    StableAudioDiTModel,
    Transformer2DModel,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers import t5_film_transformer
from diffusers.models.transformers.transformer_ideogram4 import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from torch import Tensor

from families.base import Family

TEXT_DIM = 12
TEXT_TOKENS = 5
WIDTH = {"num_attention_heads": 2, "attention_head_dim": 8}


def _text(rows: int, tokens: int = TEXT_TOKENS) -> Tensor:
    return torch.randn(rows, tokens, TEXT_DIM)


def _mask(rows: int, tokens: int = TEXT_TOKENS) -> Tensor:
    """A caption of its own length in every row, padded on the right."""
    return torch.arange(tokens) < torch.randint(2, tokens + 1, (rows, 1))


def _thousands(rows: int, value: float) -> dict[str, Any]:
    return {"timestep": torch.full((rows,), value * 1000)}


class T5FilmDecoder(t5_film_transformer.T5FilmDecoder):
    """The decoder with the other classes' `return_dict` argument, which its own forward call lacks."""

    def forward(
        self, encodings_and_masks: Any, decoder_input_tokens: Tensor, decoder_noise_time: Tensor, return_dict: bool = True
    ) -> tuple[Tensor]:
        return (super().forward(encodings_and_masks, decoder_input_tokens, decoder_noise_time),)


def _t5_film(rows: int) -> dict[str, Any]:
    notes = (torch.randn(rows, 4, 16), _mask(rows, 4))
    context = (torch.randn(rows, 3, 16), torch.ones(rows, 3, dtype=torch.bool))
    return {"encodings_and_masks": [notes, context], "decoder_input_tokens": torch.randn(rows, 6, 4)}


def _stable_audio(rows: int) -> dict[str, Any]:
    """Three latents and the prepended timestep token, so that the rotary embedding has four rows."""
    return {
        "hidden_states": torch.randn(rows, 4, 3),
        "encoder_hidden_states": _text(rows),
        "global_hidden_states": torch.randn(rows, 1, 10),
        "rotary_embedding": get_1d_rotary_pos_embed(4, 4, use_real=True, repeat_interleave_real=False),
    }


def _stable_audio_3(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 4, 6),
        "encoder_hidden_states": _text(rows),
        "global_hidden_states": torch.randn(rows, 10),
        "encoder_attention_mask": _mask(rows).long(),
        "local_add_cond": torch.randn(rows, 3, 6),
    }


def _ace_step(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 8, 4),
        "encoder_hidden_states": _text(rows),
        "context_latents": torch.randn(rows, 8, 6),
    }


def _longcat_audio(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 6, 4),
        "encoder_hidden_states": _text(rows),
        "encoder_attention_mask": _mask(rows),
        "attention_mask": torch.ones(rows, 6, dtype=torch.bool),
        "latent_cond": torch.zeros(rows, 6, 4),
    }


def _minimax_h3(rows: int) -> dict[str, Any]:
    """Four rows each of text, audio and video in one packed sequence, whose description all images of the batch share."""
    audio_and_video = torch.tensor([[4, 0, 0], [5, 0, 0], [6, 0, 0], [7, 0, 1], [4, 0, 0], [4, 0, 1], [5, 0, 0], [5, 0, 1]])
    return {
        "hidden_states": torch.randn(rows, 4, 16),
        "audio_hidden_states": torch.randn(rows, 4, 4),
        "encoder_hidden_states": _text(rows, 4),
        "timestep_indices": torch.tensor([1, 1, 1, 1, 3, 0, 0, 0, 2, 1, 1, 1]),
        "token_tags": torch.arange(3).repeat_interleave(4),
        "position_ids": torch.cat([torch.tensor([[t, 0, 0] for t in range(4)]), audio_and_video]).double(),
        "text_indices": torch.arange(4),
        "audio_indices": torch.arange(4, 8),
        "video_indices": torch.arange(8, 12),
    }


def _minimax_h3_timestep(rows: int, value: float) -> dict[str, Any]:
    """The sequence's distinct timesteps: generated audio, generated video, first frame, reference audio."""
    return {"timestep": torch.tensor([0.9 * value, value, 0.999, 1.0])}


def _anyflow(rows: int) -> dict[str, Any]:
    return {"hidden_states": torch.randn(rows, 4, 4, 4, 4), "encoder_hidden_states": _text(rows)}


def _anyflow_timestep(rows: int, value: float) -> dict[str, Any]:
    """A timestep per frame, and the one that the step leads to."""
    return {"timestep": torch.full((rows, 4), value * 1000), "r_timestep": torch.full((rows, 4), value * 900)}


def _glm_image(rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(rows, 4, 4, 4),
        "encoder_hidden_states": _text(rows),
        "prior_token_id": torch.randint(16, (rows, 4)),
        "prior_token_drop": torch.zeros(rows, 4, dtype=torch.bool),
        "target_size": torch.full((rows, 2), 32.0),
        "crop_coords": torch.zeros(rows, 2),
    }


def _helios(rows: int) -> dict[str, Any]:
    """One frame, and a history of two near, two middle and four far frames. Frame indices have no batch dimension."""
    far, middle, near, frames = torch.arange(9).split([4, 2, 2, 1])
    return {
        "hidden_states": torch.randn(rows, 4, 1, 4, 4),
        "encoder_hidden_states": _text(rows),
        "indices_hidden_states": frames[None],
        "indices_latents_history_short": near[None],
        "indices_latents_history_mid": middle[None],
        "indices_latents_history_long": far[None],
        "latents_history_short": torch.randn(rows, 4, 2, 4, 4),
        "latents_history_mid": torch.randn(rows, 4, 2, 4, 4),
        "latents_history_long": torch.randn(rows, 4, 4, 4, 4),
    }


def _ideogram4(rows: int) -> dict[str, Any]:
    """Captions padded on the left to five tokens, followed by four image tokens."""
    is_text = _mask(rows).flip(1)
    is_image = torch.ones(rows, 4, dtype=torch.bool)
    text_position = (is_text.long().cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, 3)
    image_position = torch.tensor([[0, y, x] for y in range(2) for x in range(2)]) + IMAGE_POSITION_OFFSET
    real = torch.cat([is_text, is_image], 1)
    return {
        "hidden_states": torch.cat([torch.zeros(rows, TEXT_TOKENS, 4), torch.randn(rows, 4, 4)], 1),
        "encoder_hidden_states": _text(rows, TEXT_TOKENS + 4) * torch.cat([is_text, ~is_image], 1)[..., None],
        "position_ids": torch.cat([text_position, image_position.expand(rows, -1, -1)], 1),
        "segment_ids": torch.where(real, 1, SEQUENCE_PADDING_INDICATOR),
        "indicator": torch.cat([is_text * LLM_TOKEN_INDICATOR, is_image * OUTPUT_IMAGE_INDICATOR], 1),
    }


def _joyimage_edit_plus(rows: int) -> dict[str, Any]:
    """A target and one or two reference images of a row's own shapes, in patches, padded to eight patches."""
    shapes = [[(1, 2, 2), (1, 1, 2)], [(1, 2, 2), (1, 2, 2)], [(1, 2, 2), (1, 1, 2), (1, 1, 2)], [(1, 1, 4), (1, 1, 3)]]
    return {
        "hidden_states": torch.randn(rows, 8, 4, 1, 2, 2),
        "encoder_hidden_states": _text(rows),
        "encoder_hidden_states_mask": torch.ones(rows, TEXT_TOKENS, dtype=torch.long),
        "shape_list": [shapes[row % 4] for row in range(rows)],
    }


def _sana_wm(rows: int) -> dict[str, Any]:
    """Two frames of 2×2 latents, and a camera per frame: its pose, its focal lengths and its centre."""
    turns = torch.randn(rows, 2, 3, 3) / 4
    pose = torch.eye(4).repeat(rows, 2, 1, 1)
    pose[..., :3, :3] = torch.matrix_exp(turns - turns.mT)
    pose[..., :3, 3] = torch.randn(rows, 2, 3)
    return {
        "hidden_states": torch.randn(rows, 4, 2, 2, 2),
        "encoder_hidden_states": _text(rows),
        "mask": _mask(rows).long(),
        "camera_conditions": torch.cat([pose.flatten(2), torch.tensor([2.0, 2.0, 1.0, 1.0]).expand(rows, 2, 4)], -1),
        "chunk_plucker": torch.randn(rows, 6, 2, 2, 2),
        "data_info": {"img_hw": torch.tensor([[64.0, 64.0]])},
    }


def _sana_wm_timestep(rows: int, value: float) -> dict[str, Any]:
    """Zero for the given first frame."""
    return {"timestep": torch.tensor([0.0, value * 1000]).repeat(rows, 1, 1)}


def _sana_wm_refiner(rows: int) -> dict[str, Any]:
    angles = torch.rand(rows, 6, 8).repeat_interleave(2, -1)
    return {
        "hidden_states": torch.randn(rows, 6, 4),
        "encoder_hidden_states": _text(rows),
        "encoder_attention_mask": _mask(rows).long(),
        "video_rotary_emb": (angles.cos(), angles.sin()),
    }


FAMILIES: list[Family] = [
    Family(
        model_class=PriorTransformer,
        config=WIDTH | {"num_layers": 4, "embedding_dim": TEXT_DIM, "num_embeddings": TEXT_TOKENS},
        inputs=lambda rows: {
            "hidden_states": torch.randn(rows, TEXT_DIM),
            "proj_embedding": torch.randn(rows, TEXT_DIM),
            "encoder_hidden_states": _text(rows),
            "attention_mask": _mask(rows),
        },
        timestep=_thousands,
        spread=0.3,
    ),
    Family(
        model_class=Transformer2DModel,
        config=WIDTH
        | {"in_channels": 4, "out_channels": 8, "num_layers": 4, "sample_size": 8, "patch_size": 2, "attention_bias": True}
        | {"activation_fn": "gelu-approximate", "num_embeds_ada_norm": 10}
        | {"norm_type": "ada_norm_zero", "norm_elementwise_affine": False},
        inputs=lambda rows: {"hidden_states": torch.randn(rows, 4, 8, 8), "class_labels": torch.randint(10, (rows,))},
        timestep=_thousands,
    ),
    Family(
        model_class=T5FilmDecoder,
        config={"input_dims": 4, "targets_length": 8, "d_model": 16, "num_layers": 4, "num_heads": 2, "d_kv": 8, "d_ff": 32},
        inputs=_t5_film,
        timestep=lambda rows, value: {"decoder_noise_time": torch.full((rows,), value)},
    ),
    Family(
        model_class=StableAudioDiTModel,
        config=WIDTH
        | {"in_channels": 4, "out_channels": 4, "num_layers": 4, "num_key_value_attention_heads": 1, "cross_attention_dim": 8}
        | {"time_proj_dim": 8, "global_states_input_dim": 10, "cross_attention_input_dim": TEXT_DIM},
        inputs=_stable_audio,
        timestep=lambda rows, value: {"timestep": torch.tensor([value])},
        spread=0.3,
    ),
    Family(
        model_class=StableAudio3DiTModel,
        config={"io_channels": 4, "embed_dim": 16, "depth": 4, "num_heads": 2, "cond_token_dim": TEXT_DIM}
        | {"global_cond_dim": 10, "local_add_cond_dim": 3, "timestep_features_dim": 8, "num_memory_tokens": 2},
        inputs=_stable_audio_3,
        spread=0.3,
    ),
    Family(
        model_class=AceStepTransformer1DModel,
        config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
        | {"num_key_value_heads": 1, "head_dim": 8, "in_channels": 10, "audio_acoustic_hidden_dim": 4, "sliding_window": 1}
        | {"encoder_hidden_size": TEXT_DIM},
        inputs=_ace_step,
        timestep=lambda rows, value: dict.fromkeys(("timestep", "timestep_r"), torch.full((rows,), value)),
    ),
    Family(
        model_class=LongCatAudioDiTTransformer,
        config={"dit_dim": 16, "dit_depth": 4, "dit_heads": 2, "dit_text_dim": TEXT_DIM, "latent_dim": 4},
        inputs=_longcat_audio,
    ),
    Family(
        model_class=MiniMaxMusic3Transformer1DModel,
        config=WIDTH
        | {"in_channels": 4, "condition_dim": TEXT_DIM, "num_layers": 4, "ff_inner_dim": 32, "rotary_dim": 4}
        | {"fourier_embedding_dim": 8},
        inputs=lambda rows: {"hidden_states": torch.randn(rows, 4, 7), "encoder_hidden_states": _text(rows, 7)},
        spread=0.3,
    ),
    Family(
        model_class=MiniMaxH3Transformer3DModel,
        config=WIDTH
        | {"hidden_size": 16, "num_layers": 4, "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 4, "text_dim": TEXT_DIM}
        | {"freq_dim": 8, "time_embed_hidden_dim": 16, "time_embed_dim": 8, "rope_freq_dim": 1},
        inputs=_minimax_h3,
        timestep=_minimax_h3_timestep,
        spread=0.3,
    ),
    Family(
        model_class=AnyFlowTransformer3DModel,
        config={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 4}
        | {"text_dim": TEXT_DIM, "freq_dim": 8, "ffn_dim": 32},
        inputs=_anyflow,
        timestep=_anyflow_timestep,
    ),
    Family(
        model_class=AnyFlowFARTransformer3DModel,  # four chunks of one frame; the first one is compressed, and not an output
        config={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 4}
        | {"text_dim": TEXT_DIM, "freq_dim": 8, "ffn_dim": 32},
        inputs=lambda rows: _anyflow(rows) | {"chunk_partition": [1, 1, 1, 1]},
        timestep=_anyflow_timestep,
    ),
    Family(
        model_class=ErnieImageTransformer2DModel,  # its blocks put the eight tokens first and the rows second
        config={"hidden_size": 16, "num_attention_heads": 2, "num_layers": 4, "ffn_hidden_size": 32, "in_channels": 4}
        | {"out_channels": 4, "text_in_dim": TEXT_DIM, "rope_axes_dim": (4, 2, 2)},
        inputs=lambda rows: {
            "hidden_states": torch.randn(rows, 4, 2, 2),
            "text_bth": _text(rows, 4),
            "text_lens": torch.full((rows,), 4),
        },
        timestep=_thousands,
    ),
    Family(
        model_class=GlmImageTransformer2DModel,
        config=WIDTH
        | {"in_channels": 4, "out_channels": 4, "num_layers": 4, "text_embed_dim": TEXT_DIM, "time_embed_dim": 8}
        | {"condition_dim": 4, "prior_vq_quantizer_codebook_size": 16},
        inputs=_glm_image,
        timestep=_thousands,
    ),
    Family(
        model_class=HeliosTransformer3DModel,
        config={"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 4}
        | {"text_dim": TEXT_DIM, "freq_dim": 8, "ffn_dim": 32, "rope_dim": (4, 4, 4)},
        inputs=_helios,
        timestep=_thousands,
    ),
    Family(
        model_class=Ideogram4Transformer2DModel,
        config=WIDTH
        | {"in_channels": 4, "num_layers": 4, "intermediate_size": 32, "adaln_dim": 8, "llm_features_dim": TEXT_DIM}
        | {"mrope_section": (2, 1, 1)},
        inputs=_ideogram4,
        timestep=lambda rows, value: {"timestep": torch.full((rows,), 1 - value)},  # as its pipeline does: 1 is clean
    ),
    Family(
        model_class=JoyImageEditTransformer3DModel,
        config={"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": TEXT_DIM, "num_layers": 4}
        | {"rope_dim_list": [4, 2, 2]},
        inputs=lambda rows: {"hidden_states": torch.randn(rows, 2, 4, 1, 4, 4), "encoder_hidden_states": _text(rows)},
        timestep=_thousands,
    ),
    Family(
        model_class=JoyImageEditPlusTransformer3DModel,
        config={"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": TEXT_DIM, "num_layers": 4}
        | {"rope_dim_list": [4, 2, 2]},
        inputs=_joyimage_edit_plus,
        timestep=_thousands,
    ),
    Family(
        model_class=Kandinsky6SRTransformer3DModel,  # wants frames of at least 8×8 tokens
        config={"in_visual_dim": 2, "out_visual_dim": 2, "time_dim": 8, "model_dim": 16, "ff_dim": 32, "num_visual_blocks": 4}
        | {"axes_dims": (4, 2, 2)},
        inputs=lambda rows: {"hidden_states": torch.randn(rows, 2, 8, 8, 5)},
        timestep=_thousands,
    ),
    Family(
        model_class=MotifVideoTransformer3DModel,  # the last two blocks decode: they read the embedded latents once more
        config=WIDTH
        | {"in_channels": 9, "out_channels": 4, "num_layers": 2, "num_single_layers": 4, "num_decoder_layers": 2}
        | {"mlp_ratio": 2.0, "text_embed_dim": TEXT_DIM, "rope_axes_dim": (4, 2, 2)}
        | {"enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True},
        inputs=lambda rows: {
            "hidden_states": torch.randn(rows, 9, 2, 4, 4),
            "encoder_hidden_states": _text(rows),
            "encoder_attention_mask": _mask(rows),
        },
        timestep=_thousands,
        spread=0.3,
    ),
    Family(
        model_class=NucleusMoEImageTransformer2DModel,
        config=WIDTH
        | {"in_channels": 8, "out_channels": 2, "num_layers": 4, "num_key_value_heads": 1, "joint_attention_dim": TEXT_DIM}
        | {"axes_dims_rope": (4, 2, 2), "mlp_ratio": 12.0, "dense_moe_strategy": "leave_first_block_dense"}
        | {"num_experts": 4, "moe_intermediate_dim": 16, "capacity_factors": 2.0},
        inputs=lambda rows: {
            "hidden_states": torch.randn(rows, 4, 8),
            "encoder_hidden_states": _text(rows),
            "img_shapes": [(1, 2, 2)] * rows,
        },
    ),
    Family(
        model_class=SanaWMTransformer3DModel,  # its softmax attention rounds to bfloat16, too coarse to compare rows
        config={"in_channels": 4, "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "softmax_every_n": 0}
        | {"linear_head_dim": 16, "chunk_plucker_channels": 6, "caption_channels": TEXT_DIM, "mlp_ratio": 2.0},
        inputs=_sana_wm,
        timestep=_sana_wm_timestep,
    ),
    Family(
        model_class=SanaWMLTX2RefinerTransformer3DModel,
        config=WIDTH
        | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "num_layers": 4, "caption_channels": TEXT_DIM}
        | {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4}
        | {"audio_cross_attention_dim": 8},
        inputs=_sana_wm_refiner,
        timestep=lambda rows, value: {"timestep": torch.full((rows, 6), value * 1000)},
    ),
]
