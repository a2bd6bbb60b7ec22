"""Small training runs: models, prompts and configurations as a user would write them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import build_clip_folder, build_pixart_pipeline
from golden.builders import save_image_reward

from ada.rewards import Reward, RewardError
from ada.schedules import Ladder
from ada.training import LadderTraining
from blockdance import Reuse

RUNGS = ("00000000", "00000010", "00000110", "00020010", "00011010")


def build_models(folder: Path) -> dict[str, str]:
    """Pipeline, scorers and prompts, saved; their places by name."""
    build_pixart_pipeline().save_pretrained(folder / "pipeline")
    build_clip_folder(folder / "scorer")
    (folder / "image_reward").mkdir()
    save_image_reward(folder / "image_reward")
    prompts = folder / "prompts"
    prompts.mkdir()
    for split, count in (("train", 6), ("validation", 3)):
        lines = [json.dumps({"prompt": f"{'abcdef'[index]} {split}"}) for index in range(count)]
        (prompts / f"{split}.jsonl").write_text("\n".join(lines))
    return {name: str(folder / name) for name in ("pipeline", "scorer", "image_reward", "prompts")}


def write_config(folder: Path, models: dict[str, str], **model: Any) -> Path:
    """A configuration of the paper's algorithm over the default one, as a user would write it."""
    clip = {"class_path": "ada.rewards.ClipScore", "init_args": {"model": models["scorer"], "scale": 0.1}}
    reward = {
        "rewards": {
            "clip": {"class_path": "ada.rewards.Relative", "init_args": {"reward": clip}},
            "ssim": {"class_path": "ada.rewards.SSIM"},
        },
        "weights": {"clip": 0.5, "ssim": 1.0},
    }
    settings = {
        "pipeline": write_pipeline(models),
        "reward": {"class_path": "ada.rewards.WeightedReward", "init_args": reward},
        "kinds": [{"boundary": 3, "order": 1}, {"boundary": 2, "order": 0}],
        "group_size": 3, "hidden_size": 16, "num_heads": 2,
    }  # fmt: skip
    data = {"source": models["prompts"], "train_split": "train", "batch_size": 2, "train_limit": None, "validation_limit": None}
    config = {
        "trainer": write_trainer(folder) | {"max_epochs": 4, "limit_train_batches": 2, "check_val_every_n_epoch": 1},
        "model": {"class_path": "ada.training.StepTraining", "init_args": settings | model},
        "data": {"class_path": "ada.data.PromptDataModule", "init_args": data},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_pipeline(models: dict[str, str]) -> dict[str, Any]:
    arguments = {"max_sequence_length": 12, "use_resolution_binning": False}
    settings = {"model": models["pipeline"], "num_inference_steps": 8, "arguments": arguments}
    return {"class_path": "ada.rollouts.FrozenPipeline", "init_args": settings}


def write_trainer(folder: Path) -> dict[str, Any]:
    logger = {"save_dir": str(folder / "run"), "name": None, "version": ""}
    return {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "default_root_dir": str(folder / "run"),
        "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": logger},
    }


def write_ladder_config(folder: Path, models: dict[str, str], **data: Any) -> Path:
    """A configuration of ladder training over the default one."""
    Ladder(
        torch.tensor([[int(action) for action in rung] for rung in RUNGS]),
        (Reuse(boundary=3), Reuse(boundary=2, order=1, weight=0.5)),
        (2, 4),
    ).save(folder / "ladder.json")
    ssim = {"rewards": {"ssim": {"class_path": "ada.rewards.SSIM"}}, "weights": {"ssim": 1.0}}
    settings = {
        "pipeline": write_pipeline(models),
        "reward": {"class_path": "ada.rewards.WeightedReward", "init_args": ssim},
        "ladder": str(folder / "ladder.json"),
        "source": models["prompts"], "train_split": "train", "train_limit": None, "validation_limit": None,
        "table": str(folder / "tables"), "rollout_batch_size": 2,
    }  # fmt: skip
    config = {
        "trainer": write_trainer(folder) | {"max_epochs": 20},
        "data": {"class_path": "ada.training.RolloutDataModule", "init_args": settings | data},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class RefusesOnOneRank(Reward):
    """A reward that fails in the second process alone."""

    compares_with_reference = True

    def __call__(self, images: torch.Tensor, prompts: Sequence[str], reference: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == "1":
            raise RewardError("the scorer of this process is broken")
        return -(images - reference).abs().flatten(1).mean(1)


class NoNumberOnOneRank(LadderTraining):
    """Training whose fourth gradient is no number in the second process alone."""

    def training_step(self, batch: tuple[torch.Tensor]) -> torch.Tensor:
        is_broken = self.global_step == 3 and os.environ.get("RANK") == "1"
        return super().training_step(batch) * (float("nan") if is_broken else 1.0)
