"""Inputs that stay the same are gathered once for every group of rows, and never where it would change what the model gets."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import build_pixart
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockdance import Reuse, ReuseSchedule, apply_blockdance
from blockdance.gathered import GatheredInputs
from blockdance.pieces import RowSet

ROWS = RowSet([0, 2, 3], 6)


def take_at_every_call(tensors: list[Tensor], rows: list[RowSet]) -> list[Tensor]:
    inputs, taken = GatheredInputs(), []
    for tensor, some in zip(tensors, rows, strict=True):
        inputs.next_call()
        taken.append(inputs.take(some, tensor, 0))
        assert torch.equal(taken[-1], tensor[list(some.rows)])
    return taken


def test_a_constant_is_gathered_when_it_comes_again_and_kept_from_then_on() -> None:
    constant = torch.randn(6, 2)
    first, *later = take_at_every_call([constant] * 4, [ROWS] * 4)
    assert first is not later[0]
    assert later[0] is later[1] is later[2]


def test_the_groups_of_two_steps_are_kept_and_no_more() -> None:
    constant = torch.randn(6, 2)
    groups = [RowSet(rows, 6) for rows in ([0, 2, 3], [1, 4, 5], [0, 3, 5], [1, 2, 4])]
    taken = take_at_every_call([constant] * 14, [*groups, *groups, *groups, RowSet([0, 1, 4], 6), groups[0]])
    assert all(one is other for one, other in zip(taken[4:8], taken[8:12], strict=True))
    assert taken[13] is not taken[8]


@pytest.mark.parametrize("change", [lambda constant, taken: constant.add_(1), lambda constant, taken: taken.add_(1)])
def test_what_was_written_into_is_gathered_anew(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    constant, inputs = torch.randn(6, 2), GatheredInputs()
    for _ in range(5):
        inputs.next_call()
        taken = inputs.take(ROWS, constant, 0)
        assert torch.equal(taken, constant[[0, 2, 3]])
        change(constant, taken)


def test_latents_are_not_kept_and_their_memory_may_come_again() -> None:
    inputs = GatheredInputs()
    for value in range(6):
        inputs.next_call()
        assert torch.equal(inputs.take(ROWS, torch.full((6, 2), float(value)), 0), torch.full((3, 2), float(value)))
        assert not inputs._sources


def test_inference_tensors_are_gathered_at_every_call() -> None:
    with torch.inference_mode():
        taken = take_at_every_call([torch.randn(6, 2)] * 3, [ROWS] * 3)
    assert taken[1] is not taken[2]


def test_ordinary_tensors_are_gathered_in_inference_mode() -> None:
    """As embeddings that were made before it: what is gathered of them is an inference tensor, whose version nobody can ask for."""
    constant = torch.randn(6, 2)
    with torch.inference_mode():
        taken = take_at_every_call([constant] * 3, [ROWS] * 3)
    assert all(torch.equal(one, taken[0]) for one in taken)


class Gathers(TorchDispatchMode):
    """Counts joined tensors of a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        self.count += function is torch.ops.aten.cat.default and output.shape[-1] == self.width
        return output


def test_prompt_embeddings_are_not_gathered_at_each_step() -> None:
    model, num_steps = build_pixart(), 8
    text = torch.randn(4, 5, 12)  # nothing else is 12 wide
    even = [[0, 0, 1, 1, 1, 1, 1, 1], [0] * num_steps]
    scheduler = SimpleNamespace(timesteps=torch.linspace(1, 0.1, num_steps), step_index=0)
    plan = ReuseSchedule(torch.tensor([even[image % 2] for image in range(4)]), (Reuse(boundary=1),))
    with (
        # a limit of rows keeps every action in a call of its own
        apply_blockdance(SimpleNamespace(transformer=model, scheduler=scheduler), plan, guidance_branches=1, max_rows=4),
        torch.no_grad(),
        Gathers(12) as gathers,
    ):
        for step in range(num_steps):
            scheduler.step_index = step
            timestep = scheduler.timesteps[step].expand(4)
            model(torch.randn(4, 4, 8, 8), encoder_hidden_states=text, timestep=timestep, return_dict=False)
    assert gathers.count == 2 * 2  # two groups: when it is new, and when it comes again
