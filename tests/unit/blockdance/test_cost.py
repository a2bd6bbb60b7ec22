"""MACs of layers, inputs and models that a FLOP counter alone gets wrong."""

import warnings
import weakref
from typing import Any

import accelerate
import pytest
import torch
from conftest import build_pixart, scramble
from families import FAMILIES
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, library, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blockdance import (
    BlockDanceConfig,
    BlockDanceHandle,
    BlockLayout,
    ForwardCost,
    Reuse,
    ReuseSchedule,
    apply_blockdance,
    count_macs,
    find_layout,
    register_layout,
)
from blockdance import cost as costs
from blockdance.call_shape import CallShape

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


def test_another_model_than_the_one_that_was_counted(expected: Tensor) -> None:
    """Blocks that are replaced and adapters that come and go are counted as by one who has never counted before."""
    model = build_pixart()
    handle = generated(model)
    blocks = model.transformer_blocks
    plain = handle.cost()

    def cost() -> ForwardCost:
        pixart_call(model)
        return handle.cost()

    model.transformer_blocks = nn.ModuleList(blocks[:3])
    assert cost() == ForwardCost(plain.total - plain.blocks[3], plain.blocks[:3])
    model.transformer_blocks = blocks
    assert cost() == plain
    assert torch.equal(handle.report().macs_computed, expected)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn1.to_q"]), model)
    layers = [block.attn1.to_q for block in blocks]
    # in each of 4 blocks 2 images of 16 tokens, from 16 channels to 2 and back
    assert cost().total == plain.total + 4 * 2 * 16 * (16 * 2 + 2 * 16)
    for layer in layers:
        layer.enable_adapters(False)
    assert cost() == plain
    for layer in layers:
        layer.enable_adapters(True)
        layer.merge()
    assert cost() == plain


@library.custom_op("blockdance_test::packed_linear", mutates_args=())
def packed_linear(features: Tensor, weight: Tensor) -> Tensor:
    return features @ weight.T


@library.custom_op("blockdance_test::mystery", mutates_args=())
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


class KeyValueCache:
    """As Flux2's: an object with tensors, which the pipeline fills once and drops when its call is over."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [{"keys": keys}]


class Attending(nn.Module):
    """Two blocks whose MACs are those of multiplying by the cache's keys."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MultiplyKeys() for _ in range(2))

    def forward(self, hidden_states: Tensor, timestep: Tensor, kv_cache: KeyValueCache) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, kv_cache)
        return hidden_states


class MultiplyKeys(nn.Module):
    def forward(self, hidden_states: Tensor, kv_cache: KeyValueCache) -> Tensor:
        keys = kv_cache.layers[0]["keys"]
        return hidden_states @ keys @ keys.T


register_layout(Attending, BlockLayout(lists=("blocks",)))


def test_a_key_value_cache_is_counted_and_not_kept() -> None:
    cache = KeyValueCache(torch.zeros(WIDTH, 6))
    model, gone = Attending(), weakref.ref(cache)
    handle = apply_blockdance(model, BlockDanceConfig(boundary=0), num_inference_steps=4, guidance_branches=1)
    with torch.no_grad():
        for timestep in (3.0, 2.0):
            model(torch.zeros(1, WIDTH), torch.tensor([timestep]), cache)
    cache.layers.clear()
    del cache
    assert gone() is None
    a_block = 2 * WIDTH * 6
    assert handle.report().macs_full.tolist() == [2 * 2 * a_block]


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


# --- captions of different lengths ---


class Packing(nn.Module):
    """As Open-Sora's: rows for guidance branches and images, a text mask with a row for every image, and only real tokens run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_text = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(PackingBlock() for _ in range(3))

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        mask = mask.repeat(len(text) // len(mask), 1)
        packed, lengths = self.embed_text(text[mask > 0]), mask.sum(1).tolist()
        for block in self.blocks:
            hidden_states = block(hidden_states, packed, lengths)
        return hidden_states * timestep[:, None, None]


class PackingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, packed: Tensor, lengths: list[int]) -> Tensor:
        keys, queries = self.key(packed).split(lengths), self.query(hidden_states)
        attended = [(one @ key.T).softmax(1) @ key for one, key in zip(queries, keys, strict=True)]
        return hidden_states + torch.stack(attended)


register_layout(Packing, BlockLayout(lists=("blocks",), cond_last=False, per_image_arguments=frozenset({"mask"})))


@torch.no_grad()
def macs_alone(model: nn.Module, inputs: dict[str, Any]) -> float:
    """Torch's own count of a call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() / 2


