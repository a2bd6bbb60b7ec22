"""Metrics against cases worked out by hand."""

from pathlib import Path

import pytest
import torch
from conftest import build_clip_folder

from ada.evaluation.metrics import default_metrics, score
from ada.rewards import load_features


@pytest.fixture
def scorer(tmp_path: Path) -> str:
    return str(build_clip_folder(tmp_path / "scorer"))


def test_an_image_that_is_its_reference(scorer: str) -> None:
    images = torch.rand(3, 3, 16, 16)
    values = score(default_metrics(scorer), images, ["a b", "c", "d"], images.clone())
    assert values["ssim"] == pytest.approx([1.0] * 3)
    assert values["perceptual_distance"] == [0.0] * 3
    assert values["psnr"] == pytest.approx([60.0] * 3)


def test_distances_are_positive_and_grow_with_the_change(scorer: str) -> None:
    reference = torch.rand(1, 3, 16, 16).repeat(2, 1, 1, 1)
    noise = torch.randn(1, 3, 16, 16)
    images = (reference + torch.tensor([0.02, 0.3]).view(2, 1, 1, 1) * noise).clamp(0, 1)
    values = score(default_metrics(scorer), images, ["a", "a"], reference)
    assert 0 < values["perceptual_distance"][0] < values["perceptual_distance"][1]
    assert 1 > values["ssim"][0] > values["ssim"][1]


def test_psnr_by_hand(scorer: str) -> None:
    """An error of 0.1 everywhere is a mean square of 0.01: 20 dB."""
    reference = torch.full((1, 3, 16, 16), 0.5)
    assert score(default_metrics(scorer), reference + 0.1, ["a"], reference)["psnr"] == pytest.approx([20.0], abs=1e-4)


def test_quality_is_the_clip_score_of_the_prompt(scorer: str) -> None:
    images, prompts = torch.rand(2, 3, 16, 16), ["a b c", "z"]
    features = load_features(scorer)
    cosine = (features.embed_images(images) * features.embed_prompts(prompts)).sum(-1)
    values = score(default_metrics(scorer), images, prompts, images)
    assert values["quality"] == pytest.approx((100 * cosine.clamp(min=0)).tolist(), rel=1e-5)
    assert max(values["quality"]) > 0
