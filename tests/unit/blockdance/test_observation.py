"""What a decider sees: predicted clean latents against the schedulers' own, decisions in stages, groups of equal images."""

from typing import Any

import pytest
import torch
from conftest import NUM_BLOCKS, build_flux, build_pixart_pipeline
from diffusers import (
    DDIMScheduler,
    HeunDiscreteScheduler,
    PixArtSigmaPAGPipeline,
)
from torch import Tensor, nn

from blockdance import PolicyState, Reuse, ReuseSchedule, ScheduleError, apply_blockdance
from blockdance.observation import HISTORY, NoiseScale, Observer, token_grid

STEPS = 8
KINDS = (Reuse(boundary=1), Reuse(boundary=2, order=1, weight=0.5))


def run(pipeline: Any, prompts: list[str], seeds: list[int], **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "max_sequence_length": 12} | options
    latents: Tensor = pipeline(
        prompts, use_resolution_binning=False, clean_caption=False, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], **given,
    ).images  # fmt: skip
    return latents


class Recorder:
    """Takes at every decision the next of the given schedules, and keeps what it was shown."""

    kinds = KINDS

    def __init__(self, steps: tuple[int, ...], *plans: list[list[int]]) -> None:
        self._steps, self._plans = steps, [torch.tensor(plan) for plan in plans]
        self.states: list[PolicyState] = []

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self._steps

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.states.append(state)
        return ReuseSchedule(self._plans[len(self.states) - 1], self.kinds)

    def check(self, transformer: nn.Module) -> None:
        """Serves any."""


# --- predicted clean latents ---


def test_observer_keeps_the_last_predictions_of_one_size() -> None:
    """Clean latents that are the number of the step they were predicted at."""
    levels, scale, observer = [1.0, 0.8, 0.7, 0.5, 0.4, 0.2, 0.1], NoiseScale(is_flow=True), Observer()
    noise, latents = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    for step in range(7):
        observer.see(latents, step, levels, scale)
        assert (observer.clean is None) == (step < 2)
        if step < 6:
            # where the latents of this step lead if the model predicts the image `step`
            noise = (latents - (1 - levels[step]) * step) / levels[step]
            latents = (1 - levels[step + 1]) * step + levels[step + 1] * noise
    assert observer.clean is not None
    assert observer.clean.shape == (2, HISTORY, 4, 4, 4)
    torch.testing.assert_close(observer.clean[0, :, 0, 0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]), atol=1e-4, rtol=0)
    observer.see(torch.randn(2, 4, 8, 8), 7, [*levels, 0.0], scale)
    assert observer.clean.shape == (2, HISTORY, 4, 4, 4), "latents of another size tell nothing of the step before"


