"""How BlockDance takes hold of a transformer, beside compilers, hooks, copies and other processes, and how it lets go."""

import copy
import inspect
import io
import pickle
import threading
import time
from collections.abc import Iterator
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from conftest import build_flux, build_pixart
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel
from diffusers.hooks import apply_first_block_cache
from torch import Tensor, nn

import blockdance.attachment as attachment_module
from blockdance import (
    BlockDanceConfig,
    BlockDanceError,
    PolicyState,
    Reuse,
    ReuseSchedule,
    apply_blockdance,
    get_blockdance,
    remove_blockdance,
)

CONFIG = BlockDanceConfig(reuse_range=(0, 1), boundary=1)
TIMESTEPS = (0.9, 0.7, 0.5, 0.3)


def inputs(batch: int = 2) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, 5, 12),
        "encoder_attention_mask": torch.ones(batch, 5),
    }


def generate(call: Any, batch: int = 2, timesteps: tuple[float, ...] = TIMESTEPS) -> list[Tensor]:
    """A loop that is no pipeline's: `call` is a transformer, or its `forward`."""
    given = inputs(batch)
    with torch.no_grad():
        return [call(**given, timestep=torch.full((batch,), timestep), return_dict=False)[0] for timestep in timesteps]


def assert_equal(one: list[Tensor], other: list[Tensor], atol: float = 0.0) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture
def expected() -> list[Tensor]:
    """What a generation with CONFIG gives, as a model on its own says."""
    model = build_pixart_again()
    apply_blockdance(model, CONFIG, num_inference_steps=4)
    return generate(model)


def build_pixart_again() -> nn.Module:
    torch.manual_seed(0)
    return build_pixart()


# --- torch.compile ---


@pytest.mark.parametrize(
    ("in_place", "compile_first", "dynamic"),
    [(True, True, None), (True, False, False), (False, True, None), (False, False, True), (False, False, False)],
)
def test_compiling_before_and_after(in_place: bool, compile_first: bool, dynamic: bool | None, expected: list[Tensor]) -> None:
    """Two graphs, one a kind of step, and none more in the third generation. `test_compile.py` has compiled blocks."""
    torch._dynamo.reset()
    model, counter = build_pixart_again(), torch._dynamo.testing.CompileCounter()

    def compiled(model: Any) -> Any:
        options = {"backend": counter, "fullgraph": True, "dynamic": dynamic}
        if not in_place:
            return torch.compile(model, **options)
        model.compile(**options)
        return model

    callee = compiled(model) if compile_first else model
    apply_blockdance(callee, CONFIG, num_inference_steps=4)
    if not compile_first:
        callee = compiled(model)
    for _ in range(3):
        outputs = generate(callee)
    assert counter.frame_count == 2
    assert_equal(outputs, expected, atol=1e-5)
    assert get_blockdance(callee).report().actions.tolist() == [[0, 1, 0, 1]] * 2
    remove_blockdance(callee)
    assert "forward" not in vars(model)


@pytest.mark.slow
def test_the_real_compiler(expected: list[Tensor]) -> None:
    torch._dynamo.reset()
    model = build_pixart_again()
    apply_blockdance(model, CONFIG, num_inference_steps=4)
    assert_equal(generate(torch.compile(model, fullgraph=True)), expected, atol=1e-4)


# --- forward, signature ---


def test_a_loop_that_calls_forward_goes_through(expected: list[Tensor]) -> None:
    """As Open-Sora's samplers do."""
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    assert_equal(generate(model.forward), expected)
    assert handle.report().actions.tolist() == [[0, 1, 0, 1]] * 2


def test_class_and_signature_stay() -> None:
    model = build_pixart_again()
    signature, model_class = inspect.signature(model.forward), type(model)
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    assert type(model) is model_class
    assert inspect.signature(model.forward) == signature
    handle.remove()
    assert "forward" not in vars(model)


# --- copies ---


