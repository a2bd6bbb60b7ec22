"""What the command line settles before anything is made."""

from pathlib import Path

import pytest

from ada.training import RunError, TrainingCLI


@pytest.mark.parametrize(
    ("config", "folders"),
    [
        ([], ["data.init_args.table"]),
        (["--config", "configs/paper_ada.yaml"], ["model.init_args.table", "model.init_args.tape"]),
    ],
)
def test_logs_go_where_the_run_goes_unless_they_are_sent_elsewhere(
    tmp_path: Path, config: list[str], folders: list[str]
) -> None:
    kept = (part for folder in folders for part in (f"--{folder}", str(tmp_path / folder)))
    command = [*config, *kept, "--trainer.default_root_dir", str(tmp_path / "run")]
    assert TrainingCLI(command).trainer.logger.save_dir == str(tmp_path / "run")
    sent = TrainingCLI([*command, "--trainer.logger.init_args.save_dir", str(tmp_path / "logs")])
    assert sent.trainer.logger.save_dir == str(tmp_path / "logs")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--trainer.max_epoch", "3"],
        ["--model.init_args.learning_rat", "1"],
        ["--trainer.max_epochs", "three"],
        ["--config", "no.yaml"],
    ],
)
def test_what_is_wrong_stands_alone(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        TrainingCLI(wrong)
    told = capsys.readouterr().err
    assert wrong[1] in told or wrong[0].rpartition(".")[2] in told
    assert "--trainer.devices" not in told, "nor do a hundred options that are right"
    assert len(told.splitlines()) < 15


@pytest.mark.parametrize(
    ("usual", "told"),
    [
        (["--ckpt_path", "last.ckpt"], r"There is no `--ckpt_path`.* when the same command is given again"),
        (["--ckpt_path=last.ckpt"], r"There is no `--ckpt_path`.* when the same command is given again"),
        (["--trainer.callbacks+=ModelCheckpoint"], r"Leave `ModelCheckpoint` out of `trainer\.callbacks`"),
        (["--trainer.callbacks", "ModelCheckpoint"], r"Leave `ModelCheckpoint` out of `trainer\.callbacks`"),
    ],
)
def test_what_is_usual_elsewhere_is_told_how_it_is_done_here(usual: list[str], told: str) -> None:
    with pytest.raises(RunError, match=told):
        TrainingCLI(usual)


def test_other_callbacks_are_welcome(tmp_path: Path) -> None:
    kept = ["--data.init_args.table", str(tmp_path / "table"), "--trainer.default_root_dir", str(tmp_path / "run")]
    callbacks = TrainingCLI([*kept, "--trainer.callbacks+=LearningRateMonitor"]).trainer.callbacks
    assert "LearningRateMonitor" in {type(callback).__name__ for callback in callbacks}
