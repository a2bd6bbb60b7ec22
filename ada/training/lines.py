"""Progress where there is no terminal: lines in a log file, not redrawn bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN = 10


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with an estimate; where there is no terminal, a line now and then."""
    console = Console()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.advance(task, done)
        return
    started, finished, shown = monotonic(), 0, monotonic()

    def advance(done: int) -> None:
        nonlocal finished, shown
        finished += done
        now = monotonic()
        if now - shown > SECONDS_BETWEEN or finished >= total:
            shown = now
            left = (now - started) / finished * (total - finished)
            print(f"{title}: {finished} of {total}, {now - started:.0f} s, about {left:.0f} s left", flush=True)

    yield advance


class ProgressLines(Callback):
    """A line of a run's training every ten seconds, and at its end, in place of Lightning's bar."""

    def __init__(self) -> None:
        self._started = self._shown = 0.0
        self._before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = monotonic()
        self._before = self._done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done, now = self._done(trainer), monotonic()
        if not trainer.is_global_zero or (now - self._shown < SECONDS_BETWEEN and done < total):
            return
        self._shown = now
        left = (now - self._started) / max(1, done - self._before) * (total - done)
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        print(
            f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {done} of {total}: {values}; {now - self._started:.0f} s, "
            f"about {left:.0f} s left",
            flush=True,
        )

    @staticmethod
    def _done(trainer: Trainer) -> int:
        """Batches of all epochs that are done."""
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1
