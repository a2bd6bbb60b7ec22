"""The executor's calls: twins run once, caches hold copies of their own, and a new kind of reuse needs one class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from conftest import build_pixart
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from blockdance import BlockLayout, BlockReuse, Kind, Reuse, ReuseExecutor, ReuseSchedule, apply_blockdance, find_layout
from blockdance.kinds import Keep, StandIn
from blockdance.kinds.views import Pass
from blockdance.layouts import BlockStack

KINDS = (Reuse(boundary=1), Reuse(boundary=2, order=1, weight=0.5), BlockReuse(blocks=(0, 2)))
TIMESTEPS = [0.9, 0.7, 0.4, 0.2, 0.1]
# two prompts of three rows each, which part one after the other; the last two meet no more, though they end alike
ACTIONS = torch.tensor([[0, 0, 1, 0, 2], [0, 0, 1, 0, 2], [0, 0, 2, 1, 0], [0, 0, 0, 3, 2], [0, 0, 0, 3, 1], [0, 1, 0, 3, 2]])
PROMPTS = [0, 0, 0, 3, 3, 3]


def twins_before(step: int) -> list[int]:
    """For each row the first one of its prompt that took the same actions so far."""
    histories = [(prompt, *actions[:step].tolist()) for prompt, actions in zip(PROMPTS, ACTIONS, strict=True)]
    return [histories.index(history) for history in histories]


def run(model: nn.Module, branches: int, known: bool) -> tuple[list[Tensor], list[int]]:
    """Outputs of every step, and how many rows the model was given."""
    executor = ReuseExecutor(model, find_layout(model), KINDS)
    state = executor.new_state(len(PROMPTS), branches)
    seen: list[int] = []

    def forward(**inputs: Any) -> Tensor:
        seen.append(len(inputs["hidden_states"]))
        output: Tensor = model(**inputs, return_dict=False)[0]
        return output

    torch.manual_seed(0)
    latents, text = torch.randn(6, 4, 8, 8), torch.randn(6 * branches, 5, 12)
    rows = [branch * 6 + prompt for branch in range(branches) for prompt in PROMPTS]
    latents, text = latents[PROMPTS].repeat(branches, 1, 1, 1), text[rows]
    outputs, given = [], []
    for step, timestep in enumerate(TIMESTEPS):
        inputs = {
            "hidden_states": latents,
            "encoder_hidden_states": text,
            "encoder_attention_mask": torch.ones(len(rows), 5),
            "timestep": torch.full((len(rows),), timestep),
        }
        twins = twins_before(step) if known else None
        with torch.no_grad():
            outputs.append(executor.run(forward, (), inputs, state, ACTIONS[:, step].tolist(), timestep, twins=twins))
        latents = latents - 0.1 * outputs[-1][:, :4]  # twins stay twins only as long as their outputs are equal
        given.append(sum(seen))
        seen.clear()
    return outputs, given


@pytest.mark.parametrize("branches", [1, 2])
def test_twins_run_once_and_part_with_the_past_of_each(branches: int) -> None:
    model = build_pixart()
    every, all_rows = run(model, branches, known=False)
    once, fewer = run(model, branches, known=True)
    assert all_rows == [6 * branches] * 5
    assert fewer == [2 * branches, 3 * branches, 4 * branches, 4 * branches, 5 * branches]
    for one, other in zip(every, once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Adds(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount, dtype=torch.float64), requires_grad=False)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states + self.amount * timestep[:, None]


class Headless(nn.Module):
    """Gives out what its last block gives; the digits of the sum tell which blocks ran when."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Adds(10.0**index) for index in range(3))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


LAYOUT = BlockLayout(lists=("blocks",))


def toy_outputs(
    kinds: Sequence[Kind], actions: Sequence[Sequence[int]], twins: Sequence[int] | None = None, layout: BlockLayout = LAYOUT
) -> list[Tensor]:
    model = Headless()
    executor = ReuseExecutor(model, layout, kinds)
    state = executor.new_state(len(actions), 1)
    zeros = torch.zeros(len(actions), 1, dtype=torch.float64)
    outputs = []
    for step, now in enumerate(zip(*actions, strict=True)):
        level = float(len(actions[0]) - step)
        inputs = {"hidden_states": zeros, "timestep": torch.full((len(actions),), level)}
        outputs.append(executor.run(model, (), inputs, state, now, level, twins=twins))
    return outputs


def test_outputs_given_out_stay_as_they_are_when_the_cache_is_written_over() -> None:
    """Where no block runs a model without a head gives out what was kept."""
    outputs = toy_outputs([Reuse(boundary=2)], [[0, 1, 0, 1]])
    assert [float(output) for output in outputs] == [444, 444, 222, 222]


JOINING = replace(LAYOUT, joins_rows=lambda inputs: True)


def test_outputs_of_rows_that_joined_stay_as_they_are_too() -> None:
    outputs = toy_outputs([Reuse(boundary=2)], [[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]], layout=JOINING)
    assert [output.flatten().tolist() for output in outputs] == [[444] * 3, [444, 333, 333], [222, 333, 333], [222, 111, 333]]


