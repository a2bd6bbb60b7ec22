"""Rollouts against the stock pipeline, and what they share."""

import pytest
import torch
from conftest import build_pixart_pipeline

from ada import AdaPolicy
from ada.backbone import Backbone
from ada.rollout import Denoiser, prompt_seed
from blockdance import Reuse, ReuseSchedule, apply_blockdance

KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=1))
PROMPTS = ["a red apple", "dog", "the sun"]
STEPS = 8


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("pipeline")
    build_pixart_pipeline().save_pretrained(folder)
    return Backbone(str(folder), num_inference_steps=STEPS, guidance_scale=3.0, max_sequence_length=12)


@pytest.fixture
def denoiser(backbone: Backbone) -> Denoiser:
    policy = AdaPolicy.for_transformer(
        backbone.transformer, 16, KINDS, backbone.action_costs(KINDS), hidden_size=16, num_heads=2
    )
    return Denoiser(backbone, policy)


def run_pipeline(backbone: Backbone, indices: list[int], seed: int = 0) -> torch.Tensor:
    return backbone.pipeline(
        [PROMPTS[index] for index in indices], num_inference_steps=STEPS, guidance_scale=3.0, max_sequence_length=12,
        generator=[torch.Generator().manual_seed(prompt_seed(seed, index)) for index in indices],
        use_resolution_binning=False, clean_caption=False, output_type="pt",
    ).images  # fmt: skip


def test_reference_is_what_the_pipeline_makes(backbone: Backbone, denoiser: Denoiser) -> None:
    reference = denoiser.prefix(PROMPTS, [0, 1, 2]).reference
    assert torch.equal(reference, run_pipeline(backbone, [0, 1, 2]))


def test_suffixes_are_what_the_pipeline_makes_with_the_same_schedules(backbone: Backbone, denoiser: Denoiser) -> None:
    prefix = denoiser.prefix(PROMPTS, [0, 1, 2])
    actions = torch.zeros(3, 4, STEPS, dtype=torch.int64)
    actions[:, :, 4:] = torch.randint(0, 3, (3, 4, 4))
    latents, _ = denoiser.suffixes(prefix.snapshot, actions)
    images = backbone.decode(latents.flatten(0, 1)).unflatten(0, (3, 4))
    for member in range(4):
        with apply_blockdance(backbone.pipeline, ReuseSchedule(actions[:, member], KINDS)):
            expected = run_pipeline(backbone, [0, 1, 2])
        torch.testing.assert_close(images[:, member], expected, atol=2e-5, rtol=0)
    assert not torch.allclose(images[:, 0], prefix.reference, atol=1e-4)


def test_equal_prefixes_are_denoised_once(denoiser: Denoiser) -> None:
    """Two schedules that part at the last step share three of the four steps after ρ; equal ones share all."""
    prefix = denoiser.prefix(PROMPTS[:1], [0])
    actions = torch.zeros(1, 3, STEPS, dtype=torch.int64)
    actions[0, 2, STEPS - 1] = 2
    latents, denoised = denoiser.suffixes(prefix.snapshot, actions)
    assert denoised == 3 + 2
    assert torch.equal(latents[0, 0], latents[0, 1])
    assert not torch.equal(latents[0, 0], latents[0, 2])


def test_prefixes_are_kept_and_do_not_depend_on_the_batch(backbone: Backbone, denoiser: Denoiser) -> None:
    calls = []
    hook = backbone.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    together = denoiser.prefix(PROMPTS, [0, 1, 2])
    assert len(calls) == STEPS
    again = denoiser.prefix([PROMPTS[2], PROMPTS[0]], [2, 0])
    hook.remove()
    assert len(calls) == STEPS
    assert torch.equal(again.reference, together.reference[[2, 0]])
    assert torch.equal(again.state.features, together.state.features[[2, 0]])
    fresh = Denoiser(
        backbone, AdaPolicy.for_transformer(backbone.transformer, 16, KINDS, [1.0, 0.1, 0.5], hidden_size=16, num_heads=2)
    )
    torch.testing.assert_close(fresh.prefix(PROMPTS[2:], [2]).reference, together.reference[2:], atol=1e-5, rtol=0)


def test_memory_for_prefixes_is_bounded(backbone: Backbone) -> None:
    policy = AdaPolicy.for_transformer(backbone.transformer, 16, KINDS, [1.0, 0.1, 0.5], hidden_size=16, num_heads=2)
    denoiser = Denoiser(backbone, policy, max_cached_bytes=0)
    first = denoiser.prefix(PROMPTS[:1], [0]).reference
    assert not denoiser._kept
    assert torch.equal(denoiser.prefix(PROMPTS[:1], [0]).reference, first)


def test_missing_model_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="checkpoints/none"):
        Backbone("checkpoints/none")
