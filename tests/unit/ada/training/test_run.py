"""A run's folder belongs to one run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ladders import build_frozen
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from policies import build_step_policy

from ada.rollouts import FrozenPipeline
from ada.training import Run, RunError

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "class_path": "ada.training.LadderTraining",
        "init_args": {"num_components": 1, "quality_weight_range": (0.2, 30.0)},
    },
    "data": {"table": Path("runs/tables")},
    "trainer": {"max_epochs": 1},
}


def build_run(folder: Path, config: dict[str, Any]) -> Run:
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    return Run(trainer, BoringModel(), BoringDataModule(), config)


def test_the_card_tells_the_device_that_was_computed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, pipeline = build_run(tmp_path, CONFIG), build_frozen()
    policy = build_step_policy(pipeline)
    run._identity = CONFIG
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(FrozenPipeline, "device", torch.device("cuda", 1))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.setattr("ada.training.run.write_figures", lambda *given: told.append(given[3]))
    run._describe(policy, pipeline, 1.0)
    assert told[0]["hardware"] == "GPU number 1"


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    build_run(tmp_path, CONFIG).train()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    identity = json.loads((tmp_path / "run.json").read_text())
    assert identity["model"]["init_args"] == {"num_components": 1, "quality_weight_range": [0.2, 30.0]}
    assert "trainer" not in identity

    build_run(tmp_path, CONFIG | {"trainer": {"max_epochs": 9}}).train()  # the trainer's settings are no part of it

    other = json.loads(json.dumps(CONFIG, default=str))
    other["model"]["init_args"]["num_components"] = 2
    other["data"]["source"] = "elsewhere"
    with pytest.raises(RunError) as error:
        build_run(tmp_path, other).train()
    assert "data.source: None → elsewhere; model.init_args.num_components: 1 → 2" in str(error.value)
    assert "--trainer.default_root_dir" in str(error.value)
    assert json.loads((tmp_path / "run.json").read_text()) == identity, "the folder stays the first run's"

    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds what a run has learnt \(last\.ckpt\), and no run\.json that says which"):
        build_run(tmp_path, other).train()
