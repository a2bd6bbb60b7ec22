"""Small real models, built from configs, that many tests share."""

import os
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

NUM_BLOCKS = 4

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers and what they start share the cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter a random value: modulation layers that start at zero would hide what a block does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model.eval()


def build_pixart() -> PixArtTransformer2DModel:
    return scramble(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=NUM_BLOCKS,
            cross_attention_dim=16,
            caption_channels=12,
            in_channels=4,
            out_channels=4,
            sample_size=8,
            patch_size=2,
        )
    )


def build_sd3() -> SD3Transformer2DModel:
    return scramble(
        SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=NUM_BLOCKS,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=12,
        )
    )


def build_flux() -> FluxTransformer2DModel:
    return scramble(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=12,
            axes_dims_rope=(4, 4, 8),
        )
    )


def build_tokenizer() -> T5Tokenizer:
    letters = [(f"▁{letter}", -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    letters += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)


def build_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A random T5 encoder of width 12."""
    config = T5Config(vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return scramble(T5EncoderModel(config))


def build_vae() -> AutoencoderKL:
    """A random autoencoder that halves 16×16 pixels."""
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=1.0,
    ).eval()  # fmt: skip


def build_pixart_pipeline() -> PixArtAlphaPipeline:
    """A random PixArt-α pipeline of 4 blocks and 16×16 pixels."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    pipeline = PixArtAlphaPipeline(
        tokenizer, build_text_encoder(tokenizer), build_vae(), build_pixart(),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pixart_pipeline() -> PixArtAlphaPipeline:
    return build_pixart_pipeline()


def build_clip_folder(folder: Path) -> Path:
    """A random CLIP of 16×16 pixels with tokenizer and image processor, saved."""
    torch.manual_seed(3)
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = CLIPConfig(text_config=tower | text, vision_config=tower | {"image_size": 16, "patch_size": 4}, projection_dim=8)
    scramble(CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def build_dino_folder(folder: Path) -> Path:
    """A random DINOv2 of 28×28 pixels with its image processor, saved."""
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    scramble(Dinov2Model(config)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=28).save_pretrained(folder)
    return folder
