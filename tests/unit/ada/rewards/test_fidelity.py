"""Distances to the reference against scikit-image (recorded), numpy, and cases worked out by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_clip_folder, build_dino_folder
from diffusers import AutoencoderKL
from golden.builders import recorded
from golden.formula import formula_image, to_tensor
from golden.record import fidelity_pairs
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, Dinov2Model

from ada.rewards import PSNR, SSIM, LatentDistance, PerceptualDistance, Reward


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(("reward", "name", "tolerance"), [(PSNR(), "psnr", 1e-3), (SSIM(), "ssim", 1e-4)])
def test_psnr_and_ssim_equal_scikit_image(reward: Reward, name: str, tolerance: float) -> None:
    images, references = (torch.cat([as_batch(pair[side]) for pair in fidelity_pairs()]) for side in (0, 1))
    expected = torch.tensor(recorded("fidelity")[name])
    torch.testing.assert_close(reward(images, [""] * 4, references), expected, atol=tolerance, rtol=0)


def test_psnr_and_ssim_by_hand() -> None:
    reference = torch.full((2, 3, 16, 16), 0.5)
    images = torch.stack([reference[0] + 0.1, reference[1]])
    assert PSNR()(images, [], reference).tolist() == pytest.approx([20.0, 60.0], abs=1e-4)
    # constant images: SSIM is its luminance term (2ab + c)/(a² + b² + c) with c = 0.01²
    expected = (2 * 0.6 * 0.5 + 1e-4) / (0.6**2 + 0.5**2 + 1e-4)
    assert SSIM()(images, [], reference).tolist() == pytest.approx([expected, 1.0], abs=1e-4)


def numpy_distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The formula of `PerceptualDistance`, spelt out: layers of `(positions, width)`."""
    layers = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = a / np.linalg.norm(a, axis=-1, keepdims=True), b / np.linalg.norm(b, axis=-1, keepdims=True)
        layers.append(np.mean(np.sum((a - b) ** 2, axis=-1)))
    return float(np.mean(layers))


def test_older_spellings_of_sizes_are_understood(tmp_path: Path) -> None:
    """One number for size and crop, as the first processors wrote them."""
    new, old = build_dino_folder(tmp_path / "new"), tmp_path / "old"
    shutil.copytree(new, old)
    settings = json.loads((old / "preprocessor_config.json").read_text())
    (old / "preprocessor_config.json").write_text(json.dumps(settings | {"size": 32, "crop_size": 28}))
    images, reference = torch.rand(1, 3, 40, 33), torch.rand(1, 3, 40, 33)
    values = [PerceptualDistance(str(folder))(images, [""], reference) for folder in (new, old)]
    assert values[0].item() == values[1].item() != 0


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_perceptual_distance_equals_its_formula_on_the_stock_model(kind: str, tmp_path: Path) -> None:
    """PIL images through the stock processor and model, the rest in numpy. Sizes at which Pillow rounds nothing."""
    side = 16 if kind == "clip" else 32
    pictures = [formula_image(index, side, side) for index in (0, 1)]
    if kind == "clip":
        model = CLIPModel.from_pretrained(build_clip_folder(tmp_path)).vision_model
        processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    else:
        model = Dinov2Model.from_pretrained(build_dino_folder(tmp_path)).eval()
        processor = BitImageProcessorPil.from_pretrained(tmp_path)
    pixels = torch.from_numpy(np.stack(processor([Image.fromarray(picture) for picture in pictures])["pixel_values"]))
    with torch.no_grad():
        hidden = [layer.numpy() for layer in model(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]]
    expected = numpy_distance([layer[0] for layer in hidden], [layer[1] for layer in hidden])
    distance = PerceptualDistance(str(tmp_path))(to_tensor(pictures[0]), [""], to_tensor(pictures[1]))
    assert distance.item() == pytest.approx(-expected, rel=1e-4)
    assert expected > 0.01


def test_perceptual_distance_is_zero_for_the_reference_and_sees_what_8_bits_hide(tmp_path: Path) -> None:
    reward = PerceptualDistance(str(build_clip_folder(tmp_path)))
    reference, noise = torch.randint(30, 220, (2, 3, 16, 16)) / 255, torch.rand(2, 3, 16, 16)
    values = [reward(reference + scale * noise, ["", ""], reference) for scale in (0.0, 0.4 / 255, 0.02, 0.08)]
    assert values[0].abs().max() < 1e-6
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()
    assert (values[2] > values[3]).all()


def test_latent_distance_is_that_of_the_encoders_means(tmp_path: Path) -> None:
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=0.5,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    images, reference = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        moments = [vae.quant_conv(vae.encoder(2 * batch - 1)).numpy() for batch in (images, reference)]
    means = [0.5 * moment[:, :4] for moment in moments]
    expected = np.sqrt(((means[0] - means[1]) ** 2).reshape(2, -1).mean(1))
    for model, subfolder in ((tmp_path / "pipeline", "vae"), (tmp_path / "pipeline" / "vae", None)):
        values = LatentDistance(str(model), subfolder)(images, ["", ""], reference)
        assert values.tolist() == pytest.approx((-expected).tolist(), rel=1e-4)
    assert (expected > 1e-3).all()
