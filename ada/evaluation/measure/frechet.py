"""Fréchet distance between two sets of images in a feature space (FID, Heusel et al., 2017)."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def frechet_distance(features: Array, others: Array) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of Gaussians fitted to two sets.

    Args:
        features: `(images, width)`.
        others: `(other images, width)`.

    Raises:
        ValueError: fewer than two images in a set, which have no covariance.
    """
    for values in (features, others):
        if len(values) < 2:
            raise ValueError(f"A Fréchet distance needs two images or more in each set; got {len(values)}.")
    means = features.mean(0, dtype=np.float64) - others.mean(0, dtype=np.float64)
    first, second = (np.cov(values.astype(np.float64), rowvar=False) for values in (features, others))
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    root = _square_root(first)
    # (Σ₁Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric
    eigenvalues = np.linalg.eigvalsh(root @ second @ root).clip(min=0)
    distance = means @ means + np.trace(first) + np.trace(second) - 2 * np.sqrt(eigenvalues).sum()
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


def _square_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
