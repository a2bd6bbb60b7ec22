"""BlockDance on stock pipelines of every kind, end to end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchHeunDiscreteScheduler,
    PixArtSigmaPAGPipeline,
    SanaSprintPipeline,
    SCMScheduler,
)
from integration.pipelines import (
    CASES,
    FROM_IMAGE,
    STEPS,
    TEXT_TOKENS,
    Case,
    embeds,
    generate,
    reuse_by_hand,
    transformer,
    wan_of_two,
)
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    PolicyState,
    Reuse,
    ReuseSchedule,
    apply_blockdance,
    find_layout,
    full_compute,
    remove_blockdance,
)
from blockdance.layouts import blocks_of

CONFIG = BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=2)
ACTIONS = [0, 0, 1, 0, 1, 0]  # CONFIG's for six steps


def build(case: Case) -> DiffusionPipeline:
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Subject:
    """A pipeline that every test of this file leaves without BlockDance, and what it makes of two prompts."""

    case: Case
    pipeline: DiffusionPipeline
    plain: Tensor


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    case = CASES[request.param]
    pipeline = build(case)
    yield Subject(case, pipeline, generate(case, pipeline))
    remove_blockdance(pipeline)


def test_full_compute_is_bit_equal_to_plain(subject: Subject) -> None:
    with apply_blockdance(subject.pipeline, full_compute(1, STEPS)) as handle:
        assert torch.equal(generate(subject.case, subject.pipeline), subject.plain)
        assert handle.report().actions.tolist() == [[0] * STEPS] * 2


def test_a_config_skips_blocks_as_its_schedule_says_and_leaves_nothing_behind(subject: Subject) -> None:
    case, pipeline, plain = subject.case, subject.pipeline, subject.plain
    model_class = type(pipeline.transformer)
    blocks = blocks_of(pipeline.transformer, find_layout(pipeline.transformer))
    ran = [0] * len(blocks)

    def count(position: int) -> None:
        ran[position] += 1

    hooks = [
        block.register_forward_pre_hook(lambda *_, position=position: count(position)) for position, block in enumerate(blocks)
    ]
    with apply_blockdance(pipeline, CONFIG) as handle:
        latents = generate(case, pipeline)
        assert ran == [case.calls * ACTIONS.count(0)] * 3 + [case.calls * STEPS] * (len(blocks) - 3)
        for hook in hooks:
            hook.remove()
        report = handle.report()
        assert report.actions.tolist() == [ACTIONS] * 2
        assert report.cache_bytes == 0
        assert report.peak_cache_bytes > 0
        assert (report.compute_saved > 0).all()
    with reuse_by_hand(pipeline, 2, ACTIONS):
        assert torch.equal(latents, generate(case, pipeline))
    assert latents.isfinite().all()
    assert not torch.allclose(latents, plain, rtol=1e-3, atol=1e-3)
    assert type(pipeline.transformer) is model_class
    assert torch.equal(generate(case, pipeline), plain)


def test_actions_per_image_equal_a_batch_that_takes_them_all_together(subject: Subject) -> None:
    """Two prompts with two images each; every image has a schedule of its own."""
    case, pipeline = subject.case, subject.pipeline
    kinds = (Reuse(boundary=1), Reuse(boundary=3, order=1))
    rows = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 0, 2, 1, 0], [0, 0, 2, 2, 0, 1], [0] * STEPS])

    def run(actions: Tensor) -> Tensor:
        with apply_blockdance(pipeline, ReuseSchedule(actions, kinds)) as handle:
            latents = generate(case, pipeline, 4) if case.copies is None else generate(case, pipeline, 2, **{case.copies: 2})
            assert torch.equal(handle.report().actions, actions.expand(4, -1))
        return latents

    together, full = run(rows), run(rows[3:])
    for image in range(4):
        alone = run(rows[image : image + 1])[image]
        scale = float(alone.abs().max())
        torch.testing.assert_close(together[image], alone, rtol=0, atol=1e-5 * scale)
        assert torch.allclose(alone, full[image], rtol=0, atol=1e-4 * scale) == (image == 3)


def switch_guidance(pipeline: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Guidance for steps 0, 1, 4 and 5 only: the pipeline's own way, halving and doubling the rows of the prompts."""
    if step == 1:
        pipeline._guidance_scale = 1.0
        return {name: values[name].chunk(2)[1] for name in PROMPT_TENSORS}
    if step == 3:
        pipeline._guidance_scale = 7.0
        return {name: torch.cat([values[name].flip(0), values[name]]) for name in PROMPT_TENSORS}
    return {}


