"""Images as a scorer's vision tower wants them, on any device, with the arithmetic of the library it was published with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

IMAGES_AT_ONCE = 8
"""Bounds the memory of resizing: 200 MB of float64 for each copy of eight images of 1024²."""

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class CropPreparation:
    """Resizes the short side as Pillow does, crops the centre, normalises.

    Raises:
        ValueError: a crop larger than the resized image.
    """

    size: int
    """Length of the short side after resizing."""
    crop: int
    """Side of the square that is left."""
    mean: tuple[float, ...] = CLIP_MEAN
    """Subtracted from each channel."""
    deviation: tuple[float, ...] = CLIP_DEVIATION
    """Divides each channel."""
    offset: Literal["nearest", "lower"] = "nearest"
    """Where half a pixel of the crop's corner goes: to the even neighbour (torchvision) or down (transformers)."""
    eight_bits: bool = True
    """Round where Pillow does. Without it, changes finer than 1/255 stay visible. Images that want a gradient are never rounded."""

    def __post_init__(self) -> None:
        if self.crop > self.size:
            raise ValueError(f"`crop` must be at most `size` ({self.size}); got {self.crop}.")

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(images, 3, height, width)` in [0, 1] to `(images, 3, crop, crop)`, normalised, float32."""
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        other = int(self.size * long / short)
        shape = (self.size, other) if height <= width else (other, self.size)
        images = resize_as_pillow(images, shape, self.eight_bits and not _wants_gradient(images))
        top, left = (self._corner(length - self.crop) for length in shape)
        return normalise(images[..., top : top + self.crop, left : left + self.crop], self.mean, self.deviation)

    def _corner(self, spare: int) -> int:
        return round(spare / 2) if self.offset == "nearest" else spare // 2


@dataclass(frozen=True, kw_only=True)
class PadPreparation:
    """Resizes the long side and pads to a square with black, as HPSv2 does: in one float pass, neither rounded nor clamped."""

    size: int
    """Side of the square."""
    mean: tuple[float, ...] = CLIP_MEAN
    """Subtracted from each channel."""
    deviation: tuple[float, ...] = CLIP_DEVIATION
    """Divides each channel."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(images, 3, height, width)` in [0, 1] to `(images, 3, size, size)`, normalised, float32."""
        images = images.float()
        if not _wants_gradient(images):
            images = (images * 255).round() / 255  # what an image file would hold
        scale = self.size / max(images.shape[-2:])
        shape = [round(length * scale) for length in images.shape[-2:]]
        if list(images.shape[-2:]) != shape:
            images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False)
        spare_rows, spare_columns = (self.size - length for length in shape)
        top, left = spare_rows // 2, spare_columns // 2
        images = F.pad(images, (left, spare_columns - left, top, spare_rows - top))
        return normalise(images, self.mean, self.deviation)


def resize_as_pillow(images: Tensor, shape: tuple[int, int], eight_bits: bool = True) -> Tensor:
    """Pillow's bicubic resize, to the bit: width first, then height, each pass in fixed point, clamped and rounded to 8 bits.

    As Pillow 13, which takes the height first where it shrinks by more than twice as many pixels as the width; before, it never did.

    Args:
        images: `(images, 3, height, width)` in [0, 1].
        shape: height and width wanted.
        eight_bits: False skips the rounding, which has no gradient; values are clamped all the same.

    Returns:
        `(images, 3, *shape)` in [0, 1], float32.
    """
    return torch.cat([_resize(part, shape, eight_bits) for part in images.split(IMAGES_AT_ONCE)])


def _resize(images: Tensor, shape: tuple[int, int], eight_bits: bool) -> Tensor:
    # float64 holds Pillow's 32-bit sums exactly; Apple's GPUs have none, and stay within 1/255
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    levels = images.to(exact) * 255
    levels = levels.round() if eight_bits else levels
    fewer_rows, fewer_columns = images.shape[-2] - shape[0], images.shape[-1] - shape[1]
    passes = ((shape[1], -1), (shape[0], -2))
    for length, axis in reversed(passes) if fewer_rows > max(0, 2 * fewer_columns) else passes:
        if levels.shape[axis] == length:
            continue
        weights = _pillow_weights(levels.shape[axis], length).to(levels)
        sums = levels @ weights.T if axis == -1 else weights @ levels
        levels = ((sums + 0.5).floor() if eight_bits else sums).clamp(0, 255)
    return (levels / 255).float()


@lru_cache(maxsize=64)
def _pillow_weights(length: int, wanted: int) -> Tensor:
    """What each of `length` pixels gives to each of `wanted`: Keys' bicubic kernel (a = −½), widened when shrinking.

    Returns:
        `(wanted, length)`, float64, rounded to Pillow's 22 bits.
    """
    scale = length / wanted
    widening = max(scale, 1.0)
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    first = (centres - 2 * widening + 0.5).trunc().clamp(min=0)
    last = (centres + 2 * widening + 0.5).trunc().clamp(max=length)
    pixels = torch.arange(length, dtype=torch.float64)
    x = ((pixels - centres[:, None] + 0.5) / widening).abs()
    near = ((1.5 * x) - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    kernel = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    kernel = kernel * ((pixels >= first[:, None]) & (pixels < last[:, None]))
    return (kernel / kernel.sum(1, keepdim=True) * 2**22).round() / 2**22


def normalise(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Subtracts `mean` from each channel and divides by `deviation`."""
    constants = torch.tensor([mean, deviation], device=images.device, dtype=images.dtype)[..., None, None]
    return (images - constants[0]) / constants[1]


def _wants_gradient(images: Tensor) -> bool:
    return torch.is_grad_enabled() and images.requires_grad
