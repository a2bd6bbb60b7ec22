"""Tables of outcomes, on the terminal and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from ada.training import Outcome


def write_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str], file: Path) -> None:
    """Prints a table with sentences below it, and writes both as Markdown."""
    table = RichTable(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console = Console(width=240)
    console.print(table)
    for sentence in words:
        console.print(sentence)
    lines = [title + ".", "", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [line for sentence in words for line in ("", sentence)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(outcome: Outcome, level: float) -> str:
    """Damage, advantage with interval, share of the gap."""
    try:
        found = outcome.at(level)
    except KeyError:
        return "not reached"
    mean, low, high = found.advantage
    return f"{found.policy:.4f}: {mean:+.4f} ({low:+.4f} … {high:+.4f}), {found.gap_closed:.0%}"