PROMPT_TENSORS = ["prompt_embeds", "pooled_prompt_embeds"]
VARIANTS: dict[str, tuple[str, dict[str, Any], list[int], list[int]]] = {
    "fused guidance off": ("stable_diffusion_3", {"guidance_scale": 1.0}, ACTIONS, [1] * 6),
    "fused guidance off, batch of one": ("pixart_alpha", {"guidance_scale": 1.0, "prompts": 1}, ACTIONS, [1] * 6),
    "separate guidance off": ("flux", {"true_cfg_scale": 1.0}, ACTIONS, [1] * 6),
    "separate guidance off, named steps": ("wan", {"guidance_scale": 1.0}, ACTIONS, [1] * 6),
    "fused guidance stops": ("z_image", {"cfg_truncation": 0.5}, ACTIONS, [1] * 6),
    "separate guidance stops": ("lumina2", {"cfg_trunc_ratio": 0.5}, ACTIONS, [2, 2, 2, 1, 1, 1]),
    # the unconditional rows, back at step 4, have nothing to reuse
    "fused guidance stops and starts": (
        "stable_diffusion_3",
        {"callback_on_step_end": switch_guidance, "callback_on_step_end_tensor_inputs": PROMPT_TENSORS},
        [0, 0, 1, 0, 0, 0],
        [1] * 6,
    ),
    # a third call per step, on the conditional rows, from the second step on
    "skip-layer guidance": (
        "stable_diffusion_3",
        {"skip_guidance_layers": [3], "skip_layer_guidance_stop": 1.0},
        ACTIONS,
        [1, 2, 2, 2, 2, 2],
    ),
    "skip-layer guidance leaves the boundary out": (
        "stable_diffusion_3",
        {"skip_guidance_layers": [2], "skip_layer_guidance_stop": 1.0},
        ACTIONS,
        [1, 2, 2, 2, 2, 2],
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_guidance_off_or_on_for_some_steps(variant: str) -> None:
    name, options, actions, calls = VARIANTS[variant]
    case = CASES[name]
    pipeline = build(case)
    seen: list[int] = []
    pipeline.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    plain = generate(case, pipeline, **options)
    assert len(seen) == sum(calls)
    with reuse_by_hand(pipeline, 2, actions):
        expected = generate(case, pipeline, **options)
    with apply_blockdance(pipeline, full_compute(1, STEPS)):
        assert torch.equal(generate(case, pipeline, **options), plain)
    with apply_blockdance(pipeline, CONFIG) as handle:
        assert torch.equal(generate(case, pipeline, **options), expected)
        assert handle.report().actions.tolist() == [actions] * len(plain)
        assert handle.report().cache_bytes == 0
    assert not torch.allclose(expected, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FROM_IMAGE)
def test_image_to_image_starts_late_and_first_computes(name: str) -> None:
    """Of eight steps five run; the first of them would reuse if there were anything to reuse."""
    case = FROM_IMAGE[name]
    pipeline = build(case)
    planned = CONFIG.schedule(8, 4).actions[0].tolist()
    assert planned[3] == 1
    taken = [-1] * 3 + [0] + planned[4:]
    with reuse_by_hand(pipeline, 2, taken, first_step=3):
        expected = generate(case, pipeline, steps=8, strength=5 / 8)
    with apply_blockdance(pipeline, CONFIG) as handle:
        assert torch.equal(generate(case, pipeline, steps=8, strength=5 / 8), expected)
        assert handle.report().actions.tolist() == [taken] * 2
        assert handle.report().cache_bytes == 0


def test_a_flow_scheduler_that_repeats_timesteps_counts_them_as_steps() -> None:
    """Heun's method calls the model twice at all steps but the last."""
    case = CASES["stable_diffusion_3"]
    pipeline = build(case)
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler()
    actions = CONFIG.schedule(2 * STEPS - 1, 4).actions[0].tolist()
    with reuse_by_hand(pipeline, 2, actions):
        expected = generate(case, pipeline)
    with apply_blockdance(pipeline, CONFIG) as handle:
        assert torch.equal(generate(case, pipeline), expected)
        assert handle.report().actions.tolist() == [actions] * 2


@pytest.mark.parametrize(
    "name", ["cogvideox", "dit", "flux", "lumina2", "mochi", "qwen_image", "stable_audio", "wan", "z_image"]
)
def test_generations_in_a_row_are_independent(name: str) -> None:
    """Other step counts, other batches, and one that an exception ends in the middle of its fourth step."""
    case = CASES[name]
    pipeline = build(case)
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4 * case.calls:
            raise KeyboardInterrupt

    last_block = blocks_of(pipeline.transformer, find_layout(pipeline.transformer))[-1]
    for steps, prompts in ((6, 2), (9, 2), (5, 1), (6, 2), (6, 2)):
        with reuse_by_hand(pipeline, 2, CONFIG.schedule(steps, 4).actions[0].tolist()):
            expected = generate(case, pipeline, prompts, steps)
        handle = apply_blockdance(pipeline, CONFIG)
        for _ in range(2):
            hook = last_block.register_forward_pre_hook(stop)
            calls = 0
            with pytest.raises(KeyboardInterrupt):
                generate(case, pipeline)
            hook.remove()
            assert torch.equal(generate(case, pipeline, prompts, steps), expected)
            assert torch.equal(generate(case, pipeline, prompts, steps), expected)
            assert handle.report().actions.shape == (prompts, steps)
            assert handle.report().cache_bytes == 0
        handle.remove()


@pytest.mark.parametrize("name", ["cogvideox", "flux", "wan"])
def test_two_pipelines_alive_at_once_are_independent(name: str) -> None:
    """The second one generates in the middle of the first one's steps."""
    case = CASES[name]
    first, second = build(case), build(case)
    apply_blockdance(first, CONFIG)
    apply_blockdance(second, BlockDanceConfig(interval=3, reuse_range=(0.2, 1), boundary=1))
    expected = generate(case, first), generate(case, second, steps=7)
    seen: list[Tensor] = []

    def interleave(pipeline: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(generate(case, second, steps=7))
        return {}

    assert torch.equal(generate(case, first, callback_on_step_end=interleave), expected[0])
    assert all(torch.equal(latents, expected[1]) for latents in seen)


@pytest.mark.parametrize("name", ["flux", "lumina2", "stable_diffusion_3", "wan"])
@pytest.mark.parametrize("guidance", [True, False])
def test_images_of_equal_noise_are_not_taken_for_guidance_branches(name: str, guidance: bool) -> None:
    """Two prompts on one seed, as people compare prompts."""
    case = CASES[name]
    pipeline = build(case)
    options = {} if guidance else {"true_cfg_scale" if name == "flux" else "guidance_scale": 1.0}
    rows = torch.tensor([ACTIONS, [0] * STEPS])
    with apply_blockdance(pipeline, ReuseSchedule(rows, (Reuse(boundary=2),))) as handle:
        generate(case, pipeline, seeds=[5, 5], **options)
        assert torch.equal(handle.report().actions, rows)


def test_three_fused_branches_of_perturbed_attention_guidance() -> None:
    """Rows are [uncond, cond, perturbed]: two images, not six."""
    case = CASES["pixart_sigma"]
    parts = build(case).components
    pipeline = PixArtSigmaPAGPipeline(**parts, pag_applied_layers="blocks.1")
    pipeline.set_progress_bar_config(disable=True)
    rows = torch.tensor([ACTIONS, [0] * STEPS])
    with apply_blockdance(pipeline, ReuseSchedule(rows, (Reuse(boundary=2),))) as handle:
        together = generate(case, pipeline, pag_scale=3.0)
        assert torch.equal(handle.report().actions, rows)
    torch.testing.assert_close(together[1], generate(case, pipeline, pag_scale=3.0)[1], rtol=1e-4, atol=1e-4)


def test_wan_with_two_transformers_reuses_in_each() -> None:
    """Both are turned on; each caches for itself, and the first one's cache is freed when it hands over."""
    case, pipeline = CASES["wan"], wan_of_two()
    plain = generate(case, pipeline)
    held: list[int] = []
    handle = apply_blockdance(pipeline, CONFIG)

    def weigh(pipeline: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        held.append(handle.report("transformer").cache_bytes)
        return {}

    for _ in range(2):
        held.clear()
        assert not torch.equal(generate(case, pipeline, callback_on_step_end=weigh), plain)
        first, second = handle.report("transformer"), handle.report("transformer_2")
        switch = first.actions[0].tolist().index(-1)
        assert 2 < switch < 5
        assert first.actions.tolist() == [ACTIONS[:switch] + [-1] * (STEPS - switch)] * 2
        after = [0, *ACTIONS[switch + 1 :]]
        assert second.actions.tolist() == [[-1] * switch + after] * 2
        assert handle.report().actions.tolist() == [ACTIONS[:switch] + after] * 2
        assert handle.report().cache_bytes == 0
        assert held[switch - 1] > 0
        assert held[switch + 1] == 0
    handle.remove()
    assert torch.equal(generate(case, pipeline), plain)


def test_a_report_is_of_the_newest_call_alone() -> None:
    """The second call has one image and is interrupted before its second transformer runs: that one's last generation is of the first."""
    case, pipeline = CASES["wan"], wan_of_two()
    pipeline.set_progress_bar_config(disable=True)

    def interrupt(pipeline: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._interrupt = True
        return {}

    handle = apply_blockdance(pipeline, BlockDanceConfig(interval=2, reuse_range=(0, 1), boundary=1))
    generate(case, pipeline)
    complete = handle.report()
    generate(case, pipeline, prompts=1, callback_on_step_end=interrupt)
    assert handle.report().actions.tolist() == [[0, *[-1] * (STEPS - 1)]]
    generate(case, pipeline)
    assert torch.equal(handle.report().actions, complete.actions)
    assert torch.equal(handle.report().macs_full, complete.macs_full)


class StepTeller:
    """Expects of every image as much damage as the step has at which it is asked."""

    kinds = (Reuse(boundary=1),)

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return (2, 4)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        actions = torch.zeros(1, state.num_steps, dtype=torch.int64)
        return ReuseSchedule(actions, self.kinds, torch.tensor([float(state.step)]))

    def check(self, transformer: nn.Module) -> None:
        """Serves any."""


def test_what_is_expected_of_an_image_is_the_last_transformers_word() -> None:
    case, pipeline = CASES["wan"], wan_of_two()
    handle = apply_blockdance(pipeline, StepTeller())
    generate(case, pipeline, steps=8)
    first, second, both = (handle.report(*name).predicted_damage.tolist() for name in (["transformer"], ["transformer_2"], []))
    assert first[0] < second[0]
    assert both == second


def test_wan_of_two_saves_with_the_defaults() -> None:
    """The first transformer's steps lie before 40 %, so alone it would save nothing."""
    case, pipeline = CASES["wan"], wan_of_two()
    pipeline.register_to_config(boundary_ratio=0.9)
    handle = apply_blockdance(pipeline)
    generate(case, pipeline, steps=10)
    assert not handle.report("transformer").actions.gt(0).any()
    assert (handle.report().compute_saved > 0.05).all()


def sana_sprint() -> SanaSprintPipeline:
    pipeline = SanaSprintPipeline(None, None, None, transformer("SanaTransformer2DModel", guidance_embeds=True), SCMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sana_sprint_inputs(prompts: int) -> dict[str, Any]:
    text = embeds(prompts, negative=False) | {"prompt": None, "prompt_attention_mask": torch.ones(prompts, TEXT_TOKENS)}
    return text | {"height": 128, "width": 128, "use_resolution_binning": False, "output_type": "latent"}


SANA_SPRINT = Case(build=sana_sprint, inputs=sana_sprint_inputs)


def test_a_timestep_that_the_loop_leaves_out_is_no_step() -> None:
    """SanaSprint's scheduler has three timesteps for two steps: the second is the last, so that nothing was saved is said there."""
    pipeline = sana_sprint()
    with (
        apply_blockdance(pipeline, BlockDanceConfig(boundary=2)) as handle,
        pytest.warns(UserWarning, match="saved nothing .* of 2 steps"),
    ):
        generate(SANA_SPRINT, pipeline, steps=2)
    assert handle.report().actions.tolist() == [[0, 0]] * 2
    with apply_blockdance(pipeline, ReuseSchedule(torch.tensor([[0, 1]]), (Reuse(boundary=2),))) as handle:
        generate(SANA_SPRINT, pipeline, steps=2)
    assert handle.report().actions.tolist() == [[0, 1]] * 2
    assert handle.report().cache_bytes == 0


@pytest.mark.parametrize("order", [0, 1])
def test_a_transformer_alone_learns_steps_and_noise_levels_from_the_cache_context(order: Literal[0, 1]) -> None:
    case = CASES["wan"]
    pipeline = build(case)
    config = BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=2, order=order)
    with apply_blockdance(pipeline, config):
        expected = generate(case, pipeline)
    with apply_blockdance(pipeline.transformer, config):
        assert torch.equal(generate(case, pipeline), expected)
