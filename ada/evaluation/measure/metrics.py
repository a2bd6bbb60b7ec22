"""What is measured on every image, beside the reference, and how it is shown. Another metric is another entry of the dictionary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ada.evaluation.methods.base import Generated
from ada.rewards import PSNR, SSIM, ClipScore, PerceptualDistance, Reward, load_features
from ada.statistics import Array

QUALITY = "quality"
DISTANCE = "perceptual_distance"
BOUNDED = "bounded_damage"
VISIBLE = "visibly_changed"
LATENT = "latent_distance"
WORST_FRAME = "worst_frame_distance"
FLICKER = "flicker"
FRECHET = "frechet_distance"
MEDIAN = "median_distance"
TAIL = "tail_distance"
COMPUTE_SAVED = "compute_saved"
MACS = "macs_per_image"
OWN_MACS = "own_macs_per_image"
SECONDS = "seconds_per_image"
SECONDS_ALONE = "seconds_alone"
SPEED_UP = "speed_up"
SPEED_UP_ALONE = "speed_up_alone"
CACHE = "cache_bytes"
MEMORY = "peak_bytes"
SCHEDULES = "num_schedules"
COSTS = (COMPUTE_SAVED, MACS, OWN_MACS, SECONDS, SECONDS_ALONE, SPEED_UP, SPEED_UP_ALONE, CACHE, MEMORY, SCHEDULES)
RAW = (DISTANCE, LATENT, WORST_FRAME)
"""Heavy-tailed distances, for whose means no interval holds."""
EDGE_DENSITY, PROMPT_LENGTH, SENSITIVITY = "edge_density", "prompt_length", "sensitivity"
"""What images differ in: of the reference, of the prompt, and of what searched schedules do to it."""
SAME_LATENCY, SAME_COMPUTE, STATIC_MIXTURE = "same_latency", "same_compute", "static_mixture"
"""What a method is set beside."""
EDGE = 0.1
ARROWS = {True: "↑", False: "↓", None: ""}


@dataclass(frozen=True)
class Column:
    """How a measured quantity is shown: multiplied by `scale`, with `decimals` places and its unit; where neither more nor less is better,
    `higher_is_better` is None."""

    heading: str
    higher_is_better: bool | None = True
    decimals: int = 2
    scale: float = 1.0
    unit: str = ""
    in_table: bool = True
    in_terminal: bool = True

    @property
    def heading_with_arrow(self) -> str:
        """Heading and unit with an arrow that points to better."""
        return f"{self.heading_with_unit} {ARROWS[self.higher_is_better]}".rstrip()

    @property
    def heading_with_unit(self) -> str:
        """Heading and unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


VIDEO_COLUMNS = {
    WORST_FRAME: Column("Worst frame's perceptual distance", higher_is_better=False, decimals=4),
    FLICKER: Column("Flicker beside reference", higher_is_better=False, decimals=3),
}


@dataclass(frozen=True)
class Metric:
    """A reward as a measurement, and how it is shown; give distances a negative `scale`, so that they are positive."""

    reward: Reward
    column: Column


def default_metrics(scorer: str, device: torch.device | str = "cpu", perceptual: str | None = None) -> dict[str, Metric]:
    """Scorer quality, SSIM, perceptual distance, PSNR.

    Args:
        scorer: folder or Hub id of a CLIP.
        device: where the pipeline runs, and its images are.
        perceptual: folder or Hub id of the vision model of the perceptual distance; by default the scorer.

    Raises:
        FileNotFoundError: one of them looks like a folder that is not there.
    """
    distance = Column("Mean distance", higher_is_better=False, decimals=4, in_terminal=False)
    metrics = {
        QUALITY: Metric(ClipScore(scorer), Column("Quality", decimals=2)),
        "psnr": Metric(PSNR(), Column("PSNR", unit="dB", decimals=1, in_terminal=False)),
        "ssim": Metric(SSIM(), Column("SSIM", decimals=4, in_terminal=False)),
        DISTANCE: Metric(PerceptualDistance(perceptual or scorer, scale=-1.0), distance),
    }
    for metric in metrics.values():
        metric.reward.to(device)
    return metrics


