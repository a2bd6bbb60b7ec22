"""Runs that are killed, told to stop, or begun in two processes end as one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import build_models, write_config, write_ladder_config

import train
from ada.training import RunError, StepTraining


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_models(tmp_path_factory.mktemp("models"))


def last_state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def assert_same_weights(folder: Path, expected: Path, tolerance: float = 5e-5) -> None:
    """Of the last state and of what was exported, which is the best; other batches of the same rows round otherwise."""
    pairs: list[Any] = [(last_state(place)["state_dict"] for place in (folder, expected))]
    pairs.append(load_file(place / "run" / "policy" / "model.safetensors") for place in (folder, expected))
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=0)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(models: dict[str, str], tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    train.main(["--config", str(write_config(straight, models))])
    command = ["--config", str(write_config(stopped, models))]
    train.main([*command, "--trainer.max_epochs", "2"])
    resumed = train.main(command)
    assert [row["rollouts"] for row in resumed.validation_history] == [0, 2, 4, 6, 8]
    assert_same_weights(stopped, straight)
    assert last_state(stopped)["state_dict"]["policy.head.3.weight"].abs().max() > 0
    assert {file.name for file in (stopped / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow  # nine short runs
@pytest.mark.parametrize("algorithm", ["ladder", "steps"])
def test_runs_killed_at_random_moments_end_with_the_same_weights(
    models: dict[str, str], tmp_path: Path, algorithm: str
) -> None:
    config = write_ladder_config(tmp_path, models) if algorithm == "ladder" else write_config(tmp_path, models)
    more = [] if algorithm == "ladder" else ["--kept", "model.init_args.table", "--tolerance", "5e-5"]
    command = [sys.executable, "benchmarks/kill.py", "--kills", "4", *more, "--config", str(config)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]
    assert finished.stdout.count(": equal") == 4


def test_sigterm_saves_within_an_epoch_and_the_run_goes_on_exactly(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    more = ["--data.init_args.batch_size", "1", "--trainer.limit_train_batches", "4", "--trainer.max_epochs", "2"]
    for folder in (straight, stopped):
        folder.mkdir()
        write_config(folder, models)
    train.main(["--config", str(straight / "config.yaml"), *more])
    train_step = StepTraining.training_step

    @wraps(train_step)  # Lightning looks at what a step takes
    def be_told_to_stop(self: StepTraining, batch: dict[str, Any]) -> None:
        train_step(self, batch)
        if self.global_step == 6:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StepTraining, "training_step", be_told_to_stop)
        with pytest.raises(SystemExit) as stop:
            train.main(["--config", str(stopped / "config.yaml"), *more])
    assert stop.value.code == 143
    assert "Stopped by SIGTERM" in capsys.readouterr().err
    assert last_state(stopped)["global_step"] == 6, "the epochs end at 4 and 8"
    train.main(["--config", str(stopped / "config.yaml"), *more])
    assert last_state(stopped)["global_step"] == last_state(straight)["global_step"] == 8
    assert_same_weights(stopped, straight)


@pytest.mark.slow  # starts Python
def test_sigterm_during_rollouts_leaves_at_once_and_loses_no_row(models: dict[str, str], tmp_path: Path) -> None:
    config = write_ladder_config(tmp_path, models, rollout_batch_size=1)
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "tables").glob("*/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on from there" in process.communicate(timeout=240)[1]
    assert process.returncode == 143
    assert list((tmp_path / "tables").glob("*/*.safetensors"))


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while not file.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.is_file()


def test_a_broken_checkpoint_and_fewer_epochs_are_named(models: dict[str, str], tmp_path: Path) -> None:
    command = ["--config", str(write_config(tmp_path, models)), "--trainer.max_epochs"]
    train.main([*command, "2"])
    with pytest.raises(RunError, match=r"has trained for 2 epochs, and `trainer\.max_epochs` is 1"):
        train.main([*command, "1"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"last\.ckpt cannot be read"):
        train.main([*command, "3"])


def launch(config: Path, processes: int, *more: str) -> "subprocess.CompletedProcess[str]":
    """Trains by torchrun, as on many machines."""
    process = start(config, processes, *more)
    output, error = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


def start(config: Path, processes: int, *more: str) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    strategy = ["--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"]
    return subprocess.Popen(
        [*launcher, "train.py", "--config", str(config), *strategy, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'tests'}"},
    )  # fmt: skip


@pytest.mark.slow  # starts five Python processes
@pytest.mark.parametrize("algorithm", ["ladder", "steps"])
def test_two_processes_train_as_one_with_the_same_global_batch(models: dict[str, str], tmp_path: Path, algorithm: str) -> None:
    for processes in (2, 1):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config = write_ladder_config(folder, models) if algorithm == "ladder" else write_config(folder, models)
        more = ["--data.init_args.batch_size", str(4 // processes), "--trainer.max_epochs", "2"]
        more += ["--trainer.check_val_every_n_epoch", "1"]
        # one table: rollouts in other batches round otherwise, and main components of six cases make much of it
        more += ["--data.init_args.table", str(tmp_path / "tables")] if algorithm == "ladder" else []
        finished = launch(config, processes, *more)
        assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = (last_state(tmp_path / str(processes)) for processes in (1, 2))
    for name, tensor in one["state_dict"].items():
        # sums of two processes round otherwise, and Adam makes more of that; a tenth of one of its updates (learning rate 1e-3)
        torch.testing.assert_close(two["state_dict"][name], tensor, atol=1e-4, rtol=0)
    scores = [
        state["best_model_score"]
        for run in (one, two)
        for name, state in run["callbacks"].items()
        if name.startswith("KeepBest")
    ]
    # three validation prompts: padding would weigh one of them twice
    torch.testing.assert_close(scores[1:], scores[:1] if len(scores) > 1 else [], atol=1e-5, rtol=0)
    assert len(scores) == (2 if algorithm == "steps" else 0)


@pytest.mark.slow  # starts nine Python processes
def test_two_processes_stopped_by_sigterm_end_with_the_weights_of_two_that_were_not(
    models: dict[str, str], tmp_path: Path
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    more = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "6", "--trainer.check_val_every_n_epoch", "6"]
    more += ["--data.init_args.batch_size", "1"]
    for folder in (straight, stopped):
        folder.mkdir()
        write_config(folder, models)
    finished = launch(straight / "config.yaml", 2, *more)
    assert finished.returncode == 0, finished.stderr[-3000:]
    process = start(stopped / "config.yaml", 2, *more)
    wait_for(stopped / "run" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to both
    said = process.communicate(timeout=600)[1]
    assert "Stopped by SIGTERM" in said
    assert 0 < last_state(stopped)["global_step"] < 18
    finished = launch(stopped / "config.yaml", 2, *more)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert last_state(stopped)["global_step"] == last_state(straight)["global_step"] == 18
    assert_same_weights(stopped, straight, tolerance=0.0)


@pytest.mark.slow  # starts three Python processes
def test_a_gradient_that_is_no_number_on_one_process_stops_both(models: dict[str, str], tmp_path: Path) -> None:
    config = write_ladder_config(tmp_path, models)
    finished = launch(config, 2, "--model", "training_runs.NoNumberOnOneRank")
    assert finished.returncode != 0
    assert finished.stderr.count("error: A gradient of") == 2
    assert last_state(tmp_path)["global_step"] == 3, "the state before it"
    assert all(value.isfinite().all() for value in last_state(tmp_path)["state_dict"].values())


@pytest.mark.slow  # starts three Python processes
def test_a_reward_that_fails_on_one_process_stops_both(models: dict[str, str], tmp_path: Path) -> None:
    config = write_ladder_config(tmp_path, models)
    part = '{"odd": {"class_path": "training_runs.RefusesOnOneRank"}}'
    reward = f'{{"class_path": "ada.rewards.WeightedReward", "init_args": {{"rewards": {part}, "weights": {{"odd": 1}}}}}}'
    finished = launch(config, 2, "--data.init_args.reward", reward)
    assert finished.returncode != 0
    assert "error: the scorer of this process is broken" in finished.stderr
    assert "error: Process 1 stopped: the scorer of this process is broken" in finished.stderr
