"""Text encoders, decoders and rewards run equal rows once and few at a time; what comes out is what the plain calls give."""

from collections.abc import Sequence

import pytest
import torch
from ladders import ARGUMENTS, KINDS, STEPS, actions_of, build_frozen
from torch import Tensor, nn

from ada.rewards import Reward, WeightedReward
from ada.rollouts import FrozenPipeline, roll_out
from ada.rollouts.sharing import shared_components
from ada.sharing import first_equal, plan_distinct
from blockdance import ReuseSchedule

PROMPTS = ["a red apple", "dog", "a red apple", "a red apple"]
SEEDS = [1, 2, 1, 3]


def count_rows(module: nn.Module) -> list[int]:
    """Rows of every call of a module from now on."""
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def test_rows_are_equal_where_all_their_bits_are() -> None:
    first = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [float("nan"), 0.0], [float("nan"), 0.0], [2.0, 1.0]])
    second = torch.tensor([0, 1, 0, 2, 2, 3])
    assert first_equal([first]) == [0, 1, 0, 3, 4, 1], "equal sums are no equal rows, and no number equals nothing"
    assert first_equal([first, second]) == [0, 1, 0, 3, 4, 5]
    assert first_equal([first], ["a", "b", "c", "a", "a", "b"]) == [0, 1, 2, 3, 4, 1]


def test_distinct_rows_run_in_parts_and_come_back_in_order() -> None:
    rows = torch.tensor([5.0, 3.0, 5.0, 1.0, 3.0, 7.0])
    plan = plan_distinct([rows], max_rows=3)
    parts = [group.rows.take(rows) for group in plan.groups]
    assert [part.tolist() for part in parts] == [[5.0, 3.0, 1.0], [7.0]]
    assert plan.join([2 * part for part in parts]).tolist() == (2 * rows).tolist()


def test_prompts_are_encoded_once_and_the_latents_are_the_plain_calls() -> None:
    frozen, plain = build_frozen(output_type="latent"), build_frozen(output_type="latent").pipeline
    rows = count_rows(frozen.pipeline.text_encoder.encoder.block[0])
    full = ReuseSchedule(torch.zeros(1, STEPS, dtype=torch.int64), KINDS)
    latents = frozen.generate(PROMPTS, SEEDS, full).images
    assert rows == [2, 1], "two prompts, and the negative one"
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    expected = plain(
        PROMPTS, num_inference_steps=STEPS, generator=generators, output_type="latent", return_dict=False, **ARGUMENTS
    )[0]
    assert torch.equal(latents, expected)
    assert "forward" not in vars(frozen.pipeline.text_encoder)
    assert "decode" not in vars(frozen.pipeline.vae)


@pytest.mark.parametrize("max_images", [None, 2, 1])
def test_equal_latents_are_decoded_once_and_few_at_a_time(max_images: int | None) -> None:
    """A decoder rounds by the size of its batch, as it does in plain calls; rows that are shared are the same to the bit."""
    frozen = build_frozen(max_images=max_images)
    rows = count_rows(frozen.pipeline.vae.decoder)
    actions = actions_of("00000000", "00000220", "00000000", "00010010", "00000220")
    images = roll_out(frozen, ["dog"], [2], actions[None], KINDS, (2,)).images[0]
    assert rows == {None: [3], 2: [2, 1], 1: [1, 1, 1]}[max_images]
    latents = roll_out(build_frozen(output_type="latent"), ["dog"], [2], actions[None], KINDS, (2,)).images[0]
    with torch.inference_mode():
        decoded = build_frozen().pipeline.vae.decode(latents, return_dict=False)[0]
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[4])
    assert (images[0] - images[3]).abs().max() > 1e-3


def test_a_call_that_is_not_understood_runs_as_it_is() -> None:
    """A number says something of the rows together, such as how many frames a video has."""
    vae = build_frozen().pipeline.vae
    calls: list[int] = []

    def decode(latents: Tensor, num_frames: int = 1) -> Tensor:
        calls.append(len(latents))
        return latents.cumsum(0) + num_frames

    vae.decode = decode
    frozen = build_frozen()
    frozen.pipeline.vae = vae
    latents = torch.ones(4, 2)
    with shared_components(frozen.pipeline, 2):
        together = frozen.pipeline.vae.decode(latents, num_frames=4)
        assert calls == [4]
        frozen.pipeline.vae.decode(latents)
    assert calls == [4, 1]
    assert torch.equal(together, latents.cumsum(0) + 4)
    assert frozen.pipeline.vae.decode is decode


class Counting(Reward):
    """The mean pixel, plus the prompt's length, minus the reference's first."""

    compares_with_reference = True

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        self.rows.append(len(images))
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return images.flatten(1).mean(1) + lengths - reference.flatten(1)[:, 0]


def test_equal_images_are_scored_once_and_few_at_a_time() -> None:
    images = torch.rand(3, 3, 4, 4)[[0, 1, 0, 2, 1, 0]]
    reference = torch.rand(2, 3, 4, 4)[[0, 0, 0, 1, 0, 1]]
    prompts = ["a", "a", "a", "a", "bc", "a"]
    counting = Counting()
    total = WeightedReward({"counting": counting}, {"counting": 1.0}, max_images=3)(images, prompts, reference).total
    assert counting.rows == [3, 2], "the third is the first again"
    assert torch.equal(total, Counting()(images, prompts, reference))


def test_with_steps_keeps_its_limits() -> None:
    frozen = FrozenPipeline(build_frozen().pipeline, STEPS, ARGUMENTS, max_images=3)
    assert frozen.with_settings(num_inference_steps=4).max_images == 3
