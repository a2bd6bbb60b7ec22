"""Every transformer class of diffusers: what BlockDance promises holds, or the class is named as unsupported with its reason."""

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import ModelMixin, transformers
from families import FAMILIES
from families.base import BATCH, Family, call
from models_table import PAGE, page_with_table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from blockdance import (
    BlockDanceReport,
    BlockLayout,
    BlockReuse,
    Kind,
    Reuse,
    ReuseSchedule,
    UnsupportedModelError,
    apply_blockdance,
    find_layout,
    full_compute,
)
from blockdance.layouts import LAYOUTS, UNSUPPORTED, blocks_of

CLASSES = {
    name: model_class
    for name, model_class in vars(transformers).items()
    if inspect.isclass(model_class) and issubclass(model_class, ModelMixin)
}
# a FLOP counter does not know these models' block-sparse attention
FLEX_ATTENTION = {"AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel", "WanAnimate2Transformer3DModel"}
# images whose captions differ in length cost differently: each is counted alone, where a batch shares what belongs to no image
COUNTED_ALONE = {"MochiTransformer3DModel"}
MANY_IMAGES = [family for family in FAMILIES if not LAYOUTS[family.name].one_image]
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def test_every_class_is_supported_or_refused_with_a_reason() -> None:
    assert set(BY_NAME).isdisjoint(UNSUPPORTED)
    assert set(BY_NAME) | set(UNSUPPORTED) == set(CLASSES)
    assert len(BY_NAME) >= 50


def test_the_table_in_the_docs_is_of_today() -> None:
    assert PAGE.read_text() == page_with_table(), "write it anew: python tests/models_table.py"


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_class_raises_the_named_error(name: str) -> None:
    unbuilt = CLASSES[name].__new__(CLASSES[name])
    nn.Module.__init__(unbuilt)
    with pytest.raises(UnsupportedModelError, match=name):
        find_layout(unbuilt)


def boundaries_of(model: nn.Module) -> list[int]:
    """First, middle and last block, and both sides of where one list ends and the next begins."""
    layout = find_layout(model)
    ends, count = [], 0
    for path in layout.lists:
        count += len(model.get_submodule(path))
        ends += [count - 1, count]
    return sorted({0, count // 2, *ends} - {count})


class Loop:
    """Stands for the pipeline and its scheduler: it counts the steps as a scheduler does."""

    def __init__(
        self, family: Family, model: nn.Module, inputs: dict[str, Any], values: list[float], rows: int = BATCH
    ) -> None:
        self.transformer = model
        self.scheduler = SimpleNamespace(timesteps=torch.tensor(values), sigmas=torch.tensor(values), step_index=None)
        self._family, self._inputs, self._values, self._rows = family, inputs, values, rows

    def __iter__(self) -> Iterator[list[Tensor]]:
        for step, value in enumerate(self._values):
            self.scheduler.step_index = step
            yield call(self.transformer, self._family, self._inputs, value, self._rows)


def assert_equal(one: list[Tensor], other: list[Tensor], **tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerance or {"rtol": 0, "atol": 0})


def test_computing_every_step_is_bit_equal(family: Family) -> None:
    model, inputs = family.build(), family.make_inputs(BATCH)
    plain = [call(model, family, inputs, value) for value in (0.9, 0.5)]
    loop = Loop(family, model, inputs, [0.9, 0.5])
    with apply_blockdance(loop, full_compute(1, 2)):
        on = list(loop)
    off = [call(model, family, inputs, value) for value in (0.9, 0.5)]
    for one, two, three in zip(plain, on, off, strict=True):
        assert_equal(one, two)
        assert_equal(one, three)


def test_reuse_with_unchanged_inputs_equals_plain_and_skips(family: Family) -> None:
    model, inputs = family.build(), family.make_inputs(BATCH)
    names = list(model.state_dict())
    plain = call(model, family, inputs, 0.5)
    ran: list[int] = []
    blocks = blocks_of(model, find_layout(model))
    for position, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, position=position: ran.append(position))
    for boundary in boundaries_of(model):
        for order in (0, 1):
            actions = torch.tensor([[0, 0, 1]])
            loop = Loop(family, model, inputs, [0.5] * 3)
            loop.scheduler.sigmas = torch.tensor([0.6, 0.5, 0.4])
            with apply_blockdance(loop, ReuseSchedule(actions, (Reuse(boundary=boundary, order=order),))):
                for step, output in enumerate(loop):
                    assert_equal(output, plain)
                    assert sorted(ran) == list(range(boundary + 1 if step == 2 else 0, len(blocks)))
                    assert list(model.state_dict()) == names
                    ran.clear()


def test_single_blocks_reused_with_unchanged_inputs_equal_plain_and_are_skipped(family: Family) -> None:
    model, inputs = family.build(), family.make_inputs(BATCH)
    blocks = blocks_of(model, find_layout(model))
    ran: list[int] = []
    for position, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, position=position: ran.append(position))
    plain = call(model, family, inputs, 0.5)
    kinds = (BlockReuse(blocks=tuple(range(0, len(blocks), 2))), BlockReuse(blocks=tuple(range(1, len(blocks), 2))))
    loop = Loop(family, model, inputs, [0.5] * 3)
    ran.clear()
    with apply_blockdance(loop, ReuseSchedule(torch.tensor([[0, 1, 2]]), kinds)):
        for output, expected in zip(loop, (range(len(blocks)), kinds[1].blocks, kinds[0].blocks), strict=True):
            assert_equal(output, plain, rtol=1e-3, atol=1e-4)
            assert sorted(ran) == list(expected)
            ran.clear()


