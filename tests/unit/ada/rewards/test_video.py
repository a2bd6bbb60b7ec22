"""Rewards of videos, on frames whose scores are known."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import build_clip_folder
from golden.builders import save_clip_model
from golden.formula import formula_image, to_tensor
from torch import Tensor

from ada.rewards import SSIM, Relative, Reward, RewardError, TemporalConsistency, VideoReward, WeightedReward, load_features


class Brightness(Reward):
    """The mean of the pixels, and 1 more for a prompt that says so."""

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        assert images.shape == reference.shape
        bonus = torch.tensor([float(prompt == "bonus") for prompt in prompts])
        return images.flatten(1).mean(1) + bonus


def videos(*levels: Sequence[float]) -> Tensor:
    """Videos `(batch, frames, 3, 16, 16)` of grey frames."""
    return torch.tensor(levels)[:, :, None, None, None].expand(-1, -1, 3, 16, 16).clone()


def test_mean_and_worst_frame() -> None:
    batch = videos([0.1, 0.2, 0.6], [0.5, 0.4, 0.9])
    mean, worst = (VideoReward(Brightness(), pool)(batch, ["plain", "bonus"], batch) for pool in ("mean", "worst"))
    assert mean.tolist() == pytest.approx([0.3, 1.6])
    assert worst.tolist() == pytest.approx([0.1, 1.4])


def test_worst_frame_beside_the_reference() -> None:
    """Either the worst frames of both, or the frame that lost most: the order of the two wrappers."""
    batch, reference = videos([0.5, 0.3, 0.6]), videos([0.4, 0.5, 0.9])
    by_video = WeightedReward({"worst": VideoReward(Brightness(), "worst")}, {"worst": 1.0})(batch, ["a"], reference)
    by_frame = VideoReward(Relative(Brightness()), "worst")
    assert by_video.total.tolist() == pytest.approx([0.3 - 0.4])
    assert by_frame(batch, ["a"], reference).tolist() == pytest.approx([0.6 - 0.9])
    result = WeightedReward({"worst": by_frame}, {"worst": 1.0})(batch, ["a"], reference)
    assert result.total.tolist() == pytest.approx([-0.3]), "a comparison is not compared again"


def test_fidelity_of_every_frame() -> None:
    batch, reference = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    values = VideoReward(SSIM())(batch, ["a", "b"], reference)
    frames = torch.stack([SSIM()(batch[:, frame], ["a", "b"], reference[:, frame]) for frame in range(3)])
    torch.testing.assert_close(values, frames.mean(0))


def test_temporal_consistency_is_vbenchs_formula(tmp_path: Path) -> None:
    """Frame by frame, as the paper writes it."""
    folder = str(save_clip_model(tmp_path, "gelu"))
    batch = torch.stack([to_tensor(formula_image(index, 32, 32)) for index in range(8)]).view(2, 4, 3, 32, 32)
    batch[1] = batch[1, :1]
    expected = []
    for video in batch:
        embedded = [load_features(folder).embed_images(frame[None])[0] for frame in video]
        terms = [(embedded[0] @ embedded[now] + embedded[now - 1] @ embedded[now]) / 2 for now in range(1, 4)]
        expected.append(sum(term.item() for term in terms) / 3)
    values = TemporalConsistency(folder)(batch, ["a", "b"])
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert values[1].item() == pytest.approx(1.0, abs=1e-5), "a still image"
    assert values[0] < 0.99


def test_wrong_shapes_and_choices_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Videos must be .* got the shape \(2, 3, 16, 16\)"):
        VideoReward(Brightness())(torch.zeros(2, 3, 16, 16), ["a", "b"], torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="two frames or more; got videos of 1"):
        TemporalConsistency(str(build_clip_folder(tmp_path)))(torch.zeros(2, 1, 3, 16, 16), ["a", "b"])
    with pytest.raises(ValueError, match="'mean' or 'worst'; got 'median'"):
        VideoReward(Brightness(), "median")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 3, 3, 16, 16), "videos: wrap it in `ada.rewards.VideoReward`"), ((2, 1, 15), "`PSNR`")]
)
def test_a_reward_of_images_that_fails_on_something_else_says_what_to_take(shape: tuple[int, ...], words: str) -> None:
    images = torch.rand(shape)
    reward = WeightedReward({"ssim": SSIM()}, {"ssim": 1.0})
    with pytest.raises(RewardError, match=rf"The reward `ssim` failed on the shape {re.escape(str(shape))} .*{words}"):
        reward(images, ["a", "b"], images)