def all_columns(metrics: Mapping[str, Column]) -> dict[str, Column]:
    """The headline metrics, the others, their differences to the chosen row, and what every method is measured by besides."""
    first, column = next(iter(metrics.items()))
    return {
        BOUNDED: Column("Bounded damage", higher_is_better=False, decimals=3),
        VISIBLE: Column("Visibly changed", higher_is_better=False, decimals=1, scale=100.0, unit="%"),
        MEDIAN: Column("Median distance", higher_is_better=False, decimals=4),
        TAIL: Column("Distance, 0.9 quantile", higher_is_better=False, decimals=4, in_terminal=False),
        first: column,
        difference_of(first): replace(column, heading=f"Δ {column.heading.lower()}", in_table=True, in_terminal=True),
        **{name: column for name, column in metrics.items() if name != first},
        LATENT: Column("Latent distance", higher_is_better=False, decimals=4, in_terminal=False),
        FRECHET: Column("Fréchet distance", higher_is_better=False, decimals=4, in_terminal=False),
        COMPUTE_SAVED: Column("Compute saved", decimals=1, scale=100.0, unit="%"),
        MACS: Column("Compute", higher_is_better=False, decimals=2, scale=1e-9, unit="GMACs/image", in_terminal=False),
        OWN_MACS: Column("Decider", higher_is_better=False, decimals=3, scale=1e-9, unit="GMACs/image", in_terminal=False),
        SECONDS: Column("Latency", higher_is_better=False, decimals=3, unit="s/image"),
        SPEED_UP: Column("Speed-up", decimals=2, unit="×"),
        SECONDS_ALONE: Column("Latency, batch 1", higher_is_better=False, decimals=3, unit="s", in_terminal=False),
        SPEED_UP_ALONE: Column("Speed-up, batch 1", decimals=2, unit="×"),
        SCHEDULES: Column("Schedules", higher_is_better=None, decimals=0, unit="distinct", in_terminal=False),
        CACHE: Column("Cached", higher_is_better=False, decimals=2, scale=2**-20, unit="MiB/batch", in_terminal=False),
        MEMORY: Column("Peak memory", higher_is_better=False, decimals=1, scale=2**-20, unit="MiB/batch", in_terminal=False),
    }


def difference_of(metric: str) -> str:
    """Name of a metric's difference to the chosen row."""
    return f"{metric}_difference"


class Embedding:
    """Features of images for the Fréchet distance, from the vision tower of a CLIP (folder or Hub id); of a video, the mean over its
    frames."""

    def __init__(self, scorer: str) -> None:
        self._features = load_features(scorer)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """`(images, width)` of images `(images, 3, height, width)` or videos `(videos, frames, 3, height, width)` in [0, 1]."""
        features = self._features.embed_images(images.flatten(0, -4))
        return features.reshape(len(images), -1, features.shape[-1]).mean(1)


