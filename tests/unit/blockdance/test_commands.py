"""What the commands refuse: in one line that says what to do, before anything is generated."""

import re
from pathlib import Path

import pytest

from blockdance.__main__ import main

NOWHERE = "no/such/pipeline"
"""Neither a folder nor what an id on the Hub looks like, so that nobody is asked for it."""


def calibrate_fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that `calibrate` ends with."""
    try:
        status = main(["calibrate", NOWHERE, *arguments])
    except SystemExit as left:
        status = int(left.code or 0)
    assert status in (1, 2)
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "outcome", "--block-caching", "0.1"], "`--by outcome` takes no --block-caching: leave it out"),
        (["--by", "outcome", "--figure", "f.png"], "`--by outcome` takes no --figure: "),
        (["--seeds", "1", "--batch-size", "5"], "takes no --seeds, --batch-size: leave it out, or give `--by outcome`"),
        (["--most", "5"], "`--by features` takes no --most"),
        (["--tolerance", "1", "--block-caching", "1"], "--block-caching: not allowed with argument --tolerance"),
        (["--tolerance", "nan"], "--tolerance: 'nan' is no finite number above 0"),
        (["--tolerance", "inf"], "--tolerance: 'inf' is no finite number above 0"),
        (["--block-caching", "0"], "--block-caching: '0' is no finite number above 0"),
        (["--by", "outcome", "--batch-size", "0"], "--batch-size: '0' is no whole number of 1 or more"),
        (["--steps", "0"], "--steps: '0' is no whole number of 1 or more"),
        (["--option", "num_inference_steps=3"], "--option: give num_inference_steps with --steps"),
        (["--device", "cuda:99"], "torch cannot use the device cuda:99 here. Give --device cpu"),
        ([], f"No diffusers pipeline could be loaded from {NOWHERE}. Give the folder of one, or the Hub id"),
    ],
)
def test_what_calibrate_cannot_do_is_told_at_once(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in calibrate_fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--output",), ("--by", "outcome", "--output"), ("--figure",)])
@pytest.mark.parametrize(("name", "why"), [("", "Is a directory"), ("file/plan.json", "Not a directory|File exists")])
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    arguments: tuple[str, ...], name: str, why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    line = calibrate_fails(capsys, *arguments, str(tmp_path / name))
    assert re.search(rf"error: {tmp_path / name} cannot be written \(({why})\)\. Name a file", line)


def test_what_fails_leaves_files_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text("{}")
    for name in ("old.json", "new.json"):
        calibrate_fails(capsys, "--output", str(tmp_path / name))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "{}")]
