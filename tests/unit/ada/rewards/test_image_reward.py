"""ImageReward against the original package's modules, recorded by `tests/golden/record.py`."""

from pathlib import Path

import pytest
import torch
from golden.builders import image_reward_state, recorded, save_image_reward
from golden.formula import PROMPTS, formula_image, pairs, to_tensor
from safetensors.torch import save_file

from ada.rewards import ImageReward, WeightedReward, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_image_reward(tmp_path_factory.mktemp("image_reward"))


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return ImageReward(str(folder), str(folder))


def test_scores_equal_the_original_modules(reward: ImageReward) -> None:
    """Ten images of ten sizes; prompts that are ordinary, empty, too long and not ASCII."""
    expected = torch.tensor(recorded("image_reward")["scores"])
    scores = torch.cat([reward(to_tensor(image), [prompt]) for image, prompt in pairs()])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_scores_depend_on_image_and_on_prompt(reward: ImageReward) -> None:
    """Otherwise equality would say nothing."""
    image = to_tensor(formula_image(0, 32, 32))
    images = torch.cat([to_tensor(formula_image(index, 32, 32)) for index in range(5)])
    assert reward(images, [PROMPTS[0]] * 5).std() > 0.1
    assert reward(image.expand(5, -1, -1, -1), PROMPTS).std() > 0.1


@pytest.mark.slow  # 1.8 GB of weights
def test_full_size_scores_equal_the_original_modules(tmp_path: Path) -> None:
    expected = torch.tensor(recorded("image_reward_full")["scores"])
    folder = save_image_reward(tmp_path, "image_reward_full")
    reward = ImageReward(str(folder), str(folder))
    scores = torch.cat([reward(to_tensor(image), [prompt]) for image, prompt in pairs(len(expected))])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_a_batch_scores_as_its_images_alone(reward: ImageReward) -> None:
    """Prompts of other lengths in the batch, and the padding that they bring, change nothing."""
    images = torch.cat([to_tensor(formula_image(index, 40, 32)) for index in range(5)])
    alone = torch.cat([reward(images[index][None], [prompt]) for index, prompt in enumerate(PROMPTS)])
    torch.testing.assert_close(reward(images, PROMPTS), alone, atol=1e-5, rtol=0)


def test_safetensors_and_a_plain_file_give_the_same(folder: Path, reward: ImageReward, tmp_path: Path) -> None:
    state = image_reward_state()
    dropped = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
    save_file({key: value for key, value in state.items() if not key.startswith(dropped)}, tmp_path / "model.safetensors")
    image, prompt = to_tensor(formula_image(0, 32, 32)), [PROMPTS[0]]
    for model in (tmp_path, tmp_path / "model.safetensors", folder / "ImageReward.pt"):
        torch.testing.assert_close(
            ImageReward(str(model), str(folder))(image, prompt), reward(image, prompt), atol=1e-6, rtol=0
        )


def test_missing_left_over_and_misshapen_keys_are_named(folder: Path, tmp_path: Path) -> None:
    state = image_reward_state()
    del state["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    state["blip.surplus"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(
        WeightsError, match=r"1 missing: blip\.visual_encoder\.blocks\.1\.attn\.qkv\.bias; 1 left over: blip\.surplus"
    ):
        ImageReward(str(tmp_path / "odd.pt"), str(folder))
    state = image_reward_state()
    state["mlp.layers.7.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"of another shape: mlp\.layers\.7\.bias \(expected \[1\], found \[2\]\)"):
        ImageReward(str(tmp_path / "odd.pt"), str(folder))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"has no tensor 'blip\.visual_encoder\.patch_embed\.proj\.weight'"):
        ImageReward(str(tmp_path / "odd.pt"), str(folder))


def test_gradients_reach_the_images(reward: ImageReward) -> None:
    """Along the gradient the score rises by as much as it says."""
    image = to_tensor(formula_image(3, 32, 32)).mul(0.8).add(0.1).requires_grad_(True)
    score = reward(image, [PROMPTS[0]])
    (gradient,) = torch.autograd.grad(score.sum(), image)
    step = 1e-3 * gradient / gradient.norm()
    with torch.enable_grad():  # a tensor that wants a gradient is not rounded to 8 bits
        moved = reward((image + step).detach().requires_grad_(True), [PROMPTS[0]])
        start = reward(image, [PROMPTS[0]])
    assert (moved - start).item() == pytest.approx((gradient * step).sum().item(), rel=0.05)


def test_mixed_precision_does_not_reach_the_reward(reward: ImageReward) -> None:
    """Training runs under autocast to bfloat16, where scores would move."""
    image, prompt = to_tensor(formula_image(4, 32, 32)), [PROMPTS[4]]
    weighted = WeightedReward({"image_reward": reward}, {"image_reward": 1.0}, relative=False)
    expected = weighted(image, prompt, image).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weighted(image, prompt, image).total, expected)
        assert (reward(image, prompt) - expected).abs() > 1e-3