@pytest.mark.parametrize("family", MANY_IMAGES, ids=lambda family: family.name)
@pytest.mark.filterwarnings("ignore:BlockDance saved nothing")  # models that cannot split a batch say so
def test_mixed_actions_equal_each_image_alone(family: Family) -> None:
    model, inputs = family.build(), family.make_inputs(BATCH)
    layout = find_layout(model)
    middle, last = boundaries_of(model)[len(boundaries_of(model)) // 2], len(blocks_of(model, layout)) - 1
    kinds: tuple[Kind, ...] = (Reuse(boundary=middle), Reuse(boundary=last, order=1), BlockReuse(blocks=(0, last)))
    rows = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 2, 1], [0, 0, 3, 2]])
    values = [0.9, 0.7, 0.4, 0.2]

    def generate(actions: Tensor, given: dict[str, Any] = inputs) -> tuple[list[list[Tensor]], Tensor]:
        loop = Loop(family, model, given, values, BATCH if given is inputs else 1)
        with apply_blockdance(loop, ReuseSchedule(actions, kinds), guidance_branches=1) as handle:
            return list(loop), handle.report().actions

    together, taken = generate(rows)
    if not layout.splits_rows(inputs):
        assert torch.equal(taken, torch.zeros_like(rows))
        return
    assert torch.equal(taken, rows)
    for image in range(BATCH):
        alone, _ = generate(rows[image : image + 1], inputs_of(image, inputs, layout))
        for one, batch in zip(alone, together, strict=True):
            for a, b in zip(one, batch, strict=True):
                torch.testing.assert_close(row(b, image), row(a, 0, batch=1), rtol=1e-4, atol=1e-4)
    full, _ = generate(torch.zeros_like(rows))
    for image in range(1, BATCH):
        assert not torch.allclose(row(together[2][0], image), row(full[2][0], image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["Lumina2Transformer2DModel", "ZImageTransformer2DModel"])
def test_rows_of_different_lengths_can_run_apart(name: str) -> None:
    """These models pad to the longest caption of a call: the longest one reuses, then the shorter ones."""
    family = BY_NAME[name]
    model, inputs = family.build(), family.make_inputs(BATCH)
    if name == "ZImageTransformer2DModel":
        inputs["cap_feats"] = [torch.randn(length, inputs["cap_feats"][0].shape[1]) for length in (40, 5, 70, 3)]
    else:
        lengths = torch.tensor([[3], [1], [4], [2]])
        inputs["encoder_attention_mask"] = torch.arange(inputs["encoder_hidden_states"].shape[1]) < lengths
    rows = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
    values = [0.9, 0.7, 0.4, 0.2]

    def generate(actions: Tensor) -> list[Tensor]:
        loop = Loop(family, model, inputs, values)
        with apply_blockdance(loop, ReuseSchedule(actions, (Reuse(boundary=2),)), guidance_branches=1):
            return [output[0] for output in loop]

    together = generate(rows)
    for image in range(BATCH):
        alone = generate(rows[image : image + 1])
        for one, batch in zip(alone, together, strict=True):
            torch.testing.assert_close(batch[image], one[image], rtol=1e-4, atol=1e-4)


def row(output: Tensor, image: int, batch: int = BATCH) -> Tensor:
    return output.unflatten(0, (batch, -1))[image]


def inputs_of(image: int, inputs: dict[str, Any], layout: BlockLayout) -> dict[str, Any]:
    """What the model is given for one image of the batch alone."""

    def of(name: str, value: Any) -> Any:
        if name in layout.shared_arguments:
            return value
        if name in layout.image_lists and value is not None:
            return [value[image]] if len(value) == BATCH else value
        dim = layout.batch_dims.get(name, 0)
        return tree_map(lambda leaf: leaf.narrow(dim, image, 1) if is_split(leaf, dim) else leaf, value)

    def is_split(leaf: Any, dim: int) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > dim and leaf.shape[dim] == BATCH

    return {name: of(name, value) for name, value in inputs.items()}


def test_reported_macs_are_those_that_a_counter_sees(family: Family) -> None:
    model, inputs = family.build(), family.make_inputs(BATCH)
    plain = call(family.build(), family, inputs, 0.9)
    middle = boundaries_of(model)[len(boundaries_of(model)) // 2]
    schedule = ReuseSchedule(torch.tensor([[0, 1]]), (Reuse(boundary=middle),))
    counter = FlopCounterMode(display=False)
    model.requires_grad_(False)

    def generate(given: dict[str, Any], rows: int) -> BlockDanceReport:
        loop = Loop(family, model, given, [0.9, 0.5], rows)
        with apply_blockdance(loop, schedule, guidance_branches=1) as handle:
            if family.name in FLEX_ATTENTION:
                list(loop)
            else:
                with sdpa_kernel(SDPBackend.MATH), counter:
                    list(loop)
            return handle.report()

    report = generate(inputs, BATCH)
    flops = counter.get_total_flops()
    if family.name in COUNTED_ALONE:
        layout = find_layout(model)
        flops = 0
        for image in range(BATCH):
            generate(inputs_of(image, inputs, layout), 1)
            flops += counter.get_total_flops()
    assert report.cache_bytes == 0
    assert (report.macs_computed < report.macs_full).all()
    if family.name not in FLEX_ATTENTION:
        assert report.macs_computed.sum().item() == pytest.approx(flops / 2, rel=1e-3)
    assert_equal(call(model, family, inputs, 0.9), plain, rtol=1e-3, atol=1e-5)  # counting leaves nothing behind in the model
