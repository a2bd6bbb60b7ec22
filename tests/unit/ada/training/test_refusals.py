"""What cannot be trained is refused in one line that says what to do, before anything is run."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from ladders import KINDS, build_frozen, build_reward

import train
from ada.data import PromptsError, load_prompts
from ada.training import EXPECTED_ERRORS, RunError, StepTraining, quieten_libraries
from ada.training.errors import together
from ada.training.health import check_precision
from ada.training.quiet import LIGHTNING_CHATTER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.init_args.pipeline.init_args.model", "./nothing"], "^No diffusers pipeline in nothing"),
        (["--data.init_args.batch_size", "0"], "^`batch_size` must be 1 or more; got 0"),
        (["--data.init_args.train_limit", "0"], "^`train_limit` must be 1 or more; got 0"),
        (["--data.init_args.validation_limit", "-3"], "^`validation_limit` must be 1 or more; got -3"),
        (
            ["--data.init_args.pipeline.init_args.arguments", "{num_inference_steps: 8}"],
            "^`arguments` must not hold `num_inference_steps`, which the setting of this name gives",
        ),
        (["--data.init_args.rollout_processes", "0"], "^`rollout_processes` must be 1 or more; got 0"),
        (["--data.init_args.ladder", "nothing.json"], "^No ladder in nothing.json"),
        (["--trainer.precision", "bf16-mixed"], "^`trainer.precision` must be 32-true; got bf16-mixed"),
    ],
)
def test_settings_are_refused_by_whom_they_are_meant_for(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        train.main(["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_precisions_that_scale_gradients_or_round_the_policy_are_refused(precision: str) -> None:
    check_precision("32-true")
    with pytest.raises(RunError, match=f"must be 32-true; got {precision}"):
        check_precision(precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_configuration_for_gpus_says_so_before_a_model_is_loaded() -> None:
    with pytest.raises(RunError, match=r"no GPU that torch can use.*--trainer\.accelerator cpu"):
        train.main(["--config", "configs/pixart_alpha.yaml"])


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="asks the network")
def test_a_model_that_is_not_there_without_a_network_is_one_line() -> None:
    no_gpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    with pytest.raises(
        RunError, match=r"^The pipeline PixArt-alpha/\S+ could not be loaded: .*Check the Hub id, the network"
    ) as error:
        train.main(["--config", "configs/pixart_alpha.yaml", *no_gpu])
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="asks the network")
def test_prompts_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    folder = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    with pytest.raises(FileNotFoundError, match=r"^No prompts at 'nope': there is no such folder or file here") as error:
        train.main([*folder, "--data.source", "nope"])
    assert "\n" not in str(error.value)
    assert isinstance(error.value, EXPECTED_ERRORS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("b.jsonl", b'{"words": "a cat"}\n', "has no column `prompt`; it has words. Set `column`"),
        ("c.jsonl", b'{"prompt": "a cat"}\n{"prompt": null}\n', "row 1 is None"),
        ("d.jsonl", b'{"prompt": "a cat"\n', "cannot be read as json"),
        ("e.csv", b"prompt\ncaf\xe9\n", "cannot be read as csv: .*The file must be UTF-8"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(PromptsError, match=message) as error:
        load_prompts(str(file), "train")
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_good_prompts_are_spread_over_the_split(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": str(number)}) for number in range(6)))
    assert load_prompts(str(file), "train", limit=3)["prompt"][:] == ["0", "2", "4"]
    with pytest.raises(PromptsError, match=r"\(`limit`\) must be 1 or more; got 0"):
        load_prompts(str(file), "train", limit=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "`group_size` must be 2 or more; got 1"),
        ({"group_size": 0, "advantage": "none"}, "`group_size` must be 1 or more; got 0"),
        ({"updates_per_rollout": 0}, "`updates_per_rollout` must be 1 or more; got 0"),
    ],
)
def test_numbers_of_the_papers_algorithm_are_checked_before_anything_is_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepTraining(build_frozen(), build_reward(), KINDS, **options)
    StepTraining(build_frozen(), build_reward(), KINDS, group_size=1, advantage="none")


def test_chatter_is_dropped_and_news_is_not() -> None:
    quieten_libraries()
    keep = logging.getLogger("lightning.pytorch.utilities.rank_zero").filter
    record = logging.LogRecord("lightning", logging.INFO, "", 0, "💡 Tip: For seamless cloud uploads, install it", None, None)
    assert not keep(record)
    record.msg = "GPU available: True (cuda), used: False"
    assert keep(record)
    assert LIGHTNING_CHATTER.match("Signal received") is None


def test_alone_a_process_raises_its_own_error() -> None:
    def fail() -> None:
        raise OSError("no room")

    assert together(lambda: 3) == 3
    with pytest.raises(OSError, match="no room"):
        together(fail)
