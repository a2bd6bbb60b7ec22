"""What BlockDance costs when every step computes: seconds with it over seconds without.

python benchmarks/overhead.py
"""

import argparse

import torch
from model import Loop, add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio

from blockdance import Reuse, ReuseSchedule, apply_blockdance


def main() -> None:
    """Prints a row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
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

        seconds = interleave({"plain": loop, "computing": computing}, options.repeats)
        middle, low, high = ratio(seconds["computing"], seconds["plain"])
        step = sorted(seconds["plain"])[len(seconds["plain"]) // 2] / options.steps
        table.add_row(str(batch), f"{step * 1e3:.2f}", f"{middle:.4f}", f"{low:.4f} to {high:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
