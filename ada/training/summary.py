"""What a training run says at its end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ada.training.outcome import LEVELS, Outcome

WIDTH = 132
FEWEST_CAPTIONS, USUAL_CAPTIONS = 20, 240


def print_outcome(outcome: Outcome, num_training_cases: int, minutes: float) -> None:
    """Prints the closing table: is the policy better than what needs no policy?"""
    console = _console()
    crossed = (
        f", each decided by the one of {outcome.num_policies} policies that did not see it" if outcome.num_policies > 1 else ""
    )
    table = Table(
        title=f"Held-out captions: {outcome.num_cases} images{crossed}; damage is d/(d + τ), 0 to 1, lower is better",
        title_justify="left",
    )
    heads = (
        "compute saved",
        "policy",
        "mixture of static",
        "oracle",
        "advantage, 95 %",
        "gap closed",
        "visibly changed",
        "verdict",
    )
    for head in heads:
        table.add_column(head, justify="right")
    colours = {"better": "green", "level": "yellow", "worse": "red"}
    for level in outcome.levels:
        mean, low, high = level.advantage
        table.add_row(
            f"{level.saved:.0%}", f"{level.policy:.4f}", f"{level.mixture:.4f}", f"{level.oracle:.4f}",
            f"{mean:+.4f} ({low:+.4f} … {high:+.4f})", f"{level.gap_closed:.0%}",
            f"{level.changed_policy:.1%}, mixture {level.changed_mixture:.1%}",
            f"[{colours[level.verdict]}]{level.verdict}[/]",
        )  # fmt: skip
    console.print(table)
    for line in _reservations(outcome):
        console.print(line, highlight=False)
    console.print(verdict(outcome), highlight=False)
    console.print(
        f"Learnt from {num_training_cases} images in {minutes:.1f} minutes, rollouts of this run included.", highlight=False
    )


def verdict(outcome: Outcome) -> str:
    """In one or two sentences."""
    better = [f"{level.saved:.0%}" for level in outcome.levels if level.verdict == "better"]
    worse = [f"{level.saved:.0%}" for level in outcome.levels if level.verdict == "worse"]
    if not outcome.levels:
        return "The policy saves nothing: it learnt nothing. More training captions, or a ladder with gentler rungs, may help."
    if outcome.num_captions < FEWEST_CAPTIONS:
        return (
            f"{outcome.num_captions} captions are too few to judge a policy by: {FEWEST_CAPTIONS} or more, better {USUAL_CAPTIONS}, say "
            "something."
        )
    first = (
        f"The policy beats every mixture of static schedules at {', '.join(better)} saved, interval clear of zero."
        if better
        else "The policy beats the mixture of static schedules nowhere with an interval clear of zero: more captions may help."
    )
    return first + (f" It is worse at {', '.join(worse)}." if worse else "")


def _reservations(outcome: Outcome) -> list[str]:
    """What the table does not say: levels that no λ reaches, and levels at which a user gets something else."""
    curve, found = outcome.curve, {round(level.saved, 6) for level in outcome.levels}
    missing = [f"{level:.0%}" for level in LEVELS if level not in found]
    lines = []
    if missing and outcome.levels:
        lines.append(
            f"Not reached: {', '.join(missing)}. On average the policy saves {min(curve.saved):.0%} to {max(curve.saved):.0%}, by λ; the "
            "last rung bounds it, and `visible_damage`, by which reuse costs."
        )
    met = {f"{level.saved:.0%}": curve.met_instead(1 - level.saved) for level in outcome.levels}
    missed = [f"{level} (a user gets {1 - spent:.0%})" for level, spent in met.items() if spent is not None]
    if missed:
        lines.append(
            f"Judged by a draw between two λ: {', '.join(missed)}, as nearly all images change at once between them. `batch_compute` meets "
            "such levels; a `visible_damage` that fits the model, or rungs between those that there are, may help."
        )
    return lines


def print_history(history: Sequence[dict[str, float]], minutes: float) -> None:
    """Prints how the validation reward of a run with sampled schedules went."""
    console = _console()
    table = Table(title="Greedy decisions on held-out prompts", title_justify="left")
    for head in ("rollouts", "reward", "quality vs reference", "saved of the steps decided"):
        table.add_column(head, justify="right")
    stride = max(1, len(history) // 10)
    for row in [*history[:-1:stride], *history[-1:]]:
        table.add_row(
            f"{row['rollouts']:.0f}", f"{row['reward']:+.4f}", f"{row['quality']:+.4f}", f"{row['compute_saved']:.1%}"
        )
    console.print(table)
    if len(history) < 2:
        console.print(f"Nothing was validated after the start; the last weights are exported. {minutes:.1f} minutes.")
    else:
        best = max(history[1:], key=lambda row: row["reward"])
        gained = best["reward"] - history[0]["reward"]
        console.print(
            f"The best, after {best['rollouts']:.0f} rollouts, is exported: its validation reward is {abs(gained):.4f} "
            f"{'above' if gained > 0 else 'below'} the start's. {minutes:.1f} minutes."
        )


def print_files(folder: Path, evaluation: str) -> None:
    """Says where everything lies, and what to do next: the command `evaluation`."""
    _console().print(
        f"policy      {folder / 'policy'}\npictures    {folder / 'pictures'}\nTensorBoard tensorboard --logdir {folder}\n"
        f"Compare it with everything else: {evaluation}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _console() -> Console:
    """The terminal; where there is none, as in a log file, lines are long enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