def predictions_of(scheduler: Any) -> list[Tensor]:
    """The scheduler's own x̂₀ of every call of `step` from now on."""
    own: list[Tensor] = []
    step = scheduler.step

    def recording(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        output = step(*args, **kwargs | {"return_dict": True})
        own.append(output.pred_original_sample.clone())
        return (output.prev_sample,)

    scheduler.step = recording
    return own


def assert_shows(state: PolicyState, predicted: list[Tensor]) -> None:
    expected = torch.stack(predicted, 1)
    torch.testing.assert_close(state.clean, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_clean_latents_are_the_schedulers_own_of_the_guided_prediction() -> None:
    """DDIM with η = 0 says itself what x̂₀ is."""
    pipeline = build_pixart_pipeline()
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    own = predictions_of(pipeline.scheduler)
    nothing = [[0] * STEPS]
    decider = Recorder((2, 5), nothing, nothing)
    with apply_blockdance(pipeline, decider):
        run(pipeline, ["dog", "cat"], [1, 2])
    first, second = decider.states
    assert first.clean.shape == (2, 3, 4, 8, 8)
    assert second.clean.shape == (2, HISTORY, 4, 8, 8)
    assert_shows(first, own[:3])
    assert_shows(second, own[2:6])
    assert not torch.allclose(own[2], own[1], rtol=0.01), "the predictions must differ, or the test would see nothing"
    alphas = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps]
    torch.testing.assert_close(first.sigmas, (1 - alphas).sqrt() / ((1 - alphas).sqrt() + alphas.sqrt()))


def test_of_a_scheduler_in_two_stages_the_first_ones_are_shown() -> None:
    """Heun's even calls lead to a new noise level, the odd ones to their own. A decider that would be asked after the second call, when
    there is one prediction, is asked after the third."""
    pipeline = build_pixart_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler()
    own = predictions_of(pipeline.scheduler)
    calls = 2 * STEPS - 1
    early, late = Recorder((1,), [[0] * calls]), Recorder((8,), [[0] * calls])
    for decider, step, shown in ((early, 3, (0, 2)), (late, 9, (2, 4, 6, 8))):
        own.clear()
        with apply_blockdance(pipeline, decider):
            run(pipeline, ["dog"], [1])
        (state,) = decider.states
        assert state.step == step
        assert_shows(state, [own[call] for call in shown])


def test_latents_that_a_callback_rewrote_are_not_taken_for_a_step_of_the_model() -> None:
    """New noise after step 3: where that step led is not known, and the predictions around it are what they are."""
    pipeline = build_pixart_pipeline()
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    own = predictions_of(pipeline.scheduler)
    decider = Recorder((5,), [[0] * STEPS])
    with apply_blockdance(pipeline, decider) as handle:

        def rewrite(step: int, timestep: Tensor, latents: Tensor) -> None:
            if step == 3:
                latents.normal_()
                handle.invalidate()

        run(pipeline, ["dog"], [1], callback=rewrite, callback_steps=1)
    assert_shows(decider.states[0], [own[step] for step in (1, 2, 4, 5)])


def test_latents_rewritten_before_there_is_enough_to_see_begin_anew() -> None:
    """After step 1, where a decider would be asked, there is one prediction; from step 2 on there are two after step 3."""
    pipeline = build_pixart_pipeline()
    decider = Recorder((1,), [[0] * STEPS])
    with apply_blockdance(pipeline, decider) as handle:
        run(pipeline, ["dog"], [1], callback=lambda step, *rest: handle.invalidate() if step == 1 else None, callback_steps=1)
    (state,) = decider.states
    assert state.step == 4
    assert state.clean.shape == (1, 2, 4, 8, 8)


@pytest.mark.parametrize(("guidance_scale", "first"), [(3.0, 2), (1.0, 0)], ids=["uncond, cond, perturbed", "cond, perturbed"])
def test_rows_with_perturbed_attention_are_not_shown(guidance_scale: float, first: int) -> None:
    """Two images: the conditional rows are the first two after the unconditional ones, if there are any."""
    pipeline = PixArtSigmaPAGPipeline(**build_pixart_pipeline().components, pag_applied_layers="blocks.1")
    pipeline.set_progress_bar_config(disable=True)
    given: list[Tensor] = []
    block = pipeline.transformer.transformer_blocks[KINDS[0].boundary]
    block.register_forward_hook(lambda module, inputs, output: given.append(output.clone()))
    decider = Recorder((2,), [[0] * STEPS])
    with apply_blockdance(pipeline, decider):
        run(pipeline, ["dog", "cat"], [1, 2], guidance_scale=guidance_scale, pag_scale=2.0)
    (state,) = decider.states
    assert len(given[2]) == first + 4
    assert torch.equal(state.features, given[2][first : first + 2])
    assert not torch.allclose(state.features, given[2][first + 2 : first + 4], rtol=0.01)


@pytest.mark.parametrize(
    "names",
    [
        ["pred_cond", "pred_uncond"],
        ["pred_cond", "pred_uncond", "pred_cond_skip"],
        ["pred_cond", "pred_uncond", "pred_cond_stg", "pred_cond_modality"],
        ["cond", "uncond", "uncond_stg"],
    ],
)
def test_of_calls_that_guiders_name_the_conditional_one_is_shown(names: list[str]) -> None:
    """Every call has a prompt of its own number; the conditional one's is 1."""
    transformer = build_flux()
    decider = Recorder((2,), [[0] * 4])
    latents, pooled, image_ids, text_ids = torch.randn(1, 16, 4), torch.randn(1, 12), torch.zeros(16, 3), torch.zeros(5, 3)
    with apply_blockdance(transformer, decider, num_inference_steps=4), torch.no_grad():
        for step, sigma in enumerate((1.0, 0.7, 0.4, 0.2)):
            for number, name in enumerate(names, 1):
                with transformer.cache_context(name, step_index=step, num_inference_steps=4, sigma=sigma):
                    prompt_embeds = torch.full((1, 5, 12), float(number))
                    transformer(latents * sigma, prompt_embeds, pooled, torch.tensor([sigma]), image_ids, text_ids)
    (state,) = decider.states
    assert state.prompt_embeds.unique().tolist() == [1.0]


# --- decisions in stages ---


def test_asked_once_after_each_decision_step_and_only_open_steps_change() -> None:
    """The second plan says that step 3 computed and that step 4 of the second image reuses: too late, both are done."""
    pipeline = build_pixart_pipeline()
    first = [[0, 0, 0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 2, 0]]
    second = [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 2, 0, 1]]
    decider = Recorder((2, 4), first, second)
    with apply_blockdance(pipeline, decider) as handle:
        staged = run(pipeline, ["dog", "cat"], [1, 2])
        taken = [[0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 2, 0, 1]]
        assert handle.report().actions.tolist() == taken
    assert [state.step for state in decider.states] == [3, 5]
    assert decider.states[0].actions.tolist() == [[0, 0, 0, -1, -1, -1, -1, -1]] * 2
    assert decider.states[1].actions.tolist() == [[0, 0, 0, 1, 0, -1, -1, -1], [0, 0, 0, 0, 0, -1, -1, -1]]
    with apply_blockdance(pipeline, ReuseSchedule(torch.tensor(taken), KINDS)):
        assert torch.equal(run(pipeline, ["dog", "cat"], [1, 2]), staged)