def frechet_distance(features: Array, others: Array) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of Gaussians fitted to two sets, `(images, width)` and `(other images, width)`.

    Raises:
        ValueError: fewer than two images in a set, which have no covariance.
    """
    for values in (features, others):
        if len(values) < 2:
            raise ValueError(f"A Fréchet distance needs two images or more in each set; got {len(values)}.")
    means = features.mean(0, dtype=np.float64) - others.mean(0, dtype=np.float64)
    # with Σ = RᵀR, tr (Σ₁Σ₂)^½ is the sum of the singular values of R₁R₂ᵀ
    centred = (values - values.mean(0, dtype=np.float64) for values in (features, others))
    first, second = (np.linalg.qr(values, mode="r") / (len(values) - 1) ** 0.5 for values in centred)
    distance = means @ means + (first**2).sum() + (second**2).sum() - 2 * np.linalg.norm(first @ second.T, "nuc")
    return max(0.0, float(distance))


def too_few_images(num_images: int, width: int) -> str | None:
    """A warning where a covariance of `width` features has no full rank, so that the distance mostly measures the sample; else None."""
    if num_images > width:
        return None
    return (
        f"{num_images} images are too few for a Fréchet distance in {width} dimensions: the covariances are singular, and the "
        f"distance is biased upwards. Compare methods of one run only, and take more than {width} images (thousands, to compare "
        "with published figures)."
    )


@torch.inference_mode()
def measure_batch(
    metrics: Mapping[str, Metric], generated: Generated, prompts: Sequence[str], reference: Generated
) -> dict[str, list[float]]:
    """Measures a batch of images, or of videos frame by frame, beside the same prompts and noise with every step computed.

    Returns:
        By metric, a value per image or video; a video's is the mean over its frames. Beside the metrics, the distance of the latents,
        and for videos the worst frame and the flicker.

    Raises:
        ValueError: they are neither images nor videos.
    """
    images, others = generated.images, reference.images
    if images.ndim not in (4, 5):
        raise ValueError(f"An evaluation measures images and videos, and this pipeline gives the shape {tuple(images.shape)}.")
    frames = images.shape[1] if images.ndim == 5 else 1
    flat, other_flat = images.flatten(0, -4), others.flatten(0, -4)
    repeated = [prompt for prompt in prompts for _ in range(frames)]
    per_frame = {name: metric.reward(flat, repeated, other_flat).reshape(-1, frames) for name, metric in metrics.items()}
    values = {name: part.mean(1).tolist() for name, part in per_frame.items()}
    values[LATENT] = latent_distance(generated.latents, reference.latents).tolist()
    if images.ndim == 5:
        values[WORST_FRAME] = per_frame[DISTANCE].amax(1).tolist()
        values[FLICKER] = flicker(images, others).tolist()
    return values


def measure_images(
    metrics: Mapping[str, Metric], embed: Callable[[Tensor], Tensor], generated: Generated, prompts: Sequence[str],
    reference: Generated, batch_size: int,
) -> tuple[dict[str, list[float]], Tensor]:  # fmt: skip
    """Metrics by name and features `(images, width)` of any number of images, `batch_size` at a time; see `measure_batch`."""
    values: dict[str, list[float]] = {}
    features = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        own = generated.take(part)
        for name, found in measure_batch(metrics, own, prompts[part], reference.take(part)).items():
            values.setdefault(name, []).extend(found)
        features.append(embed(own.images))
    return values, torch.cat(features)


def latent_distance(latents: Tensor, reference: Tensor) -> Tensor:
    """Relative distance ‖z − z₀‖ / ‖z₀‖ of latents `(images, values)`: `(images,)`."""
    distance: Tensor = (latents - reference).norm(dim=1) / reference.norm(dim=1).clamp(min=1e-12)
    return distance


def flicker(videos: Tensor, reference: Tensor) -> Tensor:
    """How much more neighbouring frames differ than in the reference: their mean absolute change over the reference's, minus 1;
    `(videos,)`, of `(videos, frames, 3, height, width)` with two frames or more."""

    def motion(frames: Tensor) -> Tensor:
        return frames.diff(dim=1).abs().flatten(1).mean(1)

    return motion(videos) / motion(reference).clamp(min=1e-8) - 1


def edge_density(images: Tensor, threshold: float = EDGE) -> Tensor:
    """Share of the pixels, without the border, where the brightness changes by more than `threshold` a pixel (Sobel gradient): `(images,)`,
    of `(images, 3, height, width)` in [0, 1]; of videos `(videos, frames, 3, height, width)` the first frame counts."""
    images = images[:, 0] if images.ndim == 5 else images
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    gradient = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return (gradient.square().sum(1).sqrt() > threshold).float().flatten(1).mean(1)
