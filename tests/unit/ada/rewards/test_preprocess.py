"""Preprocessing against Pillow and against the image processors of transformers."""

import numpy as np
import PIL
import pytest
import torch
from golden.formula import SIZES, formula_image, to_tensor
from golden.stubs import CenterCrop, Resize
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from ada.rewards.preprocess import CropPreparation, PadPreparation, resize_as_pillow

TALL = pytest.param(
    (64, 300),
    (36, 168),
    marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="before, width came first always"),
)


@pytest.mark.parametrize("kind", ["blocks", "noise"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((16, 16), (32, 32)),
        ((33, 57), (32, 55)),
        ((300, 64), (224, 47)),
        ((7, 9), (224, 288)),
        ((640, 480), (298, 224)),
        ((5, 5), (5, 9)),
        TALL,
    ],
)
def test_resize_is_pillows_to_the_bit(source: tuple[int, int], target: tuple[int, int], kind: str) -> None:
    image = formula_image(1, *source)
    if kind == "noise":
        image = np.where(image % 2, 255, 0).astype(np.uint8)  # rings the most: what is not clamped or not rounded shows
    expected = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))
    ours = (resize_as_pillow(to_tensor(image), target[::-1]) * 255).round()
    assert torch.equal(ours[0].permute(1, 2, 0), torch.from_numpy(expected.copy()).float())


@pytest.mark.parametrize("size", [size for size in SIZES if size != (64, 300)])  # see TALL
def test_crops_are_those_of_both_libraries(size: tuple[int, int]) -> None:
    image = formula_image(2, *size)
    picture = Image.fromarray(image)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=31)
    expected = torch.from_numpy(processor([picture])["pixel_values"][0])
    ours = CropPreparation(size=36, crop=31, offset="lower")(to_tensor(image))[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    cropped = torch.from_numpy(np.asarray(CenterCrop(31)(Resize(36)(picture))).copy()).permute(2, 0, 1) / 255
    torchvisions = CropPreparation(size=36, crop=31, mean=(0.0,) * 3, deviation=(1.0,) * 3)(to_tensor(image))[0]
    torch.testing.assert_close(torchvisions, cropped, atol=1e-6, rtol=0)


def test_rounding_is_left_out_for_gradients_and_on_request() -> None:
    image = to_tensor(formula_image(3, 20, 20)) * 0.9993
    plain = CropPreparation(size=16, crop=16, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    rounded, wanted = plain(image), plain(image.clone().requires_grad_(True))
    assert (rounded * 255 - (rounded * 255).round()).abs().max() < 1e-4
    assert (rounded - wanted).abs().max() < 2 / 255
    assert not torch.equal(rounded, wanted)
    expected = F.interpolate(image, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(wanted.detach(), expected.clamp(0, 1), atol=0.02, rtol=0)


def test_padding_keeps_the_whole_image_in_the_middle() -> None:
    images = torch.ones(1, 3, 20, 41)
    prepared = PadPreparation(size=32, mean=(0.0,) * 3, deviation=(1.0,) * 3)(images)
    rows = round(20 * 32 / 41)  # 16
    top = (32 - rows) // 2
    assert prepared.shape == (1, 3, 32, 32)
    torch.testing.assert_close(prepared[..., top : top + rows, :], torch.ones(1, 3, rows, 32))
    assert prepared.sum() == pytest.approx(3 * rows * 32)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`crop` must be at most `size` \(16\); got 32"):
        CropPreparation(size=16, crop=32)
