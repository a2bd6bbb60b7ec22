"""What is measured on every image, beside the reference. Another metric is another entry of the dictionary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ada.evaluation.results import Column
from ada.rewards import PSNR, SSIM, ClipScore, PerceptualDistance, Reward

QUALITY = "quality"
DISTANCE = "perceptual_distance"


@dataclass(frozen=True)
class Metric:
    """A reward as a measurement, and how it is shown; give distances a negative `scale`, so that they are positive."""

    reward: Reward
    column: Column


def default_metrics(scorer: str, device: torch.device | str = "cpu") -> dict[str, Metric]:
    """Scorer quality, SSIM, perceptual distance, PSNR.

    Args:
        scorer: folder or Hub id of a CLIP.
        device: where the pipeline runs, and its images are.

    Raises:
        FileNotFoundError: `scorer` looks like a folder that is not there.
    """
    metrics = {
        QUALITY: Metric(ClipScore(scorer), Column("Quality", decimals=2)),
        "ssim": Metric(SSIM(), Column("SSIM", decimals=4)),
        DISTANCE: Metric(
            PerceptualDistance(scorer, scale=-1.0), Column("Perceptual distance", higher_is_better=False, decimals=4)
        ),
        "psnr": Metric(PSNR(), Column("PSNR", unit="dB", decimals=1, in_table=False)),
    }
    for metric in metrics.values():
        metric.reward.to(device)
    return metrics


@torch.inference_mode()
def score(metrics: Mapping[str, Metric], images: Tensor, prompts: Sequence[str], reference: Tensor) -> dict[str, list[float]]:
    """Measures a batch.

    Args:
        metrics: by name.
        images: `(images, 3, height, width)` in [0, 1].
        prompts: one per image.
        reference: the same prompts and noise with every step computed, same shape.

    Returns:
        By metric, a value per image.
    """
    return {name: metric.reward(images, prompts, reference).tolist() for name, metric in metrics.items()}
