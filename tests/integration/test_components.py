"""BlockDance beside what else people do to a pipeline: ControlNet, LoRA, offloading, another dtype, saving."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusion3Pipeline
from diffusers.hooks.group_offloading import ModuleGroup
from families import FAMILIES
from families.base import BATCH, Family, call
from integration.pipelines import CASES, CONTROLNETS, STEPS, Case, generate, reuse_by_hand
from peft import LoraConfig, get_peft_model_state_dict

from blockdance import BlockDanceConfig, BlockReuse, Reuse, ReuseSchedule, apply_blockdance, find_layout, full_compute
from blockdance.kinds import Kind
from blockdance.layouts import blocks_of

CONFIG = BlockDanceConfig(interval=2, reuse_range=(0.2, 1), boundary=2)
ACTIONS = [0, 0, 1, 0, 1, 0]  # CONFIG's for six steps


def build(case: Case) -> DiffusionPipeline:
    """A pipeline whose parts no other one shares."""
    pipeline = copy.deepcopy(case.build())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_reuse_is_right(case: Case, pipeline: DiffusionPipeline) -> None:
    """Full compute is bit-equal to plain, and CONFIG to reuse by hand."""
    plain = generate(case, pipeline)
    with reuse_by_hand(pipeline, 2, ACTIONS):
        expected = generate(case, pipeline)
    assert not torch.allclose(expected, plain, rtol=1e-3, atol=1e-3)
    with apply_blockdance(pipeline, full_compute(1, STEPS)):
        assert torch.equal(generate(case, pipeline), plain)
    with apply_blockdance(pipeline, CONFIG) as handle:
        assert torch.equal(generate(case, pipeline), expected)
        report = handle.report()
        assert report.actions.tolist() == [ACTIONS] * 2
        assert (report.compute_saved > 0).all()
        assert torch.equal(generate(case, pipeline), expected)  # the report left the model as it was
    assert torch.equal(generate(case, pipeline), plain)


# --- ControlNet ---


@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnet_pipelines(name: str) -> None:
    case = CONTROLNETS[name]
    pipeline = build(case)
    assert not torch.allclose(generate(case, pipeline), generate(case, pipeline, controlnet_conditioning_scale=0.0), atol=1e-2)
    assert_reuse_is_right(case, pipeline)


# of every class that takes residuals: argument → image tokens of one residual
RESIDUALS: dict[str, dict[str, int]] = {
    "ChromaTransformer2DModel": {"controlnet_block_samples": 4, "controlnet_single_block_samples": 4},
    "FluxTransformer2DModel": {"controlnet_block_samples": 4, "controlnet_single_block_samples": 4},
    "HunyuanDiT2DModel": {"controlnet_block_samples": 4},
    "QwenImageTransformer2DModel": {"controlnet_block_samples": 4},
    "SD3Transformer2DModel": {"block_controlnet_hidden_states": 4},
    "SanaTransformer2DModel": {"controlnet_block_samples": 16},
    "ZImageTransformer2DModel": {"controlnet_block_samples": 64},
}


def with_residuals(family: Family) -> dict[str, Any]:
    """Seeded inputs with two residuals per list; HunyuanDiT takes them off the list that it is given."""
    inputs = family.make_inputs(BATCH)
    for name, tokens in RESIDUALS[family.name].items():
        residuals = [torch.randn(BATCH, tokens, 16) for _ in range(2)]
        inputs[name] = dict(enumerate(residuals)) if family.name == "ZImageTransformer2DModel" else residuals
    return inputs


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals_between_blocks(name: str) -> None:
    """Reuse with unchanged inputs equals plain after every block; images of a batch with actions of their own, too."""
    family = next(family for family in FAMILIES if family.name == name)
    model = family.build()
    plain = call(model, family, with_residuals(family), 0.5)[0]
    assert not torch.allclose(plain, call(model, family, family.make_inputs(BATCH), 0.5)[0], rtol=1e-2, atol=1e-2)
    last = len(blocks_of(model, find_layout(model))) - 1
    scheduler = SimpleNamespace(timesteps=torch.full((3,), 0.5), sigmas=torch.tensor([0.6, 0.5, 0.4]), step_index=None)
    loop = SimpleNamespace(transformer=model, scheduler=scheduler)
    for boundary in range(last + 1):
        kinds = (Reuse(boundary=boundary), Reuse(boundary=last, order=1))
        for actions in ([[0, 1, 1]], [[0, 0, 1], [0, 1, 0], [0, 0, 2], [0, 1, 1]]):
            plan = ReuseSchedule(torch.tensor(actions), kinds)
            with apply_blockdance(loop, plan, guidance_branches=1) as handle:
                for step in range(3):
                    scheduler.step_index = step
                    output = call(model, family, with_residuals(family), 0.5)[0]
                    if len(actions) == 1:
                        assert torch.equal(output, plain)
                    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-4)
                assert handle.report().actions.tolist() == actions * (BATCH // len(actions))


# --- LoRA ---

LORA_PIPELINES = {"flux": FluxPipeline, "stable_diffusion_3": StableDiffusion3Pipeline}


@pytest.fixture(params=LORA_PIPELINES)
def lora(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a pipeline, and the folder of a LoRA for it, as training scripts save one."""
    transformer = build(CASES[request.param]).transformer
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(transformer)
    LORA_PIPELINES[request.param].save_lora_weights(tmp_path, transformer_lora_layers=layers)
    return request.param, tmp_path


