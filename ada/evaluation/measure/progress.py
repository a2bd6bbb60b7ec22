"""Progress on the terminal, with an estimate of the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_WIDTH = 180
Advance = Callable[[str], None]


@dataclass
class Bar:
    """Bars on the terminal.

    Args:
        progress: rich's.
    """

    progress: Progress

    @classmethod
    @contextmanager
    def shown(cls, console: Console) -> Iterator["Bar"]:
        """Shows it while the context lasts."""
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield cls(progress)

    def task(self, title: str, total: int) -> Advance:
        """A new line; the function returned is called with what comes next before each of its `total` parts."""
        task = self.progress.add_task(title, total=total)
        started = -1

        def advance(name: str) -> None:
            nonlocal started
            started += 1
            self.progress.update(task, description=name or title, completed=min(started + (name == ""), total))

        return advance


def default_console() -> Console:
    """The terminal; where there is none, as in a log file, lines are long enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)
