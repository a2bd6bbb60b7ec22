"""Rewards through `train.py`: one from outside the package, statistics over a resumed run, images that are dropped."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import build_pixart_pipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from ada import reinforce
from ada.schedules import Ladder
from blockdance import Reuse

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"


def read_block(name: str) -> str:
    """The code block of docs/rewards.md after the marker of this name."""
    blocks = re.findall(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    text: str = blocks[0]
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a small pipeline, prompts, and `my_rewards.py` as the docs have it."""
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    (tmp_path / "prompts").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "prompts" / f"{split}.jsonl").write_text(
            "\n".join(f'{{"prompt": "{letter} {split}"}}' for letter in "abcd")
        )
    (tmp_path / "my_rewards.py").write_text(read_block("my_rewards.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return tmp_path


def command(folder: Path, config: dict[str, Any], run: str = "run", table: str | None = None) -> list[str]:
    """The command line of a short training over the configuration of the paper's algorithm and this one."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    output = str(folder / run)
    model, data = "model.init_args", "data.init_args"
    options = {
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "trainer.default_root_dir": output,
        "trainer.logger.init_args.save_dir": output, "trainer.max_epochs": "1", "trainer.limit_train_batches": "2",
        f"{model}.pipeline.init_args.model": str(folder / "pipeline"),
        f"{model}.pipeline.init_args.num_inference_steps": "6",
        f"{model}.kinds": '[{"boundary": 3, "order": 0}]', f"{model}.group_size": "3", f"{model}.hidden_size": "16",
        f"{model}.num_heads": "2", f"{data}.source": str(folder / "prompts"), f"{data}.batch_size": "2",
        f"{data}.train_split": "train", f"{data}.validation_limit": "null",
        f"{model}.table": table or str(folder / "tables"),
    }  # fmt: skip
    parts = (part for name, value in options.items() for part in (f"--{name}", value))
    return ["--config", "configs/paper_ada.yaml", "--config", str(path), *parts]


def read_config() -> dict[str, Any]:
    """The docs' configuration, for the paper's algorithm."""
    reward = yaml.safe_load(read_block("config.yaml"))["data"]["init_args"]["reward"]
    return {"model": {"init_args": {"reward": reward}}}


def test_the_docs_own_reward_trains_a_ladder(folder: Path) -> None:
    """The docs' block as it is, over the default configuration."""
    (folder / "config.yaml").write_text(read_block("config.yaml"))
    Ladder(torch.tensor([[0] * 6, [0, 0, 0, 1, 0, 0]]), (Reuse(boundary=3),), (2,)).save(folder / "ladder.json")
    data, output = "data.init_args", str(folder / "run")
    options = {
        "trainer.accelerator": "cpu", "trainer.default_root_dir": output, "trainer.logger.init_args.save_dir": output,
        "trainer.max_epochs": "2", f"{data}.pipeline.init_args.model": str(folder / "pipeline"),
        f"{data}.pipeline.init_args.num_inference_steps": "6", f"{data}.ladder": str(folder / "ladder.json"),
        f"{data}.source": str(folder / "prompts"), f"{data}.train_split": "train", f"{data}.table": str(folder / "tables"),
    }  # fmt: skip
    parts = [part for name, value in options.items() for part in (f"--{name}", value)]
    module = train.main(["--config", str(folder / "config.yaml"), *parts])
    assert type(module.data.collector.reward.rewards["contrast"]).__module__ == "my_rewards"
    assert module.data.train_data.tensors[1][:, 0].tolist() == [0.0] * 4, "the reference has no damage"


def test_the_docs_own_reward_trains(folder: Path) -> None:
    module = train.main(command(folder, read_config()))
    reward = module.reward.rewards["contrast"]
    assert type(reward).__module__ == "my_rewards"
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(reward(images, ["", ""], images), 2.0 * images.flatten(1).std(1))
    scalars = EventAccumulator(str(folder / "run")).Reload()
    assert {"train/quality/contrast", "validation/quality/contrast", "train/dropped_images"} <= set(scalars.Tags()["scalars"])
    logged = scalars.Scalars("train/quality/contrast")
    assert any(event.value != 0 for event in logged), "schedules change the contrast"


def test_statistics_go_on_where_a_stopped_run_left_them(folder: Path) -> None:
    config = read_config()
    config["model"]["init_args"]["reward"]["init_args"]["normalisation"] = {"contrast": "running"}
    straight = train.main([*command(folder, config, "straight", table="null"), "--trainer.max_epochs", "2"])
    train.main(command(folder, config, "stopped", table="null"))
    resumed = train.main([*command(folder, config, "stopped", table="null"), "--trainer.max_epochs", "2"])
    count, *sums = straight.reward.state()["contrast"]
    assert count == 2 * 2 * 2 * 3, "epochs × rollouts × prompts × group: validation does not count"
    assert resumed.reward.state()["contrast"] == pytest.approx([count, *sums], rel=1e-4, abs=1e-7)
    assert sums[1] > 0


def test_a_dropped_image_gives_no_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "my_rewards.py").open("a") as file:
        file.write("\n\nclass Broken(Contrast):\n    def __call__(self, images, prompts, reference):\n")
        file.write("        values = super().__call__(images, prompts, reference)\n")
        file.write("        values[1:2] = float('nan')\n        return values\n")
    config = read_config()
    config["model"]["init_args"] |= {"advantage": "none", "updates_per_rollout": 1, "clip_range": None}
    settings = config["model"]["init_args"]["reward"]["init_args"]
    settings |= {
        "rewards": {"broken": {"class_path": "my_rewards.Broken"}},
        "weights": {"broken": 1.0},
        "relative": False,
        "on_broken": "drop",
    }
    seen: list[torch.Tensor] = []
    original = reinforce.policy_gradient_loss

    def watch(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        seen.append(advantages)
        return original(log_probs, advantages)

    monkeypatch.setattr(reinforce, "policy_gradient_loss", watch)
    module = train.main(command(folder, config, table="null"))
    assert len(seen) == 2
    for advantages in seen:
        assert advantages.shape == (2, 3)
        # equal images are scored once, so which image is the second of those that are scored depends on the schedules
        assert (advantages == 0).sum() == 1
        assert advantages.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.policy.parameters())
    counted = EventAccumulator(str(folder / "run")).Reload().Scalars("train/dropped_images")
    assert [event.value for event in counted] == [1.0, 1.0]
