"""What the cache takes: bytes by the report, by hand and by the process, and that they are freed.

python benchmarks/memory.py --model random --size 64
"""

import argparse
import threading
import time
from pathlib import Path

import torch
from model import Loop, add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table

from blockdance import BlockDanceConfig, apply_blockdance


def main() -> None:
    """Prints a row per batch size and order of reuse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    table = Table(
        "batch", "order", "by hand, MiB", "peak by the report", "peak over plain", "left after the generation", title="Cache"
    )
    for batch in options.batches:
        loop = pixart_loop(options, batch)
        config = loop.transformer.config
        tokens = (config.sample_size // config.patch_size) ** 2
        width = config.num_attention_heads * config.attention_head_dim
        loop()
        plain = peak_memory(loop)
        for order in (0, 1):
            by_hand = batch * tokens * width * loop.transformer.dtype.itemsize * (order + 1)
            with apply_blockdance(loop, BlockDanceConfig(order=order), guidance_branches=1) as handle:
                peak = peak_memory(loop)
                report = handle.report()
            table.add_row(
                str(batch), str(order), *(f"{value / 2**20:.2f}" for value in (
                    by_hand, report.peak_cache_bytes, peak - plain, report.cache_bytes,
                )),
            )  # fmt: skip
    Console().print(table)


def peak_memory(loop: Loop) -> int:
    """Most bytes that one generation holds: of the device where there is one, else of the process, seen every millisecond."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        loop()
        return torch.cuda.max_memory_allocated()
    running, peak = True, 0

    def watch() -> None:
        nonlocal peak
        while running:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            peak = max(peak, pages * 4096)
            time.sleep(1e-3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loop()
    running = False
    watcher.join()
    return peak


if __name__ == "__main__":
    main()
