"""A run's progress where there is no terminal: lines in a log file, not a bar that is redrawn."""

from time import monotonic
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ada.progress import SECONDS_BETWEEN


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
        epochs = trainer.max_epochs or -1
        total = int(trainer.num_training_batches) * epochs if epochs > 0 else None  # else as long as it may
        done, now = self._done(trainer), monotonic()
        if not trainer.is_global_zero or (now - self._shown < SECONDS_BETWEEN and done != total):
            return
        self._shown = now
        seconds = (now - self._started) / max(1, done - self._before)
        of, left = ("", "") if total is None else (f" of {total}", f", about {seconds * (total - done):.0f} s left")
        epoch = f"{trainer.current_epoch + 1} of {epochs}" if epochs > 0 else str(trainer.current_epoch + 1)
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        print(
            f"Epoch {epoch}, step {done}{of}: {values}; {now - self._started:.0f} s{left}",
            flush=True,
        )

    @staticmethod
    def _done(trainer: Trainer) -> int:
        """Batches of all epochs that are done."""
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1
