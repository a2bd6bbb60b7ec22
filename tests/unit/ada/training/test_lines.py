"""A run's progress in a log file."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ada.training import lines
from ada.training.lines import ProgressLines


def run(max_epochs: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of three batches of six seconds each."""
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr(lines, "monotonic", lambda: next(clock))
    loop = SimpleNamespace(total_batch_idx=-1)
    trainer: Any = SimpleNamespace(
        num_training_batches=3, max_epochs=max_epochs, is_global_zero=True, current_epoch=0,
        progress_bar_metrics={"loss": torch.tensor(0.5)}, fit_loop=SimpleNamespace(epoch_loop=loop),
    )  # fmt: skip
    callback, module = ProgressLines(), Any
    callback.on_train_start(trainer, module)
    for batch in range(6):
        loop.total_batch_idx, trainer.current_epoch = batch, batch // 3
        callback.on_train_batch_end(trainer, module, None, None, batch % 3)


def test_a_line_now_and_then_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(2, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 1 of 2, step 2 of 6: loss 0.5; 12 s, about 24 s left",
        "Epoch 2 of 2, step 4 of 6: loss 0.5; 24 s, about 12 s left",
        "Epoch 2 of 2, step 6 of 6: loss 0.5; 36 s, about 0 s left",
    ]


@pytest.mark.parametrize("max_epochs", [None, -1])
def test_a_run_that_steps_alone_end_foretells_nothing(
    max_epochs: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(max_epochs, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 1, step 2: loss 0.5; 12 s", "Epoch 2, step 4: loss 0.5; 24 s", "Epoch 2, step 6: loss 0.5; 36 s",
    ]  # fmt: skip
