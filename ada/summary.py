"""What a training run shows at its end: a table, pictures, and where the policy lies."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ada.module import AdaModule

COLUMNS = {"reward": "reward", "quality": "quality vs reference", "compute_saved": "compute saved"}


def print_summary(module: AdaModule, output: Path, minutes: float) -> None:
    """Prints how the validation reward rose and what was written where.

    Args:
        module: the trained module, with its validation history.
        output: folder of the run.
        minutes: how long this call trained.
    """
    console = Console()
    table = Table(title="Greedy decisions on held-out prompts", title_justify="left")
    table.add_column("rollouts", justify="right")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    history = module.validation_history
    stride = max(1, len(history) // 10)
    for row in [*history[:-1:stride], *history[-1:]]:
        table.add_row(
            f"{row['rollouts']:.0f}", f"{row['reward']:+.4f}", f"{row['quality']:+.4f}", f"{row['compute_saved']:.1%}"
        )
    console.print(table)
    if history:
        gained = history[-1]["reward"] - history[0]["reward"]
        console.print(
            f"Validation reward {'rose' if gained > 0 else 'fell'} by {abs(gained):.4f}; this run trained for {minutes:.1f} minutes."
        )
    console.print(
        f"policy      {output / 'policy'}\npictures    {output / 'pictures'}\nTensorBoard tensorboard --logdir {output}",
        highlight=False,
    )
    console.print(f"Compare it with everything else: python evaluate.py --policy {output / 'policy'}", highlight=False)
