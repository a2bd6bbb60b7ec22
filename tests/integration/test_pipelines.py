"""BlockDance on a stock PixArt-α pipeline, run as users run it."""

import gc
import weakref
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from blockdance import BlockDanceConfig, Reuse, ReuseSchedule, ScheduleError, apply_blockdance, full_compute, remove_blockdance

CONFIG = BlockDanceConfig(interval=2, boundary=2)


def generate(pipeline: PixArtAlphaPipeline, prompts: list[str] | None = None, steps: int = 10, **options: Any) -> torch.Tensor:
    prompts = prompts or ["a dog", "red sun"]
    return pipeline(
        prompts, num_inference_steps=steps, output_type="pt", use_resolution_binning=False, clean_caption=False,
        max_sequence_length=12, generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))], **options,
    ).images  # fmt: skip


def test_full_compute_and_off_again_are_bit_equal_to_plain(pixart_pipeline: PixArtAlphaPipeline) -> None:
    plain = generate(pixart_pipeline)
    with apply_blockdance(pixart_pipeline, full_compute(1, 10)):
        assert torch.equal(generate(pixart_pipeline), plain)
    with apply_blockdance(pixart_pipeline, CONFIG):
        assert not torch.equal(generate(pixart_pipeline), plain)
    assert torch.equal(generate(pixart_pipeline), plain)
    assert type(pixart_pipeline.transformer) is PixArtTransformer2DModel


def test_blocks_that_are_replaced_do_not_stay_in_memory(pixart_pipeline: PixArtAlphaPipeline) -> None:
    apply_blockdance(pixart_pipeline, CONFIG)
    generate(pixart_pipeline)
    blocks = pixart_pipeline.transformer.transformer_blocks
    replaced = [weakref.ref(block) for block in blocks]
    for position, other in enumerate(build_pixart_pipeline().transformer.transformer_blocks):
        blocks[position] = other
    generate(pixart_pipeline)
    gc.collect()
    assert [block() for block in replaced] == [None] * 4


def test_one_pipeline_survives_every_change_between_generations(pixart_pipeline: PixArtAlphaPipeline) -> None:
    """Batch size, step count, guidance, an exception half-way: each generation is as on a fresh pipeline."""

    def stop(step: int, timestep: int, latents: torch.Tensor) -> None:
        if step == 5:
            raise KeyboardInterrupt

    variants: list[dict[str, Any]] = [
        {},
        {"prompts": ["a dog"]},
        {"steps": 7},
        {"guidance_scale": 1.0},
        {"prompts": ["a dog", "red sun", "b"], "steps": 12, "guidance_scale": 2.0},
        {},
    ]
    handle = apply_blockdance(pixart_pipeline, CONFIG)
    for variant in variants:
        with pytest.raises(KeyboardInterrupt):
            generate(pixart_pipeline, callback=stop)
        images = generate(pixart_pipeline, **variant)
        fresh = build_pixart_pipeline()
        apply_blockdance(fresh, CONFIG)
        assert torch.equal(images, generate(fresh, **variant))
        report = handle.report()
        expected = CONFIG.schedule(variant.get("steps", 10), 4).actions.expand(len(images), -1)
        assert torch.equal(report.actions, expected)
        assert report.cache_bytes == 0


def test_mixed_schedules_of_a_batch_equal_each_image_alone(pixart_pipeline: PixArtAlphaPipeline) -> None:
    kinds = (Reuse(boundary=2), Reuse(boundary=3, order=1))
    rows = torch.tensor([[0, 0, 1, 0, 2, 2], [0, 0, 0, 2, 1, 0], [0] * 6])
    prompts = ["a dog", "red sun", "b"]
    with apply_blockdance(pixart_pipeline, ReuseSchedule(rows, kinds)):
        together = generate(pixart_pipeline, prompts, steps=6)
    for image in range(3):
        with apply_blockdance(pixart_pipeline, ReuseSchedule(rows[image : image + 1], kinds)):
            alone = generate(pixart_pipeline, prompts, steps=6)[image]
        torch.testing.assert_close(together[image], alone, atol=1e-5, rtol=0)


def test_without_guidance_images_of_the_same_noise_are_images(pixart_pipeline: PixArtAlphaPipeline) -> None:
    """They look like the branches of guidance, but the pipeline has noted in its call that there is none."""
    noise = [torch.Generator().manual_seed(3) for _ in range(2)]
    with apply_blockdance(
        pixart_pipeline, ReuseSchedule(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0]]), (Reuse(boundary=2),))
    ) as handle:
        pixart_pipeline(
            ["a dog", "red sun"], guidance_scale=1.0, num_inference_steps=4, generator=noise, use_resolution_binning=False,
            clean_caption=False, max_sequence_length=12,
        )  # fmt: skip
        assert handle.report().actions.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_two_pipelines_are_independent(pixart_pipeline: PixArtAlphaPipeline) -> None:
    other = build_pixart_pipeline()
    plain = generate(other)
    apply_blockdance(pixart_pipeline, CONFIG)
    expected = generate(pixart_pipeline)

    def interleave(step: int, timestep: int, latents: torch.Tensor) -> None:
        if step == 4:
            generate(other)

    apply_blockdance(other, full_compute(1, 10))
    assert torch.equal(generate(pixart_pipeline, callback=interleave), expected)
    remove_blockdance(other)
    assert torch.equal(generate(other), plain)


def test_a_scheduler_that_repeats_timesteps_counts_them_as_steps(pixart_pipeline: PixArtAlphaPipeline) -> None:
    """Heun calls the model 2n − 1 times for n steps, most timesteps twice."""
    pixart_pipeline.scheduler = HeunDiscreteScheduler()
    pixart_pipeline.scheduler.set_timesteps(6)
    calls = len(pixart_pipeline.scheduler.timesteps)
    handle = apply_blockdance(pixart_pipeline, CONFIG)
    generate(pixart_pipeline, steps=6)
    assert torch.equal(handle.report().actions[0], CONFIG.schedule(calls, 4).actions[0])


@pytest.mark.parametrize("scheduler_class", [HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_extrapolation_under_two_stage_schedulers(pixart_pipeline: PixArtAlphaPipeline, scheduler_class: type[Any]) -> None:
    """Two stages may be at one noise level, between which there is no line to extrapolate."""
    pixart_pipeline.scheduler = scheduler_class()
    plain = generate(pixart_pipeline, steps=6)
    apply_blockdance(pixart_pipeline, BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=2, order=1))
    images = generate(pixart_pipeline, steps=6)
    assert images.isfinite().all()
    assert 0 < float((images - plain).abs().mean()) < 0.2


def test_a_schedule_for_other_steps_is_refused(pixart_pipeline: PixArtAlphaPipeline) -> None:
    apply_blockdance(pixart_pipeline, full_compute(1, 20))
    with pytest.raises(ScheduleError, match="20 steps, but this generation takes 10"):
        generate(pixart_pipeline)
    remove_blockdance(pixart_pipeline)
    apply_blockdance(pixart_pipeline, full_compute(3, 10))
    with pytest.raises(ScheduleError, match="3 images, but the batch has 2"):
        generate(pixart_pipeline)