def test_lora_loaded_before_and_after(lora: tuple[str, Path]) -> None:
    name, folder = lora
    case = CASES[name]
    fresh, before, after = build(case), build(case), build(case)
    without = generate(case, fresh)
    fresh.load_lora_weights(folder)
    assert not torch.allclose(generate(case, fresh), without, rtol=1e-3, atol=1e-3)
    scale = {"joint_attention_kwargs": {"scale": 0.5}}
    with reuse_by_hand(fresh, 2, ACTIONS):
        expected = generate(case, fresh)
    with reuse_by_hand(fresh, 2, ACTIONS):
        half = generate(case, fresh, **scale)
    assert not torch.equal(expected, half)
    before.load_lora_weights(folder)
    apply_blockdance(before, CONFIG)
    handle = apply_blockdance(after, CONFIG)
    generate(case, after)
    after.load_lora_weights(folder)
    for pipeline in (before, after):
        assert torch.equal(generate(case, pipeline), expected)
        assert torch.equal(generate(case, pipeline, **scale), half)
    assert handle.report().actions.tolist() == [ACTIONS] * 2
    after.unload_lora_weights()
    handle.remove()
    assert torch.equal(generate(case, after), without)


def test_lora_fused_while_on(lora: tuple[str, Path]) -> None:
    name, folder = lora
    case = CASES[name]
    fresh, pipeline = build(case), build(case)
    fresh.load_lora_weights(folder)
    fresh.fuse_lora()
    with reuse_by_hand(fresh, 2, ACTIONS):
        expected = generate(case, fresh)
    apply_blockdance(pipeline, CONFIG)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    assert torch.equal(generate(case, pipeline), expected)


# --- offloading, on the CPU: what moves weights runs, though it moves them nowhere ---

CPU = torch.device("cpu")
OFFLOADS: dict[str, Callable[[DiffusionPipeline], Any]] = {
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(device="cpu"),
    "layer by layer": lambda pipeline: accelerate.cpu_offload(pipeline.transformer, CPU),
    "groups of blocks": lambda pipeline: pipeline.enable_group_offload(CPU, num_blocks_per_group=1),
    "groups of two blocks": lambda pipeline: pipeline.enable_group_offload(CPU, num_blocks_per_group=2),
    "groups of leaves": lambda pipeline: pipeline.enable_group_offload(CPU, offload_type="leaf_level"),
}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["pixart_alpha", "flux"])
@pytest.mark.parametrize("offload_first", [True, False])
def test_offloaded_weights(offload: str, name: str, offload_first: bool) -> None:
    case = CASES[name]
    pipeline = build(case)
    plain = generate(case, pipeline)
    with reuse_by_hand(pipeline, 2, ACTIONS):
        expected = generate(case, pipeline)
    if offload_first:
        OFFLOADS[offload](pipeline)
    handle = apply_blockdance(pipeline, CONFIG)
    if not offload_first:
        OFFLOADS[offload](pipeline)
    hooked = [module for module in pipeline.transformer.modules() if {"_hf_hook", "_diffusers_hook"} & vars(module).keys()]
    assert hooked
    for _ in range(2):
        assert torch.equal(generate(case, pipeline), expected)
        report = handle.report()
        assert report.actions.tolist() == [ACTIONS] * 2
        assert (report.compute_saved > 0).all()
    handle.remove()
    assert torch.equal(generate(case, pipeline), plain)


