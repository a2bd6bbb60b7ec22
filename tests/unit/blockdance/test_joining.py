"""A batch whose images take different actions runs in one call where rows can join one another between blocks."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from families import FAMILIES
from families.base import BATCH, Family, call
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

from blockdance import BlockReuse, Kind, Reuse, ReuseSchedule, apply_blockdance, find_layout
from blockdance.layouts import LAYOUTS, blocks_of, parameter_names

JOINING = [family for family in FAMILIES if LAYOUTS[family.name].joins_rows(family.make_inputs(BATCH))]
SD3 = next(family for family in FAMILIES if family.name == "SD3Transformer2DModel")
ACTIONS = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 2, 1, 0], [0, 0, 1, 2, 1]])
LEVELS = [0.9, 0.7, 0.4, 0.2, 0.1]


def generate(
    family: Family, model: nn.Module, inputs: dict[str, Any], kinds: tuple[Kind, ...], branches: int
) -> tuple[list[list[Tensor]], list[int]]:
    """Outputs of every step, and the rows of every call of the block after the first boundary."""
    rows = branches * len(ACTIONS)
    scheduler = SimpleNamespace(timesteps=torch.tensor(LEVELS), sigmas=torch.tensor(LEVELS), step_index=None)
    ran: list[int] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ran.append(len(args[0] if args else kwargs["hidden_states"]))

    hook = blocks_of(model, find_layout(model))[2].register_forward_pre_hook(note, with_kwargs=True)
    outputs = []
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    with apply_blockdance(pipeline, ReuseSchedule(ACTIONS, kinds), guidance_branches=branches) as handle:
        for step, level in enumerate(LEVELS):
            scheduler.step_index = step
            outputs.append(call(model, family, inputs, level, rows))
        assert torch.equal(handle.report().actions, ACTIONS)
    hook.remove()
    return outputs, ran


@pytest.mark.parametrize("family", JOINING, ids=lambda family: family.name)
@pytest.mark.parametrize(("branches", "orders"), [(1, (0, 1)), (2, (1, 0))])
def test_one_call_a_step_gives_what_a_call_for_every_action_gives(
    family: Family, branches: int, orders: tuple[Literal[0, 1], Literal[0, 1]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is what each image gets alone, as the conformance test has it."""
    model, inputs = family.build(), family.make_inputs(branches * BATCH)
    last = len(blocks_of(model, find_layout(model))) - 1
    kinds = (Reuse(boundary=1, order=orders[0]), Reuse(boundary=last, order=orders[1]))
    joined, ran = generate(family, model, inputs, kinds, branches)
    # counting MACs of images that cost differently calls the model for each, after the generation
    assert ran[: len(LEVELS)] == [rows * branches for rows in (4, 4, 3, 3, 4)]
    monkeypatch.setitem(LAYOUTS, family.name, replace(LAYOUTS[family.name], joins_rows=lambda inputs: False))
    apart, ran = generate(family, model, inputs, kinds, branches)
    # the block after the first boundary, action by action in the order of the images that take them first; one of the actions skips it
    assert ran[:8] == [rows * branches for rows in (4, 4, 1, 2, 2, 1, 2, 2)]
    for one, other in zip(joined, apart, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", JOINING, ids=lambda family: family.name)
def test_what_a_block_is_given_has_its_rows_first_or_is_known_to_have_none(family: Family) -> None:
    """So that nothing is taken for rows because its first size happens to be their number. What is one long is never taken for rows."""
    layout = LAYOUTS[family.name]
    shared = layout.shared_arguments if layout.shared_block_arguments is None else layout.shared_block_arguments
    few, many = given_to_blocks(family, 4), given_to_blocks(family, 5)
    assert few.keys() == many.keys()
    for place, shape in few.items():
        other, name = many[place], place[1]
        if name in shared:
            assert shape == other, name
        elif shape:
            assert (shape[0], other[0]) in ((4, 5), (1, 1)), name


def given_to_blocks(family: Family, rows: int) -> dict[tuple[int, str, str], tuple[int, ...]]:
    """Shapes of the tensors that every block is given, by block, argument and place in it."""
    model, shapes = family.build(), {}

    def note(position: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, argument in (dict(zip(parameter_names(block), args, strict=False)) | kwargs).items():
            for path, leaf in tree_leaves_with_path(argument):
                if isinstance(leaf, Tensor):
                    shapes[position, name, keystr(path)] = tuple(leaf.shape)

    for position, block in enumerate(blocks_of(model, find_layout(model))):
        block.register_forward_pre_hook(partial(note, position), with_kwargs=True)
    call(model, family, family.make_inputs(rows), 0.5, rows)
    return shapes


@pytest.mark.parametrize("reason", ["a ControlNet", "a kind that skips single blocks"])
def test_where_rows_cannot_join_every_action_has_a_call(reason: str) -> None:
    model, inputs = SD3.build(), SD3.make_inputs(BATCH)
    kinds: tuple[Kind, ...] = (Reuse(boundary=1), Reuse(boundary=1, order=1))
    if reason == "a ControlNet":
        block = blocks_of(model, find_layout(model))[0]
        given: list[Tensor] = []
        hook = block.register_forward_pre_hook(lambda *call: given.append(call[2]["hidden_states"]), with_kwargs=True)
        call(model, SD3, inputs, 0.5)
        hook.remove()
        inputs = inputs | {"block_controlnet_hidden_states": [torch.randn_like(given[0])]}
    else:
        kinds = (Reuse(boundary=1), BlockReuse(blocks=(0,)))
    _, ran = generate(SD3, model, inputs, kinds, 1)
    assert ran[:10] == [4, 4, 1, 2, 1, 2, 1, 1, 2, 2]
