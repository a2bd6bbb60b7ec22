"""Does saved compute turn into saved time? Time saved over MACs saved, and mixed actions in one batch.

python benchmarks/realised.py
"""

import argparse
import time
from collections.abc import Callable

import torch
from model import Loop, add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio

from blockdance import BlockDanceConfig, Plan, Reuse, ReuseSchedule, apply_blockdance, random_schedule


def main() -> None:
    """Prints a row per plan and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
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
    console.print(uniform)
    if options.mixed_batch:
        console.print(mixed_table(options))


def mixed_table(options: argparse.Namespace) -> Table:
    """A batch whose images all take schedules of their own, against the time that its MACs stand for."""
    batch = options.mixed_batch
    table = Table("schedules", "MACs left", "time left", "time / MACs left", title=f"Mixed actions in a batch of {batch}")
    loop = pixart_loop(options, batch)
    blocks = len(loop.transformer.transformer_blocks)
    generator = torch.Generator().manual_seed(0)
    shallow, deep = Reuse(boundary=round(blocks * 20 / 28)), Reuse(boundary=blocks - 1, order=1)
    one = random_schedule(batch, options.steps, 0.3 * options.steps, shallow, generator)
    several = random_schedule(batch, options.steps, 0.3 * options.steps, shallow, generator).actions
    several = several * torch.randint(1, 3, several.shape, generator=generator)
    plans: dict[str, Plan] = {
        "one kind of reuse": one,
        "two kinds of reuse": ReuseSchedule(several, (shallow, deep)),
    }
    for name, (macs, middle, low, high) in compare(loop, plans, options.repeats, clock=options.clock).items():
        left = 1 - macs
        table.add_row(name, f"{left:.1%}", f"{middle:.1%}", f"{middle / left:.3f} ({low / left:.3f} to {high / left:.3f})")
    return table


def compare(
    loop: Loop,
    plans: dict[str, Plan],
    repeats: int,
    seconds: dict[str, list[float]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, float, float, float]]:
    """For every plan: the share of MACs saved, and the time over plain's, median and quartiles; `seconds` takes the single times."""
    saved: dict[str, float] = {}

    def run(name: str, plan: Plan) -> None:
        with apply_blockdance(loop, plan, guidance_branches=1) as handle:
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
