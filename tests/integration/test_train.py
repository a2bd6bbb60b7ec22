"""`train.py` on a small random PixArt pipeline: it trains, resumes, exports, and its policy runs in a stock pipeline."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import build_models, write_config, write_ladder_config, write_trainer

import ada.training.ladder as ladder_training
import train
from ada import AdaPolicy, reinforce
from ada.rewards import RewardError
from ada.rewards.damage import bounded_damage
from ada.training import LadderTraining, NothingLearntError, RunError
from blockdance import apply_blockdance


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_models(tmp_path_factory.mktemp("models"))


def test_a_ladder_policy_trains_exports_and_serves_a_stock_pipeline(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_ladder_config(tmp_path, models))
    module = train.main(["--config", config])
    printed, run = capsys.readouterr().out, tmp_path / "run"
    assert "mixture of static" in printed
    assert "Rolling out 5 schedules on training captions: 6 of 6" in printed
    outcome = json.loads((run / "policy" / "outcome.json").read_text())
    assert 0.2 in [level["saved"] for level in outcome["levels"]], "the ladder saves up to 35 %"
    written = {"config.json", "model.safetensors", "README.md", "outcome.json", "training.json", "outcome.png", "decisions.png"}
    assert {file.name for file in (run / "policy").iterdir()} == written
    assert outcome["num_cases"] == 6, "all captions, by cross-fitting"
    assert (run / "pictures" / "decisions.png").stat().st_size > 1000
    scalars = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    assert {"validation/advantage", "train/gradient_norm"} <= scalars
    assert {"validation/distinct_schedules", "validation/regret_to_static"} <= scalars
    assert "rollouts/images_per_second_training" in scalars
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    policy = AdaPolicy.from_pretrained(run / "policy")
    for name, tensor in module.policy.state_dict().items():
        assert torch.equal(policy.state_dict()[name], tensor)
    exported, learnt = copy.deepcopy(policy), module.data.train_data.tensors
    stages = module.tree.nodes[:, 0]
    predicted = exported.log_odds(exported.inputs(learnt[0], stages), stages)
    exported.measure_errors(predicted, stages, bounded_damage(learnt[1], module.data.visible_damage))
    torch.testing.assert_close(policy.error_variance, exported.error_variance, msg="how far the critic is off at the end")
    assert policy.error_variance.max() > 0
    pipeline = DiffusionPipeline.from_pretrained(models["pipeline"])
    pipeline.set_progress_bar_config(disable=True)
    handle = apply_blockdance(pipeline, policy.with_options(compute=0.65))
    pipeline(["a dog", "a cat"], num_inference_steps=8, use_resolution_binning=False)
    assert (handle.report().actions > 0).sum(1).tolist() == [3, 3], "the rung nearest to 65 % reuses three of eight steps"


def test_how_far_the_critic_is_off_is_measured_where_it_is_read(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    judged: list[LadderTraining] = []
    measure, judge = LadderTraining.measure_errors, LadderTraining.judged
    monkeypatch.setattr(LadderTraining, "judged", lambda module: judged.append(module) or judge(module))

    def count(module: LadderTraining) -> None:
        measured.append(module.global_step)
        measure(module)

    monkeypatch.setattr(LadderTraining, "measure_errors", count)
    command = ["--config", str(write_ladder_config(tmp_path, models)), "--data.init_args.batch_size", "2"]
    module = train.main([*command, "--trainer.max_epochs", "2"])
    assert measured == [3, 6, 6], "after each epoch's three batches, and at the end"
    assert len(judged) == 2, "after the last epoch for what is logged, and once for what is said and kept"
    errors = module.policy.error_variance.clone()
    measure(module)
    assert torch.equal(module.policy.error_variance, errors)
    measured.clear()
    more = ["--trainer.max_epochs", "2", "--model.init_args.policy_gradient_weight", "1.0"]
    train.main([*command, *more, "--trainer.default_root_dir", str(tmp_path / "other")])
    assert measured == [1, 2, 3, 4, 5, 6, 6], "the policy gradient reckons with them at every batch"


def test_what_came_of_a_run_is_said_before_pictures_are_made(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room for a picture")

    monkeypatch.setattr("ada.training.run.draw_outcome", fail)
    with pytest.raises(OSError, match="no room for a picture"):
        train.main(["--config", str(write_ladder_config(tmp_path, models)), "--trainer.max_epochs", "1"])
    assert "Learnt from 6 images" in capsys.readouterr().out


def test_rollouts_are_run_once(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_ladder_config(tmp_path, models))
    first = train.main(["--config", config])
    capsys.readouterr()
    second = train.main(["--config", config, "--trainer.default_root_dir", str(tmp_path / "second")])
    assert "Rolling out" not in capsys.readouterr().out
    for name, tensor in first.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], tensor)


@pytest.mark.slow  # the embedded model
def test_the_default_run_says_nothing_but_what_is_of_the_run(tmp_path: Path) -> None:
    """`python train.py` as a user gives it, on two captions: no tips, warnings or bars of libraries on either stream."""
    small = ["--data.init_args.train_limit", "2", "--model.init_args.folds", "2", "--trainer.max_epochs", "3"]
    places = ["--trainer.default_root_dir", str(tmp_path / "run"), "--data.init_args.table", str(tmp_path / "tables")]
    command = [sys.executable, "train.py", *small, *places, "--trainer.logger.init_args.save_dir", str(tmp_path / "run")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "", "where libraries warn and draw bars"
    assert finished.stdout.startswith("Rolling out 16 schedules on training captions")
    assert not re.search(r"(?i)warning|deprecat|💡|https?://|it/s|\d%\|", finished.stdout)


@pytest.mark.parametrize("write", [write_ladder_config, write_config])
def test_a_dry_run_leaves_the_folder_to_the_real_one(
    models: dict[str, str], tmp_path: Path, write: Callable[..., Path]
) -> None:
    config = str(write(tmp_path, models))
    train.main(["--config", config, "--trainer.fast_dev_run", "true"])
    left = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert not {name for name in left if not name.startswith("events")}
    train.main(["--config", config])
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_a_run_without_an_end_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"A run needs an end.*`--trainer\.max_epochs`"):
        train.main(["--config", str(write_ladder_config(tmp_path, models)), "--trainer.max_epochs", "-1"])


@pytest.mark.parametrize("option", ["max_epochs", "limit_train_batches"])
def test_a_run_that_would_learn_nothing_is_refused(models: dict[str, str], tmp_path: Path, option: str) -> None:
    with pytest.raises(RunError, match="0 nothing would be learnt"):
        train.main(["--config", str(write_ladder_config(tmp_path, models)), f"--trainer.{option}", "0"])


def test_a_folder_of_another_run_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models))
    train.main(["--config", config])
    with pytest.raises(RunError, match=r"model\.init_args\.prior_cases: 24\.0 → 2\.0"):
        train.main(["--config", config, "--model.init_args.prior_cases", "2.0"])
    with pytest.raises(RunError, match=r"trainer\.max_epochs: 20 → 10"):  # over which the learning rate falls
        train.main(["--config", config, "--trainer.max_epochs", "10"])
    with pytest.raises(RunError, match=r"trainer\.max_steps: None → 10"):
        train.main(["--config", config, "--trainer.max_steps", "10"])


def test_one_caption_is_too_few_to_be_judged_on_others(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models, train_limit=1))
    with pytest.raises(RunError, match=r"there is one in all\. Give more captions \(`data\.train_limit`\)"):
        train.main(["--config", config])
    module = train.main(["--config", config, "--data.init_args.validation_split", "validation"])
    assert all(tensor.isfinite().all() for tensor in module.policy.state_dict().values())


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_an_offloaded_pipeline_trains_the_same_policy(models: dict[str, str], tmp_path: Path, offload: str) -> None:
    config = str(write_ladder_config(tmp_path, models))
    expected = train.main(["--config", config])
    more = ["--data.init_args.pipeline.init_args.offload", offload, "--data.init_args.table", str(tmp_path / "other")]
    module = train.main(["--config", config, "--trainer.default_root_dir", str(tmp_path / "other"), *more])
    assert module.data.pipeline.offload == offload
    assert [folder.name for folder in (tmp_path / "other").glob("*/settings.json")] == ["settings.json"]
    for name, tensor in expected.policy.state_dict().items():
        assert torch.equal(module.policy.state_dict()[name], tensor)


def test_what_few_captions_say_is_no_gain(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models))
    with pytest.raises(NothingLearntError, match="captions are too few to judge a policy by"):
        train.main(["--config", config, "--require_gain", "true"])
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file(), "nothing is lost"


def test_a_gain_that_nobody_would_judge_is_not_required(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_config(tmp_path, models))
    with pytest.raises(RunError, match=r"`require_gain` is for a ladder's training, .*; StepTraining does not\. Leave it out"):
        train.main(["--config", config, "--require_gain", "true"])


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}


@pytest.mark.parametrize(
    ("write", "module", "loss", "good_calls"),
    [
        (write_ladder_config, ladder_training, "critic_loss", 27),  # three steps of nine policies
        (partial(write_config, clip_range=None), reinforce, "policy_gradient_loss", 3),
    ],
    ids=["ladder", "steps"],
)
def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, module: Any, loss: str, good_calls: int
) -> None:
    original, calls = getattr(module, loss), count()
    monkeypatch.setattr(module, loss, lambda *args: original(*args) * (1.0 if next(calls) < good_calls else float("nan")))
    config = write(tmp_path, models)
    with pytest.raises(RunError, match=r"^A gradient of .* is no finite number at step \d+; the weights before it are kept"):
        train.main(["--config", str(config), "--trainer.max_epochs", "20"])
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] > 0
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.parametrize("algorithm", ["ladder", "steps"])
def test_a_base_that_gives_no_numbers_is_named(models: dict[str, str], tmp_path: Path, algorithm: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(models["pipeline"])
    with torch.no_grad():
        pipeline.transformer.proj_out.bias[0] = float("nan")
    pipeline.save_pretrained(tmp_path / "pipeline")
    write = write_ladder_config if algorithm == "ladder" else write_config
    config = write(tmp_path, models | {"pipeline": str(tmp_path / "pipeline")})
    with pytest.raises(RewardError, match=r"(gave|is) (nan|no finite number)"):
        train.main(["--config", str(config)])
    assert not (tmp_path / "run" / "policy").exists()
    assert not list((tmp_path / "tables").glob("*/*.safetensors")), "nothing of it is kept"


def test_the_pixart_configuration_trains_on_a_small_pixart(models: dict[str, str], tmp_path: Path) -> None:
    """configs/pixart_alpha.yaml as it is, but for the models' sizes, the device and the length."""
    config = yaml.safe_load(Path("configs/pixart_alpha.yaml").read_text())
    settings = config["data"]["init_args"]
    settings["pipeline"]["init_args"] |= {"model": models["pipeline"], "num_inference_steps": 20, "max_rows": 4}
    settings["pipeline"]["init_args"]["arguments"] |= {"max_sequence_length": 12, "use_resolution_binning": False}
    ladder = json.loads(Path(settings["ladder"]).read_text())
    for kind in ladder["kinds"]:
        kind["boundary"] = 2
    (tmp_path / "ladder.json").write_text(json.dumps(ladder))
    parts = settings["reward"]["init_args"]["rewards"]
    parts["perceptual"]["init_args"]["model"] = models["scorer"]
    parts["image_reward"]["init_args"] = {"model": models["image_reward"], "tokenizer": models["image_reward"]}
    settings |= {
        "ladder": str(tmp_path / "ladder.json"), "source": models["prompts"], "column": "prompt",
        "validation_split": "validation", "table": str(tmp_path / "tables"),
    }  # fmt: skip
    config["trainer"] |= write_trainer(tmp_path) | {"devices": 1, "strategy": "auto", "max_epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module = train.main(["--config", str(tmp_path / "config.yaml")])
    assert module.data.pipeline.transformer.dtype == torch.bfloat16
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
