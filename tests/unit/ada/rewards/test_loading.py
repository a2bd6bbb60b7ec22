"""Where weights are looked for, and what is never unpickled."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from ada.rewards import WeightsError
from ada.rewards.loading import find_weights, read_tensors

NAMES = ("ImageReward.pt", "model.safetensors")


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_files_and_folders_are_found_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert find_weights(str(tmp_path), NAMES) == tmp_path / "model.safetensors"
    (tmp_path / "ImageReward.pt").touch()
    assert find_weights(str(tmp_path), NAMES) == tmp_path / "ImageReward.pt"
    assert find_weights(str(tmp_path / "model.safetensors"), NAMES) == tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"holds none of other\.pt"):
        find_weights(str(tmp_path), ["other.pt"])


def test_a_hub_id_is_resolved_as_the_hub_library_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that an earlier run left in the Hub's cache, and no network: only the second name is there."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--scorer"
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_weights("somebody/scorer", NAMES) == repository / "snapshots" / revision / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"none of ImageReward\.pt, model\.safetensors could be had from the Hub"):
        find_weights("somebody/nothing", NAMES)
    with pytest.raises(FileNotFoundError, match=r"Neither a file nor a folder is at '\./a/missing/file\.pt'"):
        find_weights("./a/missing/file.pt", NAMES)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "code": Code(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=r"bad\.pt is no file of tensors alone, and nothing else is unpickled"):
        read_tensors(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "bad.pt").write_bytes(b"an error page of a web server")
    with pytest.raises(WeightsError, match=r"bad\.pt is no file of tensors alone"):
        read_tensors(tmp_path / "bad.pt")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).touch()
        with pytest.raises(WeightsError, match=rf"{name} is no file of tensors alone"):
            read_tensors(tmp_path / name)
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="not a dictionary of tensors by name"):
        read_tensors(tmp_path / "bad.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_old_and_new_files_and_nested_dictionaries(tmp_path: Path, new_format: bool) -> None:
    for content in ({"weight": torch.ones(2)}, {"state_dict": {"weight": torch.ones(2)}}):
        torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=new_format)
        tensors = read_tensors(tmp_path / "file.pth", nested="state_dict")
        assert list(tensors) == ["weight"]
        assert tensors["weight"].tolist() == [1.0, 1.0]
