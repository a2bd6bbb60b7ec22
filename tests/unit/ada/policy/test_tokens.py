"""Features and latents are pooled where they lie, whatever their size and layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ada import AdaPolicy
from ada.policy import StepPolicy
from ada.policy.tokens import grid_of_positions, places_of, pool_on_grid
from blockdance import PolicyState

CHANNELS, WIDTH, IMAGES = 4, 6, 3
BASE = {"transformer": "Model", "num_blocks": 4, "latent_channels": CHANNELS, "prompt_width": 12}


def build_policy(pooling: str) -> StepPolicy:
    torch.manual_seed(0)
    policy = StepPolicy(
        base_model=BASE, feature_width=WIDTH, kinds=[{"boundary": 2}],
        action_costs=[1.0, 0.3], hidden_size=16, num_layers=1, num_heads=2, pooling=pooling,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.5)
    return policy.eval()


def build_state(latents: Tensor, features: Tensor, grid: tuple[int, int, int] | None = None) -> PolicyState:
    return PolicyState(
        latents=latents, clean=latents[:, None].expand(-1, 2, *latents.shape[1:]), features=features,
        feature_change=features.flip(2), prompt_embeds=None, prompt_mask=None, class_labels=None,
        sigmas=torch.linspace(1, 0.05, 10), actions=torch.zeros(len(latents), 10, dtype=torch.int64), step=5, grid=grid,
    )  # fmt: skip


def enlarged(values: Tensor, times: int) -> Tensor:
    """Of `(images, channels, height, width)`, each value in a square of `times`²."""
    return values.repeat_interleave(times, 2).repeat_interleave(times, 3)


def as_tokens(values: Tensor) -> Tensor:
    return values.flatten(2).transpose(1, 2)


def test_pooled_by_hand() -> None:
    image = enlarged(torch.arange(64.0).reshape(1, 1, 8, 8), 3)
    assert pool_on_grid(image).flatten().tolist() == pytest.approx(list(range(64)))
    wide = torch.arange(64.0).reshape(1, 1, 8, 8).repeat_interleave(5, 3)
    assert pool_on_grid(wide).flatten().tolist() == pytest.approx(list(range(64)))
    cube = torch.arange(64.0).reshape(1, 1, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(3, 3).repeat_interleave(2, 4)
    assert pool_on_grid(cube).flatten().tolist() == pytest.approx(list(range(64)))
    sequence = torch.arange(128.0).reshape(1, 1, 128)
    assert pool_on_grid(sequence).flatten().tolist() == [2 * place + 0.5 for place in range(64)]


@pytest.mark.parametrize(
    ("positions", "places", "grid"),
    [
        (256, (16, 16), (16, 16)),
        (64, (16, 16), (8, 8)),
        (12, (6, 8), (3, 4)),
        (4096, (16, 32, 32), (16, 16, 16)),
        (64, (4, 4, 4), (4, 4, 4)),
        (100, (16, 16), (100,)),
        (4000, (4000,), (4000,)),
    ],
)
def test_grid_of_positions(positions: int, places: tuple[int, ...], grid: tuple[int, ...]) -> None:
    assert grid_of_positions(positions, places) == grid


def test_latents_of_every_layout_lie_alike() -> None:
    video = torch.randn(IMAGES, CHANNELS, 5, 8, 6)
    assert torch.equal(places_of(video, CHANNELS, None), video)
    assert torch.equal(places_of(video.transpose(1, 2), CHANNELS, None), video), "frames first"
    assert torch.equal(places_of(as_tokens(video), CHANNELS, (5, 8, 6)), video), "packed"
    image = torch.randn(IMAGES, CHANNELS, 8, 6)
    assert torch.equal(places_of(as_tokens(image), CHANNELS, (1, 8, 6)), image)
    audio = torch.randn(IMAGES, CHANNELS, 50)
    assert torch.equal(places_of(audio, CHANNELS, None), audio)
    assert torch.equal(places_of(audio.transpose(1, 2), CHANNELS, None), audio)


@pytest.mark.parametrize("pooling", ["grid", "raster"])
def test_an_image_twice_as_large_is_the_same_image(pooling: str) -> None:
    """In raster order a token of the larger image is a stretch of one row, so that another image is seen."""
    policy = build_policy(pooling)
    latents, features = torch.randn(IMAGES, CHANNELS, 16, 16), torch.randn(IMAGES, WIDTH, 8, 8)
    weight = torch.full((IMAGES,), 2.0)
    small = policy(build_state(latents, as_tokens(features)), weight)
    large = policy(build_state(enlarged(latents, 2), as_tokens(enlarged(features, 2))), weight)
    if pooling == "grid":
        torch.testing.assert_close(large, small, atol=1e-4, rtol=1e-4)
        packed = build_state(as_tokens(enlarged(latents, 2)), as_tokens(enlarged(features, 4)), (1, 32, 32))
        torch.testing.assert_close(policy(packed, weight), small, atol=1e-4, rtol=1e-4)
    else:
        assert (large - small).abs().max() > 0.01


def test_both_poolings_read_alike_what_needs_none() -> None:
    """64 positions, as the first published policies had."""
    one, other = build_policy("grid"), build_policy("raster")
    state, weight = build_state(torch.randn(IMAGES, CHANNELS, 16, 16), torch.randn(IMAGES, 64, WIDTH)), torch.ones(IMAGES)
    assert torch.equal(one(state, weight), other(state, weight))


def test_folders_of_older_versions_pool_as_they_were_trained(tmp_path: Path) -> None:
    policy = build_policy("grid")
    policy.save_pretrained(tmp_path)
    loaded = AdaPolicy.from_pretrained(tmp_path)
    assert isinstance(loaded, StepPolicy)
    assert loaded.pooling == "grid"
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())
    assert (content["version"], content.pop("pooling")) == (7, "grid")
    config.write_text(json.dumps(content | {"version": 3}))
    old = AdaPolicy.from_pretrained(tmp_path)
    assert isinstance(old, StepPolicy)
    assert old.pooling == "raster"
    old.save_pretrained(tmp_path)
    assert AdaPolicy.from_pretrained(tmp_path).config["pooling"] == "raster"
    assert load_file(tmp_path / "model.safetensors").keys() == policy.state_dict().keys()


def test_another_pooling_is_named() -> None:
    with pytest.raises(ValueError, match="`pooling` must be grid or raster; got mean"):
        build_policy("mean")
