"""Does saved compute turn into saved time? Time saved over MACs saved, and mixed actions in one batch.

python benchmarks/realised.py
"""

import argparse
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from model import Loop, add_model_arguments, add_timing_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio
from torch.utils._python_dispatch import TorchDispatchMode

from blockdance import BlockDanceConfig, Plan, Reuse, ReuseSchedule, apply_blockdance, random_schedule


def main() -> None:
    """Prints a row per plan and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_timing_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="none: mixed actions alone")
    parser.add_argument("--mixed-batch", type=int, default=16, help="images of the batch with mixed actions; 0 leaves it out")
    options = parser.parse_args()
    uniform = Table("batch", "plan", "MACs saved", "time saved", "time / MACs saved", title="BlockDance-N, all images alike")
    for batch in options.batches:
        loop = pixart_loop(options, batch)
        plans: dict[str, Plan] = {f"N = {interval}": BlockDanceConfig(interval=interval) for interval in (2, 3, 4)}
        # what lies outside the blocks takes a larger share of the time than of the MACs: this shows how much larger
        every_block = Reuse(boundary=len(loop.transformer.transformer_blocks) - 1)
        all_but_one = torch.tensor([[0] + [1] * (options.steps - 1)])
        plans["no block after step 1"] = ReuseSchedule(all_but_one, (every_block,))
        for name, (macs, middle, low, high) in compare(loop, plans, options.repeats, clock=options.clock).items():
            share = f"{(1 - middle) / macs:.3f} ({(1 - high) / macs:.3f} to {(1 - low) / macs:.3f})"
            uniform.add_row(str(batch), name, f"{macs:.1%}", f"{1 - middle:.1%}", share)
    console = Console()
    if options.batches:
        console.print(uniform)
    if options.mixed_batch:
        console.print(mixed_table(options))


def mixed_table(options: argparse.Namespace) -> Table:
    """A batch whose images all take schedules of their own, against the time that its MACs stand for, and the kernels that it launches:
    in one call a step, and in one for every action, as where rows cannot join one another between blocks."""
    batch = options.mixed_batch
    table = Table(
        "schedules", "calls", "MACs left", "time left", "time / MACs left", "kernels / plain",
        title=f"Mixed actions in a batch of {batch}",
    )  # fmt: skip
    loop = pixart_loop(options, batch)
    blocks = len(loop.transformer.transformer_blocks)
    generator = torch.Generator().manual_seed(0)
    shallow, deep = Reuse(boundary=round(blocks * 20 / 28)), Reuse(boundary=blocks - 1, order=1)
    one = random_schedule(batch, options.steps, 0.3 * options.steps, shallow, generator)
    several = random_schedule(batch, options.steps, 0.3 * options.steps, shallow, generator).actions
    several = several * torch.randint(1, 3, several.shape, generator=generator)
    kinds: dict[str, Plan] = {"one kind of reuse": one, "two kinds of reuse": ReuseSchedule(several, (shallow, deep))}
    plans = {f"{name}, {calls}": plan for name, plan in kinds.items() for calls in ("one a step", "one an action")}
    apart = [name for name in plans if name.endswith("action")]
    timed = compare(loop, plans, options.repeats, clock=options.clock, apart=apart)
    plain = count_kernels(loop)
    for name, (macs, middle, low, high) in timed.items():
        left = 1 - macs
        share = f"{middle / left:.3f} ({low / left:.3f} to {high / left:.3f})"
        with apply_blockdance(loop, plans[name], guidance_branches=1, max_rows=batch if name in apart else None):
            kernels = count_kernels(loop)
        table.add_row(*name.split(", "), f"{left:.1%}", f"{middle:.1%}", share, f"{kernels / plain:.2f}")
    return table


class _Kernels(TorchDispatchMode):
    """Counts operators that compute or copy something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **kwargs or {})


def count_kernels(loop: Loop) -> int:
    """How many kernels a generation launches."""
    with _Kernels() as kernels:
        loop()
    return kernels.count


def compare(
    loop: Loop,
    plans: dict[str, Plan],
    repeats: int,
    seconds: dict[str, list[float]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    apart: Collection[str] = (),
) -> dict[str, tuple[float, float, float, float]]:
    """For every plan: the share of MACs saved, and the time over plain's, median and quartiles; `seconds` takes the single times. The
    plans `apart` run every action in a call of its own, as a limit of rows makes them."""
    rows = len(loop.inputs["hidden_states"])
    saved: dict[str, float] = {}

    def run(name: str, plan: Plan) -> None:
        with apply_blockdance(loop, plan, guidance_branches=1, max_rows=rows if name in apart else None) as handle:
            loop()
            if name not in saved:
                saved[name] = float(handle.report().compute_saved.mean())

    functions = {"plain": loop} | {name: lambda name=name, plan=plan: run(name, plan) for name, plan in plans.items()}
    timed = interleave(functions, repeats, clock=clock)
    if seconds is not None:
        seconds |= timed
    return {name: (saved[name], *ratio(timed[name], timed["plain"])) for name in plans}


if __name__ == "__main__":
    main()
