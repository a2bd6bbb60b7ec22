"""Metrics against cases worked out by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from conftest import build_clip_folder, build_dino_folder

from ada.evaluation.measure.metrics import Embedding, Metric, default_metrics, flicker, latent_distance, measure_batch
from ada.evaluation.methods.base import Generated
from ada.rewards import PerceptualDistance, load_features


def score(
    metrics: Mapping[str, Metric], images: torch.Tensor, prompts: Sequence[str], reference: torch.Tensor
) -> dict[str, list[float]]:
    """Measures images whose latents are their pixels."""
    return measure_batch(metrics, Generated(images, images.flatten(1)), prompts, Generated(reference, reference.flatten(1)))


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


def test_the_distance_is_measured_by_another_model_where_one_is_named(scorer: str, tmp_path: Path) -> None:
    """As a policy's training measures it by a DINOv2, which scores no texts."""
    dino = str(build_dino_folder(tmp_path / "dino"))
    images, reference = torch.rand(2, 2, 3, 32, 32)
    values = score(default_metrics(scorer, perceptual=dino), images, ["a", "b"], reference)
    by_scorer = score(default_metrics(scorer), images, ["a", "b"], reference)
    assert values["perceptual_distance"] == (-PerceptualDistance(dino)(images, [], reference)).tolist()
    assert values["perceptual_distance"] != by_scorer["perceptual_distance"]
    assert values["quality"] == by_scorer["quality"]


def test_latent_distance_by_hand() -> None:
    """(3, 4) has the length 5; (3, 5) is 1 away, (0, 0) all of it."""
    reference = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    latents = torch.tensor([[3.0, 5.0], [0.0, 0.0]])
    assert latent_distance(latents, reference).tolist() == pytest.approx([0.2, 1.0])


def test_a_video_is_measured_frame_by_frame(scorer: str) -> None:
    """The first frame is the reference's, the second one is off by 0.1: 60 dB (the most) and 20 dB."""
    reference = torch.full((1, 2, 3, 16, 16), 0.5)
    reference[:, :, :, ::2] = 0.25
    video = reference.clone()
    video[:, 1] += 0.1
    values = score(default_metrics(scorer), video, ["a"], reference)
    assert values["psnr"] == pytest.approx([40.0], abs=1e-3)
    assert values["worst_frame_distance"] == pytest.approx([2 * values["perceptual_distance"][0]])
    assert len(values["flicker"]) == 1


def test_flicker_by_hand() -> None:
    """The reference changes by 0.1 a frame, the video by 0.1 and 0.3: twice as much on average."""
    reference = torch.stack([torch.full((3, 4, 4), level) for level in (0.1, 0.2, 0.3)])[None]
    video = torch.stack([torch.full((3, 4, 4), level) for level in (0.1, 0.2, 0.5)])[None]
    assert flicker(video, reference).tolist() == pytest.approx([1.0])
    assert flicker(reference, reference).tolist() == pytest.approx([0.0])


def test_features_of_a_video_are_the_mean_of_its_frames(scorer: str) -> None:
    embed, frames = Embedding(scorer), torch.rand(2, 3, 3, 16, 16)
    whole = embed(frames)
    expected = torch.stack([embed(video).mean(0) for video in frames])
    torch.testing.assert_close(whole, expected)


def test_what_is_neither_image_nor_video_is_refused(scorer: str) -> None:
    sounds = torch.rand(2, 1, 16)
    with pytest.raises(ValueError, match=r"measures images and videos, and this pipeline gives the shape \(2, 1, 16\)"):
        score(default_metrics(scorer), sounds, ["a", "b"], sounds)
