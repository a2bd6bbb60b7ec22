"""What BlockDance costs: seconds with it over seconds without where every step computes, and Python's share on a stub.

python benchmarks/overhead.py
"""

import argparse
import cProfile
from collections.abc import Callable
from typing import Any

import torch
from model import Loop, add_model_arguments, add_timing_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockLayout,
    Plan,
    Reuse,
    ReuseSchedule,
    apply_blockdance,
    random_schedule,
    register_layout,
)


class Nothing(nn.Module):
    """A block that does nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class Stub(nn.Module):
    """A transformer whose blocks do nothing: what a step takes is Python's time."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, num_blocks: int = 28) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Nothing() for _ in range(num_blocks))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> tuple[Tensor]:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return (hidden_states,)


register_layout(Stub, BlockLayout(lists=("blocks",), joins_rows=lambda inputs: True))
_GENERATIONS = 4


def stub_table(batch: int, num_steps: int, repeats: int, clock: Callable[[], float]) -> Table:
    """Microseconds of Python that BlockDance adds to a call of the transformer: the quickest of the rounds, in turns.

    A plan is turned on for one generation and for several, so that what turning it on and off takes stands apart.
    """
    inputs = {"hidden_states": torch.randn(batch, 16, 8), "encoder_hidden_states": torch.randn(batch, 4, 8)}
    loop = Loop(Stub(), inputs, batch, num_steps)
    shallow, deep = Reuse(boundary=20), Reuse(boundary=26, order=1)
    generator = torch.Generator().manual_seed(0)
    mixed = random_schedule(batch, num_steps, 0.3 * num_steps, shallow, generator)
    actions = mixed.actions * torch.randint(1, 3, mixed.actions.shape, generator=generator)
    plans: dict[str, Plan] = {
        "uniform": BlockDanceConfig(),
        "mixed, one kind": mixed,
        "mixed, two kinds": ReuseSchedule(actions, (shallow, deep)),
    }
    functions: dict[str, Any] = {"plain": loop}
    for name, plan in plans.items():
        functions[name] = lambda plan=plan: _run(loop, plan, 1)
        functions[f"{name}, several"] = lambda plan=plan: _run(loop, plan, _GENERATIONS)
    quickest = {name: min(taken) * 1e6 for name, taken in interleave(functions, repeats, clock=clock).items()}
    calls = {name: count_calls(function) for name, function in functions.items()}
    plain = quickest["plain"] / num_steps
    table = Table(
        "plan", "added, µs a call", "of plain", "turning on and off, µs", "added functions a call",
        title=f"A stub of 28 blocks that do nothing, {batch} images: {plain:.0f} µs a call plain",
    )  # fmt: skip
    for name in plans:
        generation = (quickest[f"{name}, several"] - quickest[name]) / (_GENERATIONS - 1)
        added = generation / num_steps - plain
        functions_added = ((calls[f"{name}, several"] - calls[name]) / (_GENERATIONS - 1) - calls["plain"]) / num_steps
        on_and_off = quickest[name] - generation
        table.add_row(name, f"{added:.0f}", f"{added / plain:.2f}", f"{on_and_off:.0f}", f"{functions_added:.0f}")
    return table


def count_calls(function: Callable[[], object]) -> int:
    """How many functions are called, Python's and torch's: a figure that does not depend on what else the machine does."""
    profile = cProfile.Profile()
    profile.runcall(function)
    return sum(entry.callcount for entry in profile.getstats())  # type: ignore[attr-defined]


def _run(loop: Loop, plan: Plan, generations: int) -> None:
    with apply_blockdance(loop, plan, guidance_branches=1):
        for _ in range(generations):
            loop()


def main() -> None:
    """Prints a row per batch size, and one per plan on the stub."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_timing_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="none: the stub alone")
    options = parser.parse_args()
    table = Table("batch", "plain, ms a step", "ratio, median", "quartiles", title="All steps compute, outputs are cached")
    for batch in options.batches:
        loop = pixart_loop(options, batch)
        # a schedule with a kind of reuse that it never takes: the boundary is captured at every step
        boundary = round(len(loop.transformer.transformer_blocks) * 20 / 28)
        schedule = ReuseSchedule(torch.zeros(1, options.steps, dtype=torch.int64), (Reuse(boundary=boundary, order=1),))

        def computing(loop: Loop = loop, schedule: ReuseSchedule = schedule) -> None:
            with apply_blockdance(loop, schedule, guidance_branches=1):
                loop()

        seconds = interleave({"plain": loop, "computing": computing}, options.repeats, clock=options.clock)
        middle, low, high = ratio(seconds["computing"], seconds["plain"])
        step = sorted(seconds["plain"])[len(seconds["plain"]) // 2] / options.steps
        table.add_row(str(batch), f"{step * 1e3:.2f}", f"{middle:.4f}", f"{low:.4f} to {high:.4f}")
    console = Console()
    if options.batches:
        console.print(table)
    console.print(stub_table(16, options.steps, 4 * options.repeats, options.clock))


if __name__ == "__main__":
    main()
