"""MACs of layers, inputs and models that a FLOP counter alone gets wrong."""

from typing import Any

import accelerate
import pytest
import torch
from conftest import build_pixart
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockDanceHandle,
    BlockLayout,
    apply_blockdance,
    count_macs,
    find_layout,
    register_layout,
)

WIDTH = 4


def pixart_call(model: nn.Module) -> None:
    torch.manual_seed(1)
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "encoder_attention_mask": torch.ones(2, 5),
    }
    with torch.no_grad():
        for timestep in (0.9, 0.7, 0.5, 0.3):
            model(**given, timestep=torch.full((2,), timestep))


def generated(model: nn.Module) -> BlockDanceHandle:
    handle = apply_blockdance(model, BlockDanceConfig(reuse_range=(0, 1), boundary=2), num_inference_steps=4)
    pixart_call(model)
    return handle


@pytest.fixture
def expected() -> Tensor:
    return generated(build_pixart()).report().macs_computed


def test_an_offloaded_model_is_counted_without_running_it(expected: Tensor) -> None:
    """The report comes when the video is done; another call of the real model, with attention written out, might not fit."""
    model = build_pixart()
    accelerate.cpu_offload(model, torch.device("cpu"))
    handle = generated(model)
    ran: list[int] = []
    model.transformer_blocks[3].register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(handle.report().macs_computed, expected)
    assert not ran


def test_a_model_that_has_moved_is_counted(expected: Tensor) -> None:
    model = build_pixart()
    handle = generated(model)
    model.to("meta")
    assert torch.equal(handle.report().macs_computed, expected)


@torch.library.custom_op("blockdance_test::packed_linear", mutates_args=())
def packed_linear(features: Tensor, weight: Tensor) -> Tensor:
    return features @ weight.T


@torch.library.custom_op("blockdance_test::mystery", mutates_args=())
def mystery(features: Tensor) -> Tensor:
    return features.clone()


class PackedLinear(nn.Module):
    """As int8 layers are: an operator of its own does the work."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = WIDTH, WIDTH
        self.register_buffer("packed", torch.randn(WIDTH, WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        return packed_linear(features, self.packed)


class Mystery(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return mystery(features)


class Stack(nn.Module):
    """Reads the longest caption's length from a mask, as models do that crop."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, hidden_states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        hidden_states = hidden_states[:, : int(mask.sum(1).max())]
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


register_layout(Stack, BlockLayout(lists=("blocks",)))


def stack_inputs(length: int) -> dict[str, Any]:
    mask = (torch.arange(6) < length).long().expand(2, -1)
    return {"hidden_states": torch.randn(2, 6, WIDTH), "timestep": torch.ones(2), "mask": mask}


def test_layers_that_the_counter_cannot_see_into_are_counted_from_their_shapes() -> None:
    model = Stack(nn.Linear(WIDTH, WIDTH), PackedLinear(), PackedLinear())
    cost = count_macs(model, find_layout(model), (), stack_inputs(6))
    assert cost.blocks == (2 * 6 * WIDTH * WIDTH,) * 3
    assert cost.total == sum(cost.blocks)


def test_operators_that_nobody_can_count_are_named() -> None:
    model = Stack(nn.Linear(WIDTH, WIDTH), Mystery())
    with pytest.warns(UserWarning, match=r"MACs of Stack are counted without blockdance_test\.mystery"):
        count_macs(model, find_layout(model), (), stack_inputs(6))


def test_macs_that_depend_on_a_mask_are_those_of_its_lengths() -> None:
    """Equal shapes, other captions."""
    model = Stack(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    for length in (6, 2, 4):
        handle = apply_blockdance(model, BlockDanceConfig(reuse_range=(0, 1), boundary=0), num_inference_steps=2)
        with torch.no_grad():
            for timestep in (2.0, 1.0):
                model(**stack_inputs(length) | {"timestep": torch.full((2,), timestep)})
        handle.remove()
        assert handle.cost().total == 2 * 2 * length * WIDTH * WIDTH
