"""Pictures for TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from blockdance import Reuse


def reuse_probability(logits: Tensor, steps: Sequence[int], kinds: Sequence[Reuse]) -> Figure:
    """Probability of every kind of reuse per step, stacked, from a small to a large quality weight.

    Args:
        logits: `(images, quality weights, decisions, actions)`.
        steps: the decided steps.
        kinds: the kinds of reuse.
    """
    probabilities = logits.float().softmax(-1).mean(0).cpu()
    titles = ["smallest λ", "middle λ", "largest λ"]
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    axes = figure.subplots(1, len(probabilities), sharey=True, squeeze=False)[0]
    for axis, title, rows in zip(axes, titles, probabilities, strict=True):
        bottom = torch.zeros(len(steps))
        for action, kind in enumerate(kinds, 1):
            axis.bar(steps, rows[:, action], bottom=bottom, label=str(kind))
            bottom = bottom + rows[:, action]
        axis.set(title=title, xlabel="denoising step", ylim=(0, 1))
    axes[0].set_ylabel("probability of reuse")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=len(kinds))
    return figure


def compare_grid(reference: Tensor, reuse: Tensor) -> Tensor:
    """Reference above, reuse in the middle, their difference (×4, on grey) below: `(3, 3·height, images·width)`.

    Args:
        reference, reuse: `(images, 3, height, width)` in [0, 1].
    """
    difference = (0.5 + 4 * (reuse - reference)).clamp(0, 1)
    return torch.cat([torch.cat(list(row), dim=-1) for row in (reference, reuse, difference)], dim=-2).cpu()


def save_image(image: Tensor, path: Path, scale: int = 3) -> None:
    """Saves an image `(3, height, width)` in [0, 1] as PNG, every pixel `scale` wide."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
