"""The Fréchet distance against a case by hand, SciPy's matrix root and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ada.evaluation.measure.metrics import frechet_distance, too_few_images


def sample(seed: int, count: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(loc=seed, size=(count, width)) @ generator.normal(size=(width, width))


def test_one_dimension_by_hand() -> None:
    """Means 1 and 4, deviations 1 and 3 (of two points each, ±√½ and ±3√½): 3² + (3 − 1)² = 13."""
    half = 0.5**0.5
    one, other = np.array([[1 - half], [1 + half]]), np.array([[4 - 3 * half], [4 + 3 * half]])
    assert frechet_distance(one, other) == pytest.approx(13.0)


def test_against_scipy() -> None:
    first, second = sample(1, 200, 5), sample(2, 300, 5)
    covariances = [np.cov(values, rowvar=False) for values in (first, second)]
    means = first.mean(0) - second.mean(0)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


class Corners(nn.Module):
    """Features that are four pixels of the image."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, :2].flatten(1).float()


def test_against_torchmetrics() -> None:
    images = [torch.rand(60, 3, 4, 4), torch.rand(80, 3, 4, 4) ** 2]
    metric = FrechetInceptionDistance(feature=Corners(), input_img_size=(3, 4, 4), normalize=True)
    metric.set_dtype(torch.float64)
    for batch, real in zip(images, (True, False), strict=True):
        metric.update(batch, real=real)
    ours = frechet_distance(*(Corners()(batch).numpy() for batch in images))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-4)


def test_a_set_is_no_distance_from_itself_even_with_singular_covariances() -> None:
    features = sample(3, 4, 16)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two images or more"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_warns_until_the_covariance_has_full_rank() -> None:
    assert too_few_images(65, 64) is None
    assert "64 images are too few" in str(too_few_images(64, 64))
