"""Weights, images and prompts by integer formulas: the same on every machine and with every version of a random generator."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

PROMPTS = (
    "a red apple on a wooden table",
    "",
    "two cats and a dog play chess in the snow, oil painting, very detailed " * 6,  # longer than any scorer reads
    "ein grüner Käfer, café, 猫と犬",
    "A photo of a cat 🐱 & a rocket!",
)
SIZES = ((16, 16), (32, 32), (48, 32), (32, 80), (33, 57), (100, 31), (224, 224), (225, 226), (64, 300), (7, 9))
"""Width and height of the images: as small as the scorers, smaller, larger, odd, wide, tall."""


def uniform(name: str, count: int) -> np.ndarray:
    """Numbers in [-1, 1) that look random, float32 `(count,)`; another name gives others."""
    mixed = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        mixed ^= mixed >> np.uint32(16)
        mixed *= np.uint32(0x45D9F3B)
    mixed ^= mixed >> np.uint32(16)
    return (mixed.astype(np.float64) / 2**31 - 1).astype(np.float32)


def formula_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A weight of a size at which a score depends on image and prompt: signals keep their magnitude from layer to layer."""
    if name.endswith("position_ids"):
        return torch.arange(shape[-1])[None]
    values = torch.from_numpy(uniform(name, int(np.prod(shape, dtype=np.int64)))).reshape(tuple(shape))
    if not shape:
        return values * 0.1 + 2.0  # the logit scale
    norm = any(part in name.lower() for part in ("norm", "ln_"))
    if norm and name.endswith("weight"):
        return 1 + 0.3 * values
    if len(shape) == 1 or "emb" in name or "token" in name:
        return 0.5 * values if len(shape) > 1 else 0.2 * values
    fan_in = shape[0] if name.endswith("proj") or name == "text_projection" else int(np.prod(shape[1:]))
    gain = 1.0 if "layers." in name else 1.5  # the heads' linear layers have nothing between them
    return gain * values * (3 / fan_in) ** 0.5


def formula_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict of such weights."""
    return {name: formula_tensor(name, shape) for name, shape in shapes.items()}


def formula_image(index: int, width: int, height: int) -> np.ndarray:
    """An image uint8 `(height, width, 3)`: blocks of colour under fine noise."""
    blocks = uniform(f"blocks {index}", 5 * 5 * 3).reshape(5, 5, 3)
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    noise = uniform(f"noise {index}", height * width * 3).reshape(height, width, 3)
    return np.clip(128 + 110 * blocks[rows][:, columns] + 40 * noise, 0, 255).astype(np.uint8)


def to_tensor(image: np.ndarray) -> Tensor:
    """An image as a reward takes it: `(1, 3, height, width)` in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def pairs(count: int = 10) -> list[tuple[np.ndarray, str]]:
    """Images of all sizes, each with a prompt."""
    return [(formula_image(index, *SIZES[index % len(SIZES)]), PROMPTS[index % len(PROMPTS)]) for index in range(count)]
