"""Linear layers by MKL and by oneDNN on this processor: what `ada.processor` gains, or would gain, in one core.

python benchmarks/linear.py
python benchmarks/linear.py --model random --blocks 4

Whole generations are the transformer's calls of one, without its pipeline.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from model import add_model_arguments, add_timing_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio
from torch.nn import functional as F

from ada.processor import is_held_back, onednn_linear, processor_name

SHAPES = ((2, 192, 192), (256, 192, 768), (1024, 512, 2048), (4096, 1152, 4608))
"""Rows, width before and after; the first are too few products for oneDNN, which leaves them to MKL."""
ONE_TIMING = 2e9
"""Products of one timing of a layer."""


@torch.inference_mode()
def by_onednn(run: Callable[[], object]) -> object:
    """A run with its linear layers by oneDNN, whoever made the processor."""
    with patch.object(F, "linear", onednn_linear):
        return run()


@torch.inference_mode()
def repeated(rows: int, width: int, wider: int) -> None:
    """A layer, again and again, for so long that it can be timed."""
    inputs, weight, bias = torch.randn(rows, width), torch.randn(wider, width), torch.randn(wider)
    for _ in range(max(1, round(ONE_TIMING / (rows * width * wider)))):
        F.linear(inputs, weight, bias)


def main() -> None:
    """Prints a row per layer, and one for a whole generation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_timing_arguments(parser)
    parser.add_argument("--batch", type=int, default=16, help="rows of the transformer's calls: images times guidance branches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Callable[[], object]] = {
        f"layer, {rows} × {width} → {wider}": partial(repeated, rows, width, wider) for rows, width, wider in SHAPES
    }
    runs["generation"] = pixart_loop(options, options.batch)
    held = "which MKL holds back: rollouts run by oneDNN" if is_held_back() else "rollouts run by torch's own choice"
    table = Table(
        "what",
        "MKL, s",
        "oneDNN, s",
        "MKL / oneDNN (quartiles)",
        title=f"Linear layers on one core of {processor_name()}, {held}",
    )
    for name, run in runs.items():
        seconds = interleave({"MKL": run, "oneDNN": partial(by_onednn, run)}, options.repeats, clock=options.clock)
        middle, low, high = ratio(seconds["MKL"], seconds["oneDNN"])
        medians = [f"{statistics.median(seconds[kind]):.3f}" for kind in ("MKL", "oneDNN")]
        table.add_row(name, *medians, f"{middle:.2f} ({low:.2f} … {high:.2f})")
    Console().print(table)


if __name__ == "__main__":
    main()
