"""What the cache takes: bytes by hand, by the report and by the allocator, and that they are freed.

python benchmarks/memory.py --model random --size 64
"""

import argparse

from model import Loop, add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table

from ada.evaluation.measure.counting import weighed
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
    """Most bytes that one generation holds at once, above what is held before: weights are not in it."""
    return weighed(loop.transformer.device, loop)[1]


if __name__ == "__main__":
    main()
