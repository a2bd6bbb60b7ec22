"""How often would a GPU wait for BlockDance? Values read back and numbers sent, per call of the transformer.

python benchmarks/syncs.py

Counted on any machine: what the model does itself is subtracted.
"""

import argparse

from model import add_model_arguments, pixart_loop
from rich.console import Console
from rich.table import Table
from sync_counting import SCHEDULERS, SchedulerLoop, count, plans


def main() -> None:
    """Prints a row per scheduler and plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    base = pixart_loop(options, options.batch)
    inputs = {name: value for name, value in base.inputs.items() if name != "hidden_states"}
    boundary = round(len(base.transformer.transformer_blocks) * 20 / 28)
    table = Table("scheduler", "plan", "first call", "all later calls", title="Synchronisations that BlockDance adds")
    for scheduler in SCHEDULERS:
        for name, plan_of in plans(options.batch, boundary).items():
            loop = SchedulerLoop(base.transformer, inputs, base.inputs["hidden_states"], scheduler(), options.steps)
            table.add_row(scheduler.__name__, name, *map(str, count(loop, plan_of)))
    Console().print(table)


if __name__ == "__main__":
    main()
