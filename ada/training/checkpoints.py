"""Checkpoints: the last state, which a run goes on from, and the best by validation, which is exported."""

import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ada.training.errors import RunError, together
from ada.training.files import write_whole

MINUTES_BETWEEN = 10


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints whole, in their own folder: Lightning's way over the system's temporary folder overwrites the last good state
    byte by byte where that lies on another disk.

    One process writes while the others wait, so a failure is kept until all of them can raise it: `raise_failure`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), content.getvalue())
        except OSError as error:
            self._failure = error

    def raise_failure(self) -> None:
        """Raises what a save since the last call has failed of, on all processes.

        Raises:
            OSError: on the process that wrote.
            RunError: on the others.
        """

        def check() -> None:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

        together(check)


class KeepLast(Checkpoint):
    """Keeps `last.ckpt`: at every epoch's end, and within long epochs every ten minutes and when the run is told to stop by SIGTERM.

    Args:
        file: where.
        files: how checkpoints are written.
        within_epochs: whether the data can go on from the middle of an epoch.
    """

    def __init__(self, file: Path, files: CheckpointFiles, within_epochs: bool) -> None:
        self.file, self._files, self._within_epochs = file, files, within_epochs
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._within_epochs or trainer.is_last_batch:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._saved_at > MINUTES_BETWEEN * 60):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        told_to_stop = isinstance(exception, SIGTERMException) and trainer.training and self._saved_step is not None
        if told_to_stop and self._within_epochs and trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._files.raise_failure()  # of the best, before a state is kept that takes it for written
        trainer.save_checkpoint(self.file, weights_only=False)
        self._files.raise_failure()
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()


class KeepBest(ModelCheckpoint):
    """Keeps `best.ckpt`, the weights that validated best.

    Args:
        folder: where.
        monitor: the metric.
        mode: `min` or `max`.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        super().__init__(
            folder,
            "best",
            monitor,
            mode=mode,
            save_weights_only=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    @property
    def file(self) -> Path:
        return Path(str(self.dirpath)) / "best.ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best score; a run whose folder was moved keeps it."""
        file, score = str(self.file), state_dict["best_model_score"]
        here = {"dirpath": self.dirpath, "best_model_path": file, "kth_best_model_path": file, "last_model_path": ""}
        super().load_state_dict(state_dict | here | {"best_k_models": {} if score is None else {file: score}})


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Reads a checkpoint without unpickling more than tensors and plain values.

    Raises:
        RunError: it cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over in a broken file
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise RunError(
            f"The checkpoint {file} cannot be read: {reason}. Put an older copy in its place, or delete it and the "
            "same command begins again; rollouts that are in a table are not lost."
        ) from error
    return content


class StopTogether(Callback):
    """Lets SIGTERM stop a run of several processes after the same batch in all of them, whichever of them it reached, so that the state
    which they keep is one.

    It stands in for Lightning's handler while training lasts. That one calls the other processes from wherever a process just is, such
    as between them adding up their gradients, and each process stops after whatever batch it has in hand.
    """

    def __init__(self) -> None:
        self._was_told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._take_up)  # Lightning puts back what was there when it ends

    def _take_up(self, number: int, frame: FrameType | None) -> None:
        self._was_told = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:  # after which there may be a validation, which all go through
            self._agree(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:
            return
        told = torch.tensor(float(self._was_told), device=trainer.strategy.root_device)
        if float(trainer.strategy.reduce(told, reduce_op="sum")) > 0:
            trainer._signal_connector.received_sigterm = True  # Lightning stops at the end of what it does with this batch


@contextmanager
def stop_at_sigterm(trainer: Trainer) -> Iterator[None]:
    """Lets SIGTERM stop the run where nothing is lost: within the training loop Lightning waits for the batch's end, elsewhere (at
    rollouts, or at the export) it stops at once.

    Raises:
        SIGTERMException: when told to stop.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if not trainer.received_sigterm:  # else Lightning's own handler, which calls this one too, has taken it up
            raise SIGTERMException

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
