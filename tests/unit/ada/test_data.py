from pathlib import Path
from types import SimpleNamespace

import pytest

from ada.data import PromptDataModule, PromptsError, load_prompts


def test_files_and_limits(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text("".join(f'{{"prompt": "p{index}"}}\n' for index in range(10)))
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    assert load_prompts(str(tmp_path), "validation", limit=3)[:] == {"prompt": ["p0", "p3", "p6"], "index": [0, 3, 6]}
    assert load_prompts(str(tmp_path / "list.txt"), "train")["prompt"] == ["one", "two"]
    with pytest.raises(ValueError, match="no column `text`; it has prompt"):
        load_prompts(str(tmp_path), "validation", column="text")
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl"):
        load_prompts(str(tmp_path), "test")


def test_class_labels_need_no_column_named() -> None:
    labels = load_prompts("configs/prompts/imagenet_labels.jsonl", "train", limit=3)
    assert labels["prompt"] == [0, 333, 666]


def test_an_epoch_is_gone_on_with_by_as_many_processes_as_shared_its_beginning() -> None:
    data = PromptDataModule()
    batches = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(ready=3))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=batches))
    data.trainer = SimpleNamespace(world_size=2, fit_loop=loop)
    state = data.state_dict()
    data.load_state_dict(state)
    data.trainer.world_size = 4
    with pytest.raises(PromptsError, match=r"in the middle of an epoch of 2 processes; 4 would repeat"):
        data.load_state_dict(state)
    data.load_state_dict({"batches": 3})  # of an earlier version
    batches.is_last_batch = True
    data.trainer.world_size = 2
    state = data.state_dict()
    data.trainer.world_size = 4
    data.load_state_dict(state)
