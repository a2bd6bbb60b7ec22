"""A full disk: by a limit on the size of files, which the operating system enforces."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ada.rollouts.table import Case, Table
from ada.training import RunError
from ada.training.checkpoints import CheckpointFiles, read_checkpoint
from ada.training.files import write_whole

LIMIT = 20_000


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state"
    write_whole(file, b"old")
    with full_disk(), pytest.raises(OSError, match=r"state could not be written .*Make room"):
        write_whole(file, bytes(2 * LIMIT))
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path: Path) -> None:
    file, files = tmp_path / "checkpoints" / "last.ckpt", CheckpointFiles()
    files.save_checkpoint({"weights": torch.ones(3)}, file)
    files.raise_failure()
    with full_disk():
        files.save_checkpoint({"weights": torch.zeros(LIMIT)}, file)
    with pytest.raises(OSError, match=r"last\.ckpt could not be written"):
        files.raise_failure()
    files.raise_failure()  # it is raised once
    assert torch.equal(read_checkpoint(file)["weights"], torch.ones(3))


def test_a_cut_checkpoint_is_named(tmp_path: Path) -> None:
    file, files = tmp_path / "last.ckpt", CheckpointFiles()
    files.save_checkpoint({"weights": torch.ones(3)}, file)
    for left in (file.read_bytes()[:-300], b""):
        file.write_bytes(left)
        with pytest.raises(RunError, match=r"last\.ckpt cannot be read: \w.*\. Put an older copy"):
            read_checkpoint(file)


def test_rollouts_that_do_not_fit_leave_the_table_good(tmp_path: Path) -> None:
    first, second = Case("a", 0), Case("b", 1)
    table = Table(tmp_path, {})
    table.add([(first, "00")], {"damage": torch.ones(1)}, [(first, "0")], torch.ones(1, 4))
    with full_disk(), pytest.raises(OSError, match=r"could not be written.*Make room"):
        table.add([(second, "00")], {"damage": torch.ones(1)}, [(second, "0")], torch.ones(1, LIMIT))
    assert not table.knows(second, "00")
    again = Table(tmp_path, {})
    assert again.knows(first, "00")
    assert again.has_seen(first, "0")
    assert not again.knows(second, "00")
    assert not list(tmp_path.glob("*/*.partial"))
