"""BlockDance and `torch.compile`: graphs are counted, and none is made again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from families import FAMILIES
from families.base import Family, call
from torch import Tensor, nn

from blockdance import BlockDanceConfig, Reuse, ReuseSchedule, apply_blockdance, find_layout
from blockdance.layout import blocks_of

ROWS = 2
TIMESTEPS = (0.9, 0.7, 0.5, 0.3)
CONFIG = BlockDanceConfig(reuse_range=(0, 1), boundary=1)
_FAMILIES = {family.name: family for family in FAMILIES}


@pytest.fixture(autouse=True)
def _without_earlier_graphs() -> None:
    torch._dynamo.reset()


def generate(model: nn.Module, family: Family, inputs: dict[str, Any]) -> list[Tensor]:
    return [call(model, family, inputs, value, ROWS)[0] for value in TIMESTEPS]


# test_runtime.py has PixArt, SD3 and Flux in both orders
COMPILED_FIRST = {
    "CogVideoXTransformer3DModel": True,
    "DiTTransformer2DModel": False,
    "HunyuanDiT2DModel": True,
    "LTXVideoTransformer3DModel": False,
    "LatteTransformer3DModel": True,
    "WanTransformer3DModel": False,
}


@pytest.mark.parametrize("name", COMPILED_FIRST)
def test_a_whole_transformer_is_two_graphs_without_breaks(name: str) -> None:
    family, compile_first = _FAMILIES[name], COMPILED_FIRST[name]
    model, inputs = family.build(), family.make_inputs(ROWS)
    with apply_blockdance(model, CONFIG, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
        eager = generate(model, family, inputs)
    counter = torch._dynamo.testing.CompileCounter()
    if compile_first:
        model.compile(fullgraph=True, backend=counter)
    apply_blockdance(model, CONFIG, num_inference_steps=len(TIMESTEPS), guidance_branches=1)
    if not compile_first:
        model.compile(fullgraph=True, backend=counter)
    for _ in range(3):
        compiled = generate(model, family, inputs)
    assert counter.frame_count == 2
    for one, two in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def compile_blocks(model: nn.Module, backend: Callable[..., Any]) -> None:
    """As `compile_repeated_blocks` does, also where a class does not name its repeated blocks, as PixArt."""
    if getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks(fullgraph=True, backend=backend)
    else:
        for block in blocks_of(model, find_layout(model)):
            block.compile(fullgraph=True, backend=backend)


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel"])
@pytest.mark.parametrize("compile_first", [True, False])
def test_compiled_blocks_take_as_many_graphs_as_without_blockdance(name: str, compile_first: bool) -> None:
    """Views around blocks add none, in three generations nor under other schedules."""
    family = _FAMILIES[name]
    model, inputs = family.build(), family.make_inputs(ROWS)
    plans = [
        ReuseSchedule(torch.tensor([actions]), (Reuse(boundary=1), Reuse(boundary=2, order=1)))
        for actions in ([0, 1, 0, 1], [0, 0, 2, 1], [0, 0, 0, 0])
    ]
    eager = []
    for plan in plans:
        with apply_blockdance(model, plan, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
            eager.append(generate(model, family, inputs))
    plain, counter = torch._dynamo.testing.CompileCounter(), torch._dynamo.testing.CompileCounter()
    other = family.build()
    compile_blocks(other, plain)
    generate(other, family, inputs)
    assert 0 < plain.frame_count < len(blocks_of(other, find_layout(other)))
    torch._dynamo.reset()
    if compile_first:
        compile_blocks(model, counter)
    for plan, expected in zip(plans, eager, strict=True):
        with apply_blockdance(model, plan, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
            if not compile_first and not counter.frame_count:
                compile_blocks(model, counter)
            for _ in range(3):
                for one, two in zip(generate(model, family, inputs), expected, strict=True):
                    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert counter.frame_count == plain.frame_count


def test_images_with_actions_of_their_own_take_no_graph_per_schedule() -> None:
    """A batch of four split in groups of one to three rows: a graph for each size at most, then none."""
    family = _FAMILIES["PixArtTransformer2DModel"]
    model, inputs = family.build(), family.make_inputs(4)
    counter = torch._dynamo.testing.CompileCounter()
    model.compile(fullgraph=True, backend=counter)
    counts = []
    for rows in (
        [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]],
        [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ) * 2:
        plan = ReuseSchedule(torch.tensor(rows), (Reuse(boundary=1),))
        with apply_blockdance(model, plan, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
            for value in TIMESTEPS:
                call(model, family, inputs, value, 4)
        counts.append(counter.frame_count)
    print(counts)
