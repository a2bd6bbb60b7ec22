"""What a policy reads of a state."""

import pytest
import torch

from ada.policy.sight import NUM_SIGNS, describe, patches, pooled, signs
from blockdance import PolicyState

SHAPES = {"image": (4, 8, 8), "video": (4, 3, 8, 8), "packed": (64, 16), "odd": (4, 5, 7)}


def build_state(shape: tuple[int, ...], images: int = 3, history: int = 4, prompts: bool = True) -> PolicyState:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.tensor([[1.0, 1, 1, 0, 0]] * images)
    return PolicyState(
        latents=randn(images, *shape), clean=randn(images, history, *shape), features=randn(images, 16, 6),
        feature_change=randn(images, 16, 6) * 0.1, prompt_embeds=randn(images, 5, 12) if prompts else None,
        prompt_mask=mask if prompts else None, class_labels=None, sigmas=torch.linspace(1, 0.05, 20),
        actions=torch.zeros(images, 20, dtype=torch.int64), step=5,
    )  # fmt: skip


@pytest.mark.parametrize("history", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_width_is_the_same_for_every_layout(shape: tuple[int, ...], history: int) -> None:
    seen = describe(build_state(shape, history=history))
    assert seen.shape == (3, NUM_SIGNS + 2 * 6 + 2 * 6 + 12)
    assert seen.dtype == torch.float32
    assert seen.isfinite().all()
    assert describe(build_state(shape, prompts=False)).shape == (3, NUM_SIGNS + 24)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_an_image_is_described_by_itself(shape: tuple[int, ...]) -> None:
    state = build_state(shape)
    seen = describe(state)
    assert torch.equal(describe(state.take([2, 0, 1])), seen[[2, 0, 1]])
    torch.testing.assert_close(describe(state.take([1])), seen[1:2])
    assert not torch.allclose(seen[0], seen[1])


def test_signs_by_hand() -> None:
    """The predicted image moves by 2, 1 and 4 everywhere, over levels that fall by a tenth; x̂₀ is flat, features change by 3/5."""
    state = build_state((4, 8, 8), images=1)
    levels = torch.linspace(1, 0, 11)
    clean = torch.stack([torch.full((4, 8, 8), value) for value in (0.0, 4.0, 5.0, 7.0)])[None]
    features = torch.full((1, 16, 1), 5.0)
    state = PolicyState(**vars(state) | {
        "clean": clean, "sigmas": levels, "features": features, "feature_change": torch.full((1, 16, 1), 3.0),
    })  # fmt: skip
    found = signs(state).exp()[0]
    for age, moved in enumerate((20.0, 10.0, 40.0)):
        square, mean, largest, patch, spread = found[5 * age : 5 * age + 5].tolist()
        assert (square, mean, largest, patch) == pytest.approx((moved,) * 4, rel=1e-4)
        assert spread < 0.05 * moved
    assert found[15:17].tolist() == pytest.approx([1e-8, 1e-8])
    assert found[17:19].tolist() == pytest.approx([0.6, 0.6], rel=1e-5)


def test_a_small_change_shows_in_the_largest_and_in_its_patch() -> None:
    state = build_state((1, 8, 8), images=1)
    clean = torch.zeros(1, 4, 1, 8, 8)
    clean[0, 3, 0, 2:4, 6:8] = 1.0  # one of the 16 patches of 2 × 2
    state = PolicyState(**vars(state) | {"clean": clean, "sigmas": torch.linspace(1, 0, 11)})
    square, mean, largest, patch, spread = signs(state).exp()[0, :5].tolist()
    assert square == pytest.approx(10 * (4 / 64) ** 0.5, rel=1e-4)
    assert mean == pytest.approx(10 * 4 / 64, rel=1e-4)
    assert (largest, patch) == pytest.approx((10, 10), rel=1e-4)
    # energies are 100 once and 0 fifteen times: deviation 100/√16
    assert spread == pytest.approx(25**0.5, rel=1e-4)


def test_patches_of_images_videos_and_tokens() -> None:
    grid = torch.arange(16.0).reshape(4, 4)
    image = grid.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 3, 8, 8)
    assert patches(image)[0].tolist() == list(range(16))
    video = torch.stack([image - 1, image + 1], 2)
    assert patches(video)[0].tolist() == list(range(16))
    packed = image[0, 0].flatten()[None, :, None].expand(1, 64, 5)
    assert patches(packed, (1, 8, 8))[0].tolist() == list(range(16)), "packed or not, the same patches"
    packed_video = video[0, 0].flatten()[None, :, None].expand(1, 128, 5)
    assert patches(packed_video, (2, 8, 8))[0].tolist() == list(range(16))
    wide = torch.arange(16.0).reshape(4, 4).repeat_interleave(3, 1).flatten()[None, :, None]
    assert patches(wide, (1, 4, 12))[0].tolist() == list(range(16)), "no square"
    audio = grid.repeat_interleave(2, 1)[None]
    assert patches(audio)[0].tolist() == list(range(16)), "cut along channels and time"


def test_packed_latents_are_described_as_unpacked_ones() -> None:
    """64 tokens of 16 channels are 16 channels of 8 × 8; so is every sign of them."""
    unpacked = build_state((16, 8, 8))
    packed = {
        "latents": unpacked.latents.flatten(2).transpose(1, 2),
        "clean": unpacked.clean.flatten(3).transpose(2, 3),
        "grid": (1, 8, 8),
    }
    torch.testing.assert_close(signs(PolicyState(**vars(unpacked) | packed)), signs(unpacked))


def test_pooled_by_hand_and_padding_is_not_read() -> None:
    assert pooled(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])).tolist() == [pytest.approx([2.0, 0.0, 2**0.5, 0.0])]
    state = build_state((4, 8, 8))
    changed = PolicyState(**vars(state) | {"prompt_embeds": state.prompt_embeds.clone()})
    changed.prompt_embeds[:, 3:] = 99.0
    assert torch.equal(describe(changed), describe(state))
    torch.testing.assert_close(describe(state)[:, -12:], state.prompt_embeds[:, :3].mean(1))
