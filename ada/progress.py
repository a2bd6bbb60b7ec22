"""Progress of long work: a bar on the terminal; where there is none, lines in a log file."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN = 10
"""Between two lines in a log file."""

SHARE_TO_ESTIMATE = 0.02
"""Done before a line says how long the rest takes: the first parts load models, or draw what later ones share."""


class Advance(Protocol):
    """Says that so many more parts are done, and what comes next."""

    def __call__(self, done: int, doing: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """A bar with an estimate; where there is no terminal, a line now and then.

    Args:
        title: shown where nothing says what is being done.
        total: number of parts.
        console: the terminal; by default the standard output's.
    """
    console = console or Console()
    started = shown = monotonic()
    finished = 0
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, doing="": bar.update(task, advance=done, description=doing or title)
        return

    def advance(done: int, doing: str = "") -> None:
        nonlocal finished, shown
        finished += done
        now = monotonic()
        if finished and (now - shown > SECONDS_BETWEEN or finished >= total):
            shown = now
            part = f" ({doing})" if doing else ""
            left = (now - started) / finished * (total - finished)
            estimate = f", about {left:.0f} s left" if finished >= SHARE_TO_ESTIMATE * total else ""
            line = f"{title}: {finished} of {total}{part}, {now - started:.0f} s{estimate}"
            console.print(line, highlight=False, soft_wrap=True)

    yield advance
