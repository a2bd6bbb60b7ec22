"""The same evaluation on a small random video pipeline: metrics frame by frame, an animated grid, peers."""

from pathlib import Path

import pytest
import torch
from conftest import build_clip_folder, build_text_encoder, build_tokenizer, build_vae, scramble
from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel
from PIL import Image
from rich.console import Console

from ada.evaluation import Embedding, Request, default_metrics, evaluate_methods, peer_methods, training_free
from ada.rollouts import FrozenPipeline

FRAMES = 4
STEPS = 6


def build_latte_pipeline() -> LattePipeline:
    """A random Latte pipeline of 2 pairs of blocks, 4 frames and 16×16 pixels."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = scramble(
        LatteTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16,
            caption_channels=12, sample_size=8, patch_size=2, video_length=FRAMES, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6, num_embeds_ada_norm=1000, attention_bias=True,
            activation_fn="gelu-approximate",
        )
    )  # fmt: skip
    pipeline = LattePipeline(
        tokenizer, build_text_encoder(tokenizer), build_vae(), transformer, DDIMScheduler(clip_sample=False)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def subject() -> FrozenPipeline:
    arguments = {
        "height": 16, "width": 16, "video_length": FRAMES, "guidance_scale": 2.0, "mask_feature": False,
        "enable_temporal_attentions": True, "clean_caption": False,
    }  # fmt: skip
    return FrozenPipeline(build_latte_pipeline(), STEPS, arguments)


def test_videos_are_measured_frame_by_frame(subject: FrozenPipeline, tmp_path: Path) -> None:
    scorer = str(build_clip_folder(tmp_path / "scorer"))
    prompts = ["a b", "c", "d"]
    request = Request(
        prompts=prompts, indices=range(3), metrics=default_metrics(scorer), embed=Embedding(scorer), output=tmp_path / "out",
        batch_size=2, rounds=0, thorough=True,
    )  # fmt: skip
    chosen = [*training_free(subject), *peer_methods(subject, ["x"], [9])]
    results = evaluate_methods(subject, chosen, request, Console(record=True, width=180))

    reference, dance = results.methods[0], results.method("BlockDance-2, block 3, order 0")
    assert reference.per_prompt["worst_frame_distance"] == [0.0] * 3
    assert reference.per_prompt["flicker"] == pytest.approx([0.0] * 3)
    assert min(dance.per_prompt["perceptual_distance"]) > 0
    for mean, worst in zip(dance.per_prompt["perceptual_distance"], dance.per_prompt["worst_frame_distance"], strict=True):
        assert mean < worst <= FRAMES * mean
    # 40 to 95 % of six steps are steps 2 to 5, of which two reuse: after all four blocks, so nearly two of six steps are saved
    assert dance.actions == [[0, 0, 0, 1, 0, 1]] * 3
    assert all(0.25 < saved < 1 / 3 for saved in dance.per_prompt["compute_saved"])

    broadcast = results.method("PyramidAttentionBroadcast")
    deep = results.method("DeepCache, N=2")
    assert deep.actions == [[0, 1, 0, 1, 0, 1]] * 3
    assert 0 < broadcast.estimates["compute_saved"].value < 1
    gated = next(method for method in results.methods if method.name.startswith("T-GATE"))
    assert "none for LattePipeline" in str(gated.reason)

    with Image.open(tmp_path / "out" / "grid.webp") as grid:
        assert grid.n_frames == FRAMES
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "worst_frame_distance" in page
    assert "Worst frame" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