class Joins(TorchDispatchMode):
    """Counts tensors that are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.cat.default
        return function(*args, **kwargs or {})


def test_rows_that_join_those_that_were_kept_with_them_are_put_together_by_nothing() -> None:
    """Rows that compute are gathered once for all blocks, which makes a tensor of each argument; behind the boundary the batch is what is
    kept, unless a row is extrapolated: from two outputs, gathered like the arguments."""
    actions = [[0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    for kind, tensors in ((Reuse(boundary=1), 2), (Reuse(boundary=1, order=1), 5)):
        with Joins() as joins:
            outputs = toy_outputs([kind], actions, layout=JOINING)
        assert joins.count == tensors
        # blocks 0 and 1 at level 2; as levels are even, extrapolated they are level 1's
        reused = 22.0 if kind.order == 0 else 11.0
        assert outputs[2].flatten().tolist() == [100 + reused, 111, 100 + reused, 111]


def test_a_call_is_bit_equal_with_and_without_twins() -> None:
    actions = [[0, 0, 1, 2, 0, 1], [0, 0, 1, 2, 0, 1], [0, 0, 1, 2, 0, 1]]
    kinds = [Reuse(boundary=0), Reuse(boundary=1, order=1)]
    for one, other in zip(toy_outputs(kinds, actions), toy_outputs(kinds, actions, [0, 0, 0]), strict=True):
        assert torch.equal(one, other)


@dataclass(frozen=True)
class LeaveOut:
    """A technique of somebody else's: it leaves blocks out and needs nothing of the past."""

    blocks: tuple[int, ...]
    order: int = 0

    @property
    def skipped_blocks(self) -> tuple[int, ...]:
        return self.blocks

    def keeps(self, stack: BlockStack) -> tuple[Keep, ...]:
        return ()

    def stand_in(self, position: int, stack: BlockStack) -> StandIn | None:
        return StandIn(Pass) if position in self.blocks else None

    def slope(self, sigma: float, newest: float, previous: float) -> float:
        return 0.0


def test_a_new_kind_of_reuse_is_one_class() -> None:
    outputs = toy_outputs([LeaveOut((1,)), Reuse(boundary=1)], [[0, 1, 2], [0, 2, 1]])
    assert [output.flatten().tolist() for output in outputs] == [[333, 333], [202, 233], [133, 101]]


def test_a_new_kind_counts_in_the_report() -> None:
    model = build_pixart()
    schedule = ReuseSchedule(torch.tensor([[0, 1]]), (LeaveOut((0, 2)),))
    with apply_blockdance(model, schedule, num_inference_steps=2) as handle, torch.no_grad():
        for timestep in (0.9, 0.5):
            model(torch.randn(1, 4, 8, 8), encoder_hidden_states=torch.randn(1, 5, 12), timestep=torch.full((1,), timestep))
        cost = handle.cost()
        saved = cost.blocks[0] + cost.blocks[2]
        assert handle.report().macs_computed.item() == 2 * cost.total - saved


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("rows", [[[0, 0, 1, 0, 0, 1]], [[0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]], ids=["uniform", "mixed"])
def test_the_reported_peak_is_what_the_allocator_sees(order: Literal[0, 1], rows: list[list[int]]) -> None:
    """One output per boundary and order, written in place: no old one lives beside a new one."""
    model, steps = build_pixart(), len(rows[0])
    inputs = {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "timestep": torch.tensor([0.5, 0.5]),
    }

    def peak() -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.no_grad():
            for step in range(steps):
                scheduler.step_index = step
                model(**inputs)
        events = profiler.profiler.kineto_results.events()
        return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))

    scheduler = SimpleNamespace(timesteps=torch.linspace(1, 0.1, steps), step_index=0)
    plain = peak()
    plan = ReuseSchedule(torch.tensor(rows), (Reuse(boundary=1, order=order),))
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    with apply_blockdance(pipeline, plan, guidance_branches=1) as handle:
        held = peak() - plain
        report = handle.report()
    one_output = 2 * 16**2 * 16 * 4
    assert report.peak_cache_bytes == (order + 1) * one_output
    assert held == pytest.approx(report.peak_cache_bytes, abs=0.1 * one_output)


def test_extrapolation_equals_hooks_that_replace_the_output_of_every_image() -> None:
    """The oracle: the plain model on one image, a hook that puts o₁ + w·(σ − σ₁)/(σ₁ − σ₀)·(o₁ − o₀) in the place of the boundary's."""
    model, weight, levels = build_pixart(), 0.7, [0.9, 0.75, 0.4, 0.3, 0.1]
    rows = torch.tensor([[0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 0]])
    latents, text = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 12)

    def run(images: slice) -> list[Tensor]:
        outputs = []
        for step, level in enumerate(levels):
            scheduler.step_index = step
            some = latents[images] * level
            timesteps = torch.full((len(some),), level)
            with torch.no_grad():
                outputs.append(model(some, encoder_hidden_states=text[images], timestep=timesteps, return_dict=False)[0])
        return outputs

    scheduler = SimpleNamespace(timesteps=torch.tensor(levels), sigmas=torch.tensor(levels), step_index=0)
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    with apply_blockdance(pipeline, ReuseSchedule(rows, (Reuse(boundary=1, order=1, weight=weight),)), guidance_branches=1):
        together = run(slice(None))
    for image in range(3):
        computed: list[tuple[float, Tensor]] = []

        def replace(block: nn.Module, args: Any, output: Tensor, image: int = image, computed: Any = computed) -> Tensor:
            step = scheduler.step_index
            if rows[image, step] == 0:
                computed.append((levels[step], output))
                return output
            (old_level, old), (level, new) = computed[-2:]
            return new + weight * (levels[step] - level) / (level - old_level) * (new - old)

        hook = model.transformer_blocks[1].register_forward_hook(replace)
        alone = run(slice(image, image + 1))
        hook.remove()
        for one, batch in zip(alone, together, strict=True):
            torch.testing.assert_close(batch[image], one[0], rtol=1e-4, atol=1e-5)