@pytest.mark.parametrize(
    "kind",
    [Reuse(boundary=0), Reuse(boundary=2), BlockReuse(blocks=(1, 2))],
    ids=["the first of two", "the third", "the last of two and the first of the next"],
)
def test_a_group_whose_first_or_last_block_is_skipped(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs finds its weights, and none stay loaded after the generation."""
    case = CASES["pixart_alpha"]
    pipeline = build(case)
    schedule = ReuseSchedule(torch.tensor([ACTIONS]), (kind,))
    with apply_blockdance(pipeline, schedule):
        expected = generate(case, pipeline)
    loaded = poison_offloaded_weights(monkeypatch)
    pipeline.transformer.enable_group_offload(CPU, num_blocks_per_group=2, offload_to_disk_path=str(tmp_path))
    with apply_blockdance(pipeline, schedule) as handle:
        assert torch.equal(generate(case, pipeline), expected)
        assert handle.report().actions.tolist() == [ACTIONS] * 2
    assert not loaded
    plain = generate(case, pipeline)
    assert plain.isfinite().all()
    assert not torch.equal(plain, expected)


def poison_offloaded_weights(monkeypatch: pytest.MonkeyPatch) -> set[ModuleGroup]:
    """Makes weights on disk NaN in memory, which diffusers leaves as it finds it; returns the groups that are loaded, as they change."""
    loaded: set[ModuleGroup] = set()
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_

    def note_onload(group: ModuleGroup) -> None:
        loaded.add(group)
        onload(group)

    def poison(group: ModuleGroup) -> None:
        offload(group)
        loaded.discard(group)
        for tensor in group.tensor_to_key:
            tensor.data.fill_(torch.nan)

    monkeypatch.setattr(ModuleGroup, "onload_", note_onload)
    monkeypatch.setattr(ModuleGroup, "offload_", poison)
    return loaded


# --- dtype, saving ---


@pytest.mark.parametrize("name", ["pixart_alpha", "flux", "wan"])
def test_another_dtype_between_generations(name: str) -> None:
    case = CASES[name]
    pipeline, fresh = build(case), build(case).to(torch.bfloat16)
    with reuse_by_hand(fresh, 2, ACTIONS):
        expected = generate(case, fresh)
    handle = apply_blockdance(pipeline, CONFIG)
    single = generate(case, pipeline)
    bytes_single = handle.report().peak_cache_bytes
    pipeline.to(torch.bfloat16)
    assert torch.equal(generate(case, pipeline), expected)
    assert handle.report().peak_cache_bytes == bytes_single // 2
    assert handle.report().actions.tolist() == [ACTIONS] * 2
    assert not torch.equal(expected.float(), single)


@pytest.mark.parametrize("name", ["flux", "stable_diffusion_3"])
def test_saved_while_on_loads_as_the_plain_pipeline(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pipeline = build(case)
    model_class, weights = type(pipeline.transformer), pipeline.transformer.state_dict()
    plain = generate(case, pipeline)
    apply_blockdance(pipeline, CONFIG)
    generate(case, pipeline)
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    assert type(again.transformer) is model_class
    assert list(again.transformer.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in again.transformer.state_dict().items())
    again.set_progress_bar_config(disable=True)
    assert torch.equal(generate(case, again), plain)
