"""Complexity of images, and how compute follows it."""

import pytest
import torch
from scipy.stats import spearmanr

from ada.evaluation.measure.metrics import edge_density
from ada.evaluation.measure.results import MethodResult, Results
from ada.evaluation.report.findings import spending


def test_edges_by_hand() -> None:
    """A step from black to white between columns 3 and 4 of 8: of the 6 × 6 inner pixels, the two columns beside it are edges."""
    images = torch.zeros(2, 3, 8, 8)
    images[1, :, :, 4:] = 1
    assert edge_density(images).tolist() == pytest.approx([0.0, 2 / 6])


def test_a_slope_below_the_threshold_is_no_edge() -> None:
    """Brightness rises by 1/7 a pixel: the Sobel gradient is that slope."""
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)
    assert edge_density(ramp, threshold=0.15).tolist() == [0.0]
    assert edge_density(ramp, threshold=0.14).tolist() == [1.0]


def test_of_a_video_the_first_frame_counts() -> None:
    video = torch.zeros(1, 2, 3, 8, 8)
    video[:, 1, :, :, 4:] = 1
    assert edge_density(video).tolist() == [0.0]
    assert edge_density(video.flip(1)).tolist() == pytest.approx([2 / 6])


def test_easiest_and_hardest() -> None:
    """Prompts 3 and 1 save most; 0 and 2 save alike, and 2 is further from its reference."""
    ada, peer = (
        MethodResult(
            name=group, family="", group=group, note="", num_inference_steps=4,
            per_prompt={"compute_saved": [0.1, 0.4, 0.1, 0.5], "perceptual_distance": [0.0, 0.3, 0.2, 0.1]},
        )
        for group in ("ada", "peers")
    )  # fmt: skip
    results = Results(
        settings={}, environment={}, columns={}, prompts=list("abcd"), methods=[peer, ada], complexity={"words": [4.0, 2.0, 3.0, 1.0]}
    )  # fmt: skip
    (found,) = spending(results, 2)
    assert found.name == "ada"
    assert found.easiest == [3, 1]
    assert found.hardest == [2, 0]
    correlation = found.correlations["words"]
    assert correlation is not None
    assert correlation.value == pytest.approx(spearmanr([0.9, 0.6, 0.9, 0.5], [4, 2, 3, 1]).statistic)
