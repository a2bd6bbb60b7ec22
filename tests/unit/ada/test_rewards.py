"""Rewards against other implementations and hand-made cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_clip_folder
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from ada.rewards import PSNR, SSIM, ClipScore, PerceptualDistance, Relative, Reward, RewardError, WeightedReward


class Brightness(Reward):
    """A user's reward: the mean of the pixels."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str], reference: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip_folder(tmp_path_factory.mktemp("clip")))


def test_clip_score_equals_transformers_own_path(clip_folder: str) -> None:
    """PIL images through the stock processor and model give the same score as tensors through ours."""
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    prompts = ["a dog", "", "the very long prompt of a text that has to be cut"]
    ours = ClipScore(clip_folder)(pixels / 255, prompts, pixels / 255)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), AutoTokenizer.from_pretrained(clip_folder)
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in pixels]
    inputs = CLIPImageProcessorPil.from_pretrained(clip_folder)(pictures, return_tensors="pt")
    text = tokenizer(prompts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, input_ids=text.input_ids, attention_mask=text.attention_mask).logits_per_image
        expected = 100 * (logits.diagonal() / model.logit_scale.exp()).clamp(min=0)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)
    assert ours.std() > 0.1


def test_perceptual_distance_is_zero_for_the_reference_and_grows(clip_folder: str) -> None:
    reward = PerceptualDistance(clip_folder)
    reference, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    near, far = (reward((reference + scale * noise).clamp(0, 1), ["", ""], reference) for scale in (0.02, 0.3))
    assert reward(reference, ["", ""], reference).abs().max() < 1e-6
    assert (far < near).all()
    assert (near < 0).all()


def test_psnr_and_ssim_by_hand() -> None:
    reference = torch.full((2, 3, 16, 16), 0.5)
    images = torch.stack([reference[0] + 0.1, reference[1]])
    assert PSNR()(images, [], reference).tolist() == pytest.approx([20.0, 60.0], abs=1e-4)
    # constant images: SSIM is its luminance term (2ab + c)/(a² + b² + c) with c = 0.01²
    expected = (2 * 0.6 * 0.5 + 1e-4) / (0.6**2 + 0.5**2 + 1e-4)
    assert SSIM()(images, [], reference).tolist() == pytest.approx([expected, 1.0], abs=1e-4)


def test_relative_subtracts_the_reference_and_caps_the_gain() -> None:
    reference = torch.full((3, 3, 4, 4), 0.5)
    images = torch.stack([reference[0] - 0.2, reference[1] + 0.05, reference[2] + 0.3])
    values = Relative(Brightness(), positive_cap=0.1)(images, [], reference)
    assert values.tolist() == pytest.approx([-0.2, 0.05, 0.1], abs=1e-6)


def test_weighted_sum_and_its_parts() -> None:
    reward = WeightedReward({"bright": Brightness(), "psnr": PSNR()}, {"bright": 2.0, "psnr": 0.1})
    images = torch.full((1, 3, 16, 16), 0.5)
    result = reward(images, ["grey"], images)
    assert result.total.item() == pytest.approx(2 * 0.5 + 0.1 * 60)
    assert result.parts["bright"].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="same parts"):
        WeightedReward({"bright": Brightness()}, {"dark": 1.0})


def test_nan_names_part_prompt_and_image() -> None:
    reward = WeightedReward({"bright": Brightness()}, {"bright": 1.0})
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(RewardError, match=r"`bright` gave nan for image 1 of the batch, prompt 'a cat'"):
        reward(images, ["a dog", "a cat"], images)


def test_missing_scorer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No scorer in"):
        ClipScore(str(tmp_path / "none"))