def test_a_second_generation_is_decided_anew() -> None:
    pipeline = build_pixart_pipeline()
    reuse, compute = [[0, 0, 0, 1, 1, 1, 1, 0]], [[0] * STEPS]
    decider = Recorder((2,), reuse, compute)
    with apply_blockdance(pipeline, decider) as handle:
        run(pipeline, ["dog"], [1])
        assert handle.report().actions.tolist() == reuse
        run(pipeline, ["dog"], [1])
        assert handle.report().actions.tolist() == compute
    assert torch.equal(decider.states[0].clean, decider.states[1].clean)
    assert decider.states[1].actions.tolist() == [[0, 0, 0, -1, -1, -1, -1, -1]]


def test_states_are_taken_and_joined_image_by_image() -> None:
    pipeline = build_pixart_pipeline()
    nothing = [[0] * STEPS]
    states = []
    for prompts, seeds in ((["a dog", "cat"], [1, 2]), (["a long story of a sun"], [3])):
        decider = Recorder((2,), nothing)
        with apply_blockdance(pipeline, decider):
            run(pipeline, prompts, seeds)
        states += decider.states
    joined = PolicyState.cat(states)
    assert joined.num_images == 3
    assert torch.equal(joined.clean[2], states[1].clean[0])
    picked = joined.take([2, 0, 0])
    assert torch.equal(picked.latents, joined.latents[[2, 0, 0]])
    assert torch.equal(picked.sigmas, joined.sigmas)
    shorter = states[0].take([0])
    padded = PolicyState.cat([states[1], shorter.__class__(**vars(shorter) | {
        "prompt_embeds": shorter.prompt_embeds[:, :5], "prompt_mask": shorter.prompt_mask[:, :5],
    })])  # fmt: skip
    assert torch.equal(padded.prompt_embeds[1, :5], shorter.prompt_embeds[0, :5])
    assert padded.prompt_embeds[1, 5:].abs().sum() == 0
    assert padded.prompt_mask[1, 5:].sum() == 0


# --- groups ---

ROWS = ["00000000", "00010010", "00010110", "00000222"]
PROMPTS, SEEDS = ["a red apple", "dog"], [5, 6]


def grouped(plan: ReuseSchedule, max_rows: int | None = None) -> tuple[Tensor, list[int], list[int]]:
    """Images of both prompts under every row of the plan, and the rows of every call of the first and of the last block."""
    pipeline = build_pixart_pipeline()
    count = plan.batch_size // 2
    rows: tuple[list[int], list[int]] = ([], [])
    blocks = pipeline.transformer.transformer_blocks
    for block, seen in ((blocks[0], rows[0]), (blocks[NUM_BLOCKS - 1], rows[1])):
        block.register_forward_pre_hook(lambda module, args, kwargs, seen=seen: seen.append(len(args[0])), with_kwargs=True)
    with apply_blockdance(pipeline, plan, groups=[0] * count + [1] * count, max_rows=max_rows):
        images = run(
            pipeline, [prompt for prompt in PROMPTS for _ in range(count)], [seed for seed in SEEDS for _ in range(count)]
        )
    return images, rows[0], rows[1]