def test_captions_of_different_lengths_cost_what_each_image_costs_alone() -> None:
    """Image 0 computes three steps, image 1 computes two and reuses one, image 2 the other way round."""
    model = scramble(Packing())
    text, mask = torch.randn(6, 7, WIDTH), (torch.arange(7) < torch.tensor([[2], [7], [3]])).long()
    latents = torch.randn(3, 5, WIDTH)
    actions = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]])
    plan = ReuseSchedule(actions, (Reuse(boundary=2),))
    with apply_blockdance(model, plan, num_inference_steps=3) as handle, torch.no_grad():
        for timestep in (3.0, 2.0, 1.0):
            given = {"hidden_states": latents.repeat(2, 1, 1), "timestep": torch.full((6,), timestep)}
            model(**given, text=text, mask=mask)
        report = handle.report()
    for image in range(3):
        alone = macs_alone(model, {
            "hidden_states": latents[image].repeat(2, 1, 1), "timestep": torch.ones(2), "text": text[image::3],
            "mask": mask[image : image + 1],
        })  # fmt: skip
        embedding = 2 * int(mask[image].sum()) * WIDTH * WIDTH
        reused = int(actions[image].sum())
        assert report.macs_full[image] == 3 * alone
        assert report.macs_computed[image] == (3 - reused) * alone + reused * embedding


def lumina(model: nn.Module, lengths: Tensor, images: slice) -> dict[str, Any]:
    family = next(family for family in FAMILIES if family.name == "Lumina2Transformer2DModel")
    inputs = {name: value[images] for name, value in family.make_inputs(len(lengths)).items()}
    inputs["encoder_attention_mask"] = torch.arange(inputs["encoder_hidden_states"].shape[1]) < lengths[images, None]
    return inputs | {"timestep": torch.full((len(lengths[images]),), 0.5)}


def z_image(model: nn.Module, lengths: Tensor, images: slice) -> dict[str, Any]:
    """Captions are padded to multiples of 32 tokens."""
    captions = [torch.ones(length, 12) for length in lengths[images].tolist()]
    return {"x": [torch.ones(4, 1, 4, 4)] * len(captions), "cap_feats": captions, "t": torch.full((len(captions),), 0.5)}


@pytest.mark.parametrize(
    ("name", "make", "lengths"),
    [("Lumina2Transformer2DModel", lumina, [3, 1, 6]), ("ZImageTransformer2DModel", z_image, [70, 5, 40])],
)
def test_padding_to_anothers_caption_is_not_counted(name: str, make: Any, lengths: list[int]) -> None:
    """Diffusers' own models, one read from a mask, one from a list."""
    model = next(family for family in FAMILIES if family.name == name).build()
    given = torch.tensor(lengths)
    with apply_blockdance(model, BlockDanceConfig(), num_inference_steps=1, guidance_branches=1) as handle, torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is saved in one step
            model(**make(model, given, slice(None)))
        found = handle.report().macs_full
    expected = [macs_alone(model, make(model, given, slice(image, image + 1))) for image in range(3)]
    assert len(set(expected)) > 1
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_whole_numbers_that_a_call_is_given_tell_it_from_others() -> None:
    calls = [{"x": torch.ones(1, 2), "frames": torch.tensor(frames)} for frames in (16, 16, 8, [16])]
    one, same, *others = [(shape.key, shape.values) for shape in (CallShape.of(call, "timestep") for call in calls)]
    assert one == same
    assert one not in others


def test_costs_that_are_not_read_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of ever new lengths do not fill the memory, and what is asked for again is not counted anew."""
    monkeypatch.setattr(costs, "_MOST", 4)  # the shape itself, and three lengths
    real = costs._count_for_real
    counted: list[int] = []

    def count(transformer: nn.Module, layout: BlockLayout, args: Any, kwargs: Any) -> ForwardCost:
        counted.append(int(kwargs["mask"].sum(1).max()))
        return real(transformer, layout, args, kwargs)

    monkeypatch.setattr(costs, "_count_for_real", count)
    model = Stack(nn.Linear(WIDTH, WIDTH))
    for length in (1, 2, 3, 1, 4, 1, 2):
        shape = CallShape.of(stack_inputs(length), "timestep")
        assert costs.cost_of(model, find_layout(model), shape).total == 2 * length * WIDTH**2
    assert counted == [1, 2, 3, 4, 2]
    assert len(costs._KNOWN[model].costs) == 4
