"""BlockDance and `torch.compile`: graphs are counted, and none is made again."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from families import FAMILIES
from families.base import Family, call
from torch import Tensor, nn

from blockdance import BlockDanceConfig, PolicyState, Reuse, ReuseSchedule, apply_blockdance, find_layout
from blockdance.layouts import blocks_of

ROWS = 2
TIMESTEPS = (0.9, 0.7, 0.5, 0.3)
CONFIG = BlockDanceConfig(reuse_range=(0, 1), boundary=1)
_FAMILIES = {family.name: family for family in FAMILIES}


@pytest.fixture(autouse=True)
def _without_earlier_graphs() -> None:
    torch._dynamo.reset()


def generate(model: nn.Module, family: Family, inputs: dict[str, Any], rows: int = ROWS) -> list[Tensor]:
    return [call(model, family, inputs, value, rows)[0] for value in TIMESTEPS]


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


def _small(name: str, **changes: Any) -> Family:
    return replace(_FAMILIES[name], config=dict(_FAMILIES[name].config) | changes)


class ChangingPolicy:
    """Decides as it is told: other actions in every generation."""

    def __init__(self, kinds: tuple[Reuse, ...], decisions: list[list[list[int]]]) -> None:
        self.kinds = kinds
        self._decisions = cycle(decisions)

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return (1,)

    def check(self, transformer: nn.Module) -> None:
        assert isinstance(transformer, nn.Module)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        return ReuseSchedule(torch.tensor(next(self._decisions)), self.kinds).expand(len(state.latents))


def count_graphs(policy: ChangingPolicy, generations: int) -> list[int]:
    """Graphs after each generation of four images on a compiled PixArt."""
    family = _small("PixArtTransformer2DModel", num_layers=3)
    model, inputs = family.build(), family.make_inputs(4)
    counter = torch._dynamo.testing.CompileCounter()
    model.compile(fullgraph=True, backend=counter)
    apply_blockdance(model, policy, num_inference_steps=len(TIMESTEPS), guidance_branches=1)
    counts = []
    for _ in range(generations):
        generate(model, family, inputs, rows=4)
        counts.append(counter.frame_count)
    return counts


def test_a_policy_that_changes_the_schedule_makes_no_new_graph() -> None:
    decisions = [[[0, 0, 1, 0]], [[0, 0, 0, 1]], [[0, 0, 1, 1]], [[0, 0, 0, 0]]]
    assert count_graphs(ChangingPolicy((Reuse(boundary=1),), decisions), 4) == [2] * 4


MIXED = [
    [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]],
    [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
    [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
]


def test_groups_of_images_take_three_graphs_an_action_at_most() -> None:
    """One row, the whole batch, and any other size; dynamo's own limit of eight graphs must not stop it."""
    kinds = tuple(Reuse(boundary=boundary) for boundary in range(3))
    decisions = [[[action and kind for action in row] for row in rows] for kind in (1, 2, 3) for rows in MIXED]
    counts = count_graphs(ChangingPolicy(kinds, decisions), 11)
    assert counts[8] <= 3 * 4
    assert counts[8:] == [counts[8]] * 3


# Flux gives its first blocks views, as a linear layer makes them, and the others none: torch has a graph for each once sizes change
SHAPES = {"PixArtTransformer2DModel": 3, "FluxTransformer2DModel": 4, "WanTransformer3DModel": 3}


@pytest.mark.parametrize("name", SHAPES)
def test_groups_of_images_take_few_graphs_of_a_compiled_block(name: str) -> None:
    """One row, the whole batch, and any number: what a block does is the same under every action, and later rounds make none."""
    family = _FAMILIES[name]
    model, inputs = family.build(), family.make_inputs(4)
    plans = [ReuseSchedule(torch.tensor(rows), (Reuse(boundary=1),)) for rows in MIXED]

    def run() -> list[Tensor]:
        outputs = []
        for plan in plans:
            with apply_blockdance(model, plan, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
                outputs += generate(model, family, inputs, rows=4)
        return outputs

    eager = run()
    plain, counter = torch._dynamo.testing.CompileCounter(), torch._dynamo.testing.CompileCounter()
    other = family.build()
    compile_blocks(other, plain)
    generate(other, family, inputs, rows=4)
    torch._dynamo.reset()
    compile_blocks(model, counter)
    counts = []
    for _ in range(3):
        for one, two in zip(run(), eager, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        counts.append(counter.frame_count)
    assert plain.frame_count < counts[0] <= SHAPES[name] * plain.frame_count
    assert counts[1:] == counts[:1] * 2


def test_turning_on_again_makes_no_new_graph() -> None:
    family = _small("PixArtTransformer2DModel", num_layers=2)
    model, inputs = family.build(), family.make_inputs(ROWS)
    counter = torch._dynamo.testing.CompileCounter()
    model.compile(fullgraph=True, backend=counter)
    for interval in (2, 3, 4, 2, 3):
        config = BlockDanceConfig(reuse_range=(0, 1), boundary=0, interval=interval)
        with apply_blockdance(model, config, num_inference_steps=len(TIMESTEPS), guidance_branches=1):
            generate(model, family, inputs)
    assert counter.frame_count == 2