def every_row() -> ReuseSchedule:
    return ReuseSchedule(torch.tensor([[int(action) for action in row] for row in ROWS] * 2), KINDS)


def test_groups_give_each_row_what_its_schedule_gives_alone() -> None:
    images, _, _ = grouped(every_row())
    pipeline = build_pixart_pipeline()
    for place, image in enumerate(images):
        prompt = place // len(ROWS)
        with apply_blockdance(pipeline, ReuseSchedule(every_row().actions[place : place + 1], KINDS)):
            alone = run(pipeline, [PROMPTS[prompt]], [SEEDS[prompt]])[0]
        torch.testing.assert_close(image, alone, atol=1e-4 * float(alone.abs().max()), rtol=0)
    assert not torch.allclose(images[1], images[0], rtol=0.01)


def test_groups_compute_every_distinct_beginning_once() -> None:
    """Rows that run are the distinct pairs of a prompt and the actions so far; each has two guidance branches."""
    _, first, last = grouped(every_row())
    prefixes = [{row[: step + 1] for row in ROWS} for step in range(STEPS)]
    assert [len(some) for some in prefixes] == [1, 1, 1, 2, 2, 4, 4, 4]
    assert sum(last) == 2 * 2 * sum(map(len, prefixes))
    assert sum(first) == 2 * 2 * sum(sum(prefix[-1] == "0" for prefix in some) for some in prefixes)


def test_max_rows_bounds_the_rows_of_a_call() -> None:
    unbounded, _, last = grouped(every_row())
    assert max(last) > 4
    images, first, last = grouped(every_row(), max_rows=4)
    assert max(first + last) == 4
    torch.testing.assert_close(images, unbounded, atol=1e-4 * float(unbounded.abs().max()), rtol=0)


def test_wrong_number_of_groups_is_named() -> None:
    pipeline = build_pixart_pipeline()
    plan = ReuseSchedule(every_row().actions[1:2], KINDS)
    with (
        apply_blockdance(pipeline, plan, groups=[0, 0, 1]),
        pytest.raises(ScheduleError, match="`groups` names 3 images, but the batch has 2"),
    ):
        run(pipeline, PROMPTS, SEEDS)


# --- grids and groups ---


def test_the_grid_of_packed_latents_is_what_the_model_is_told() -> None:
    packed = torch.zeros(2, 24, 16)
    places = torch.zeros(4, 6, 3)
    places[..., 1], places[..., 2] = torch.arange(4)[:, None], torch.arange(6)
    told: list[tuple[dict[str, Any], tuple[int, int, int] | None]] = [
        ({"img_ids": places.reshape(24, 3)}, (1, 4, 6)),
        ({"img_ids": torch.cat([places, places[..., :1]], -1).reshape(1, 24, 4).expand(2, -1, -1)}, (1, 4, 6)),
        ({"img_shapes": [[(1, 4, 6)], [(1, 4, 6)]]}, (1, 4, 6)),
        ({"img_shapes": [(2, 3, 4), (2, 3, 4)]}, (2, 3, 4)),
        ({"num_frames": 2, "height": 3, "width": 4}, (2, 3, 4)),
        ({"num_frames": 2, "height": 3, "width": 5}, None),
        ({"height": 4, "width": 6}, None),
        ({}, None),
    ]
    for inputs, grid in told:
        assert token_grid({"hidden_states": packed} | inputs, "hidden_states") == grid
    assert token_grid({"x": torch.zeros(2, 4, 6, 4), "num_frames": 1, "height": 6, "width": 4}, "x") is None


def test_images_of_a_group_must_be_the_same() -> None:
    pipeline = build_pixart_pipeline()
    plan = ReuseSchedule(torch.zeros(1, STEPS, dtype=torch.int64), KINDS)
    with (
        apply_blockdance(pipeline, plan, groups=[0, 0]),
        pytest.raises(ScheduleError, match="gives them another `hidden_states`"),
    ):
        run(pipeline, ["a dog", "a dog"], [1, 2])
    with (
        apply_blockdance(pipeline, plan, groups=[0, 0]),
        pytest.raises(ScheduleError, match="gives them another `encoder_hidden_states`"),
    ):
        run(pipeline, ["a dog", "sun"], [1, 1])