def copies_of(model: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


def test_copies_are_plain_and_independent(expected: list[Tensor]) -> None:
    plain = generate(build_pixart_again())
    model = build_pixart_again()
    apply_blockdance(model, CONFIG, num_inference_steps=4)
    generate(model)
    for other in copies_of(model):
        assert_equal(generate(other), plain)
        assert get_blockdance(other) is None
        with torch.no_grad():
            other.proj_out.weight.zero_()  # a copy whose calls went to the first model would not see it
        assert all(not output.any() for output in generate(other)) or other.proj_out.bias.any()
        apply_blockdance(other, CONFIG, num_inference_steps=4)
        assert not torch.equal(generate(other)[0], expected[0])
    assert_equal(generate(model), expected)


# --- handles ---


def test_an_old_handle_does_not_turn_off_a_newer_one(expected: list[Tensor]) -> None:
    model = build_pixart_again()
    old = apply_blockdance(model, BlockDanceConfig(boundary=2), num_inference_steps=4)
    old.remove()
    new = apply_blockdance(model, CONFIG, num_inference_steps=4)
    old.remove()
    assert_equal(generate(model), expected)
    new.remove()
    new.remove()
    assert_equal(generate(model), generate(build_pixart_again()))


def test_a_report_outlives_the_with_block() -> None:
    model = build_pixart_again()
    with apply_blockdance(model, CONFIG, num_inference_steps=4) as handle:
        generate(model)
        inside = handle.report()
    outside = handle.report()
    assert torch.equal(outside.actions, inside.actions)
    assert torch.equal(outside.macs_computed, inside.macs_computed)
    assert outside.cache_bytes == 0


def test_a_half_done_generation_is_freed_by_remove() -> None:
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    generate(model, timesteps=TIMESTEPS[:2])
    assert handle.report().cache_bytes > 0
    handle.remove()
    assert handle.report().cache_bytes == 0


def test_two_threads_turn_it_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, outcomes = build_pixart_again(), list[str]()
    look = attachment_module._refuse_second

    def look_slowly(*args: Any) -> None:
        look(*args)
        time.sleep(0.2)

    def turn_on() -> None:
        try:
            apply_blockdance(model, CONFIG, num_inference_steps=4)
            outcomes.append("on")
        except BlockDanceError:
            outcomes.append("refused")

    monkeypatch.setattr(attachment_module, "_refuse_second", look_slowly)
    threads = [threading.Thread(target=turn_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["on", "refused"]


def test_get_blockdance_finds_the_handle() -> None:
    model = build_pixart_again()
    assert get_blockdance(model) is None
    apply_blockdance(model, num_inference_steps=4)
    handle = get_blockdance(model)
    assert handle is not None
    assert handle.plan == BlockDanceConfig()
    handle.remove()
    assert get_blockdance(model) is None


def test_a_plan_can_be_set_while_it_is_on(expected: list[Tensor]) -> None:
    model = build_pixart_again()
    handle = apply_blockdance(model, BlockDanceConfig(interval=3, reuse_range=(0, 1), boundary=2), num_inference_steps=4)
    other = generate(model)
    handle.plan = CONFIG
    assert_equal(generate(model), expected)
    assert not torch.equal(other[1], expected[1])
    with pytest.raises(BlockDanceError, match="the model has 4 blocks"):
        handle.plan = BlockDanceConfig(boundary=9)
    assert_equal(generate(model), expected)


def test_plans_for_some_calls_may_overlap(expected: list[Tensor]) -> None:
    """As in two threads: each ends in its own time."""
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    first, second, third = (BlockDanceConfig(boundary=boundary) for boundary in range(3))
    one, two = handle.using(first), handle.using(second)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert handle.plan == second
    two.__exit__(None, None, None)
    assert handle.plan == CONFIG
    assert_equal(generate(model), expected)
    with handle.using(first):
        with handle.using(second):
            assert handle.plan == second
        assert handle.plan == first
        with pytest.raises(BlockDanceError, match="the model has 4 blocks"), handle.using(BlockDanceConfig(boundary=9)):
            pass
        assert handle.plan == first
    assert handle.plan == CONFIG
    with handle.using(first):
        handle.plan = third
        assert handle.plan == third
    assert handle.plan == third


def test_a_plan_for_some_calls_that_ends_unnoticed_leaves_generations_alone() -> None:
    """The newest one goes on with what it has cached."""
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    schedule = ReuseSchedule(torch.tensor([[0, 1, 1, 1]]), (Reuse(boundary=1),))
    given = inputs()
    older = handle.using(BlockDanceConfig(boundary=2))
    older.__enter__()
    with handle.using(schedule), torch.no_grad():
        for step, timestep in enumerate(TIMESTEPS):
            if step == 2:
                older.__exit__(None, None, None)
            model(**given, timestep=torch.full((2,), timestep))
        assert handle.report().actions.tolist() == [[0, 1, 1, 1]] * 2


def test_a_plan_set_after_remove_is_refused() -> None:
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    with handle.using(BlockDanceConfig(boundary=2)):
        handle.remove()
    with pytest.raises(BlockDanceError, match=r"turned off here.*apply_blockdance"):
        handle.plan = CONFIG
    with pytest.raises(BlockDanceError, match="turned off here"), handle.using(CONFIG):
        pass
    with apply_blockdance(model, CONFIG, num_inference_steps=4) as newer:
        with pytest.raises(BlockDanceError, match="turned off here"):
            handle.plan = BlockDanceConfig(boundary=2)
        assert newer.plan == CONFIG


def test_invalidate_makes_the_next_step_compute() -> None:
    """A callback has put another prompt in: what was cached is of the old one."""
    model = build_pixart_again()
    schedule = ReuseSchedule(torch.tensor([[0, 1, 1, 1]]), (Reuse(boundary=1),))
    handle = apply_blockdance(model, schedule, num_inference_steps=4)
    given = inputs()
    with torch.no_grad():
        for step, timestep in enumerate(TIMESTEPS):
            if step == 2:
                handle.invalidate()
            model(**given, timestep=torch.full((2,), timestep))
    assert handle.report().actions.tolist() == [[0, 1, 0, 1]] * 2


# --- beside others ---


def test_hooks_that_come_and_go_do_not_take_it_away(expected: list[Tensor]) -> None:
    """accelerate puts `forward` back as it found it, and does so at the end of every offloaded generation."""
    accelerate = pytest.importorskip("accelerate")
    model = build_pixart_again()
    accelerate.cpu_offload(model, torch.device("cpu"))
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    assert_equal(generate(model), expected)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert_equal(generate(model), expected)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert_equal(generate(model), expected)
    handle.remove()
    assert_equal(generate(model), generate(build_pixart_again()))


def test_a_stranger_that_keeps_the_overridden_forward_gets_the_plain_one_after_remove() -> None:
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    kept = model.forward
    handle.remove()
    assert_equal(generate(kept), generate(build_pixart_again()))


def test_blocks_replaced_while_on_are_noticed() -> None:
    model, other = build_pixart_again(), build_pixart_again()
    apply_blockdance(model, CONFIG, num_inference_steps=4)
    generate(model)
    for changed in (model, other):
        replacement = copy.deepcopy(changed.transformer_blocks[3])
        with torch.no_grad():
            for parameter in replacement.parameters():
                parameter.mul_(0.5)
        changed.transformer_blocks[0] = replacement
    apply_blockdance(other, CONFIG, num_inference_steps=4)
    assert_equal(generate(model), generate(other))


def flux_call(model: nn.Module) -> Tensor:
    given = {
        "hidden_states": torch.ones(1, 6, 4), "encoder_hidden_states": torch.ones(1, 5, 12), "pooled_projections": torch.ones(1, 12),
        "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3), "timestep": torch.tensor([0.9]),
    }  # fmt: skip
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def test_another_cache_at_the_same_time_is_refused() -> None:
    model = build_flux()
    assert isinstance(model, FluxTransformer2DModel)
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(BlockDanceError, match=r"FirstBlockCache is on (.|\n)*disable_cache"):
        flux_call(model)
    model.disable_cache()
    flux_call(model)
    handle.remove()
    pixart = build_pixart_again()
    apply_first_block_cache(pixart, FirstBlockCacheConfig(threshold=0.1))
    apply_blockdance(pixart, CONFIG, num_inference_steps=4)
    with pytest.raises(BlockDanceError, match="beside BlockDance"):
        generate(pixart)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_after_applying(one_process: None, expected: list[Tensor]) -> None:
    """A plan that is the same on all ranks works; one that decides for each rank's images is refused before it can hang."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_equal(generate(model), expected)
    assert handle.report().actions.tolist() == [[0, 1, 0, 1]] * 2
    handle.plan = ReuseSchedule(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]]), (Reuse(boundary=1),))
    with pytest.raises(BlockDanceError, match=r"FSDP.*same blocks at the same time.*one row"):
        generate(model)


class SomePolicy:
    """Decides nothing; what counts is that it would be asked."""

    kinds = (Reuse(boundary=1),)

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return (2,)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        raise AssertionError("it is refused before it is asked")

    def check(self, transformer: nn.Module) -> None:
        assert isinstance(transformer, nn.Module)


def test_a_policy_under_context_parallelism_is_refused(one_process: None, expected: list[Tensor]) -> None:
    model = build_pixart_again()
    model._parallel_config = SimpleNamespace(context_parallel_config=object())
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    assert_equal(generate(model), expected)
    handle.plan = SomePolicy()
    with pytest.raises(BlockDanceError, match="context parallelism: each process sees a part of every image"):
        generate(model)


def test_a_backward_pass_is_refused_by_name() -> None:
    model = build_pixart_again()
    handle = apply_blockdance(model, CONFIG, num_inference_steps=4)
    given = inputs()
    latents = given.pop("hidden_states").requires_grad_()
    output = model(latents, **given, timestep=torch.full((2,), 0.9), return_dict=False)[0]
    with pytest.raises(BlockDanceError, match="remove_blockdance"):
        output.sum().backward()
    handle.remove()
    model(latents, **given, timestep=torch.full((2,), 0.9), return_dict=False)[0].sum().backward()
    assert latents.grad is not None


def test_the_forward_of_a_copy_is_its_own_method() -> None:
    model = build_pixart_again()
    apply_blockdance(model, CONFIG, num_inference_steps=4)
    forward = copy.deepcopy(model).forward
    assert isinstance(forward, MethodType)
    assert forward.__self__ is not model
