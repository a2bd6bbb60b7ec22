"""One transformer, several pipelines: in turns, in each other's middle, in threads; each as if it were alone."""

import contextlib
import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from integration.pipelines import CASES, FROM_IMAGE, STEPS, Case, generate, reuse_by_hand
from torch import Tensor, nn

from blockdance import BlockDanceConfig, apply_blockdance, get_blockdance, remove_blockdance

CASE = CASES["stable_diffusion_3"]
CONFIG = BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=2)
ACTIONS = [0, 0, 1, 0, 1, 0]  # CONFIG's for six steps
PLANS = [
    CONFIG,
    BlockDanceConfig(interval=3, reuse_range=(0.1, 1), boundary=1),
    BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=3, order=1),
    BlockDanceConfig(interval=4, reuse_range=(0.0, 1), boundary=2),
]


# embeddings for prompts: tokenizers keep their padding in themselves, so threads need one each, whatever the transformer does
IN_THREADS = CASES["aura_flow"]


def build(case: Case = CASE) -> DiffusionPipeline:
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sharing(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline on the same parts with a scheduler of its own, as servers make one for every request."""
    parts = dict(pipeline.components) | {"scheduler": type(pipeline.scheduler).from_config(pipeline.scheduler.config)}
    other = type(pipeline)(**parts)
    other.set_progress_bar_config(disable=True)
    return other


def assert_same(images: Tensor, expected: Tensor) -> None:
    """Threads may sum in another order; another schedule, or another image's features, would move the images a thousand times more."""
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


def test_four_threads_with_plans_of_their_own() -> None:
    first = build(IN_THREADS)
    pipelines = [first, *(sharing(first) for _ in PLANS[1:])]
    jobs = [(thread, 4 + (thread + turn) % 2 * 3, 1 + turn // 2 % 2) for turn in range(10) for thread in range(4)]
    expected = {}
    for job in jobs:
        with apply_blockdance(pipelines[job[0]], PLANS[job[0]]):
            expected[job] = expected[job] if job in expected else generate(IN_THREADS, pipelines[job[0]], job[2], job[1])
    for pipeline, plan in zip(pipelines, PLANS, strict=True):
        apply_blockdance(pipeline, plan)

    def run(thread: int) -> None:
        for job in (job for job in jobs if job[0] == thread):
            assert_same(generate(IN_THREADS, pipelines[thread], job[2], job[1]), expected[job])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_a_pipeline_for_every_request_follows_the_plan() -> None:
    """Only the first pipeline was turned on; each request's own scheduler counts its steps."""
    pipeline = build(IN_THREADS)
    with reuse_by_hand(pipeline, 2, ACTIONS):
        expected = generate(IN_THREADS, pipeline)
    handle = apply_blockdance(pipeline, CONFIG)

    def request(_: int) -> None:
        own = sharing(pipeline)
        assert_same(generate(IN_THREADS, own), expected)
        assert get_blockdance(own).report().actions.tolist() == [ACTIONS] * 2

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(request, range(4)))
    assert handle.report().actions.tolist() == [ACTIONS] * 2
    remove_blockdance(pipeline)
    assert get_blockdance(sharing(pipeline)) is None


class InTheMiddle:
    """Calls a function in another thread while the transformer is in the middle of a call, and gives it time to do harm."""

    def __init__(self, transformer: nn.Module, call_number: int, function: Callable[[], Any]) -> None:
        self._calls, self._at, self._function = 0, call_number, function
        self._hook = transformer.time_text_embed.register_forward_pre_hook(self._interfere)
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[Any] | None = None

    def _interfere(self, *_: Any) -> None:
        self._calls += 1
        if self._calls == self._at:
            self._running = self._pool.submit(self._function)
            wait([self._running], timeout=0.5)

    def result(self) -> Any:
        self._hook.remove()
        assert self._running is not None
        return self._running.result(timeout=60)


def test_a_report_during_another_threads_call_counts_the_model_and_not_its_views() -> None:
    """What is counted is kept for the model: a wrong count would stay."""
    first = build()
    second = sharing(first)
    apply_blockdance(first, CONFIG)
    generate(CASE, second)
    other = InTheMiddle(first.transformer, 3, get_blockdance(second).report)  # the third call reuses
    generate(CASE, first)
    seen = other.result()
    alone = build()
    handle = apply_blockdance(alone, CONFIG)
    generate(CASE, alone)
    assert seen.macs_full.tolist() == handle.report().macs_full.tolist()
    assert seen.macs_computed.tolist() == handle.report().macs_computed.tolist()


@pytest.mark.parametrize("call_number", [3, 4])
@pytest.mark.filterwarnings("ignore:BlockDance saved nothing")  # where the new plan came too late to save anything
def test_a_plan_set_during_another_threads_call_waits_for_its_end(call_number: int) -> None:
    """The first pipeline's generation is over; ending it again must not take from the second what it is using."""
    first = build()
    second = sharing(first)
    handle = apply_blockdance(first, CONFIG)
    generate(CASE, first)
    expected = generate(CASE, second)
    seen: list[bool] = []

    def set_plan() -> None:
        handle.plan = PLANS[1]
        seen.append(all(type(block).__module__.startswith("diffusers") for block in first.transformer.transformer_blocks))

    other = InTheMiddle(first.transformer, call_number, set_plan)
    generate(CASE, second)
    other.result()
    assert seen == [True], "it was set between two calls"
    handle.plan = CONFIG
    assert torch.equal(generate(CASE, second), expected)


def test_a_second_pipeline_in_the_middle_of_the_first() -> None:
    first = build()
    second = sharing(first)
    expected = []
    for pipeline, plan, steps in ((first, PLANS[0], STEPS), (second, PLANS[1], 7)):
        with apply_blockdance(pipeline, plan):
            expected.append(generate(CASE, pipeline, steps=steps))
    apply_blockdance(first, PLANS[0])
    old = apply_blockdance(second, PLANS[1])
    seen: list[Tensor] = []

    def interleave(pipeline: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(generate(CASE, second, steps=7))
        return {}

    assert torch.equal(generate(CASE, first, callback_on_step_end=interleave), expected[0])
    assert all(torch.equal(images, expected[1]) for images in seen)
    old.remove()
    assert torch.equal(generate(CASE, first), expected[0])  # removing one leaves the other on


def test_a_report_is_of_the_pipelines_own_generation_whatever_plan_follows() -> None:
    first = build()
    second = sharing(first)
    handle = apply_blockdance(first, CONFIG)
    other = get_blockdance(second)
    with handle.using(PLANS[1]):
        generate(CASE, first)
        generate(CASE, second, 1, 7)
    own, others = ([PLANS[1].schedule(steps, 4).actions[0].tolist()] * count for steps, count in ((STEPS, 2), (7, 1)))

    def assert_reports_are_as_before() -> None:
        assert handle.report().actions.tolist() == handle.report("transformer").actions.tolist() == own
        assert other.report().actions.tolist() == get_blockdance(second).report().actions.tolist() == others
        assert handle.has_run
        assert handle.report().cache_bytes == 0

    assert_reports_are_as_before()
    handle.plan = PLANS[2]
    assert_reports_are_as_before()
    generate(CASE, second, 1)
    assert handle.report().actions.tolist() == own
    assert other.report().actions.tolist() == [PLANS[2].schedule(STEPS, 4).actions[0].tolist()]


def test_from_pipe_makes_a_pipeline_that_counts_its_own_steps() -> None:
    pipeline, case = build(), FROM_IMAGE["stable_diffusion_3"]
    apply_blockdance(pipeline, CONFIG)
    generate(CASE, pipeline)
    from_image = AutoPipelineForImage2Image.from_pipe(pipeline)
    from_image.set_progress_bar_config(disable=True)
    assert from_image.transformer is pipeline.transformer
    taken = [-1, -1, -1, 0, *CONFIG.schedule(8, 4).actions[0].tolist()[4:]]
    with_it = generate(case, from_image, steps=8, strength=5 / 8)
    assert get_blockdance(from_image).report().actions.tolist() == [taken] * 2
    remove_blockdance(pipeline)
    with reuse_by_hand(from_image, 2, taken, first_step=3):
        assert torch.equal(generate(case, from_image, steps=8, strength=5 / 8), with_it)


def test_a_pipeline_without_a_plan_beside_several_with_plans_says_that_it_runs_plain() -> None:
    first = build()
    plain = generate(CASE, first)
    second, third = sharing(first), sharing(first)
    apply_blockdance(first, PLANS[0])
    apply_blockdance(second, PLANS[1])
    with pytest.warns(UserWarning, match=r"shares its SD3Transformer2DModel with 2 pipelines .* runs plain"):
        assert torch.equal(generate(CASE, third), plain)


def test_a_pipeline_that_follows_a_plan_can_turn_it_off_for_itself() -> None:
    first = build()
    plain = generate(CASE, first)
    second, third = sharing(first), sharing(first)
    apply_blockdance(first, CONFIG)
    on = generate(CASE, first)
    assert torch.equal(generate(CASE, second), on)
    remove_blockdance(second)
    assert get_blockdance(second) is None
    assert torch.equal(generate(CASE, second), plain)
    assert torch.equal(generate(CASE, first), on)
    assert torch.equal(generate(CASE, third), on)
    with apply_blockdance(second, CONFIG):
        assert torch.equal(generate(CASE, second), on)
    remove_blockdance(first)
    assert torch.equal(generate(CASE, third), plain)


def test_a_plan_whose_pipeline_is_gone_says_so_once() -> None:
    """The variable was given the pipeline that `from_pipe` made of it: the plan went with the first one."""
    pipeline, case = build(), FROM_IMAGE["stable_diffusion_3"]
    apply_blockdance(pipeline, CONFIG)
    generate(CASE, pipeline)
    pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    gc.collect()
    with pytest.warns(
        UserWarning, match=r"turned on for is gone.* SD3Transformer2DModel runs plain.*apply_blockdance\(pipe"
    ) as said:
        plain = generate(case, pipeline, steps=8, strength=5 / 8)
    assert len([warning for warning in said if "is gone" in str(warning.message)]) == 1
    assert "forward" not in vars(pipeline.transformer)
    with apply_blockdance(pipeline, CONFIG):
        assert not torch.equal(generate(case, pipeline, steps=8, strength=5 / 8), plain)


COPIES = {
    "stable_diffusion_3": copy.deepcopy,
    "cogview4": lambda pipeline: pickle.loads(pickle.dumps(pipeline)),  # text encoders of transformers cannot be pickled
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_pipeline_is_plain(name: str) -> None:
    case = CASES[name]
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    plain = generate(case, pipeline)
    apply_blockdance(pipeline, CONFIG)
    on = generate(case, pipeline)
    other = COPIES[name](pipeline)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(generate(case, other), plain)
    apply_blockdance(other, CONFIG)
    assert torch.equal(generate(case, other), on)
    assert torch.equal(generate(case, pipeline), on)


# --- what ends a generation early ---


def cache_bytes_after(pipeline: DiffusionPipeline, callback: Any) -> int:
    handle = get_blockdance(pipeline)
    with contextlib.suppress(KeyboardInterrupt):
        generate(CASE, pipeline, callback_on_step_end=callback)
    assert handle.report().actions[0, 3] == 0, "it had cached something"
    return handle.report().cache_bytes


def test_caches_are_freed_after_an_interrupt_and_after_an_exception_of_a_callback() -> None:
    pipeline = build()
    apply_blockdance(pipeline, CONFIG)

    def interrupt(pipeline: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._interrupt = step >= 3
        return {}

    def stop(pipeline: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 3:
            raise KeyboardInterrupt
        return {}

    assert cache_bytes_after(pipeline, interrupt) == 0
    assert cache_bytes_after(pipeline, stop) == 0


def test_caches_are_freed_where_guidance_ends_before_the_last_step() -> None:
    """The unconditional branch was called at the last step but one, and might be called again for all that the last call tells."""
    case = CASES["lumina2"]
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    handle = apply_blockdance(pipeline, CONFIG)
    generate(case, pipeline, cfg_trunc_ratio=5 / 6)
    assert handle.report().cache_bytes == 0
