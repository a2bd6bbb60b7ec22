from pathlib import Path
from types import SimpleNamespace

import pytest

from ada.data import PromptDataModule, PromptsError, check_held_out, load_prompts


def test_files_and_limits(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text("".join(f'{{"prompt": "p{index}"}}\n' for index in range(10)))
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    assert load_prompts(str(tmp_path), "validation", limit=3)[:] == {"prompt": ["p0", "p3", "p6"], "index": [0, 3, 6]}
    assert load_prompts(str(tmp_path / "list.txt"), "train")["prompt"] == ["one", "two"]
    with pytest.raises(ValueError, match="no column `text`; it has prompt"):
        load_prompts(str(tmp_path), "validation", column="text")
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl"):
        load_prompts(str(tmp_path), "test")


def test_blank_lines_and_a_byte_order_mark_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfred apple\n\n  \nblue bird\n\n")
    assert load_prompts(str(tmp_path / "list.txt"))[:] == {"prompt": ["red apple", "blue bird"], "index": [0, 3]}
    assert load_prompts(str(tmp_path / "list.txt"), limit=1)["prompt"] == ["red apple"]
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(PromptsError, match="there is no row"):
        load_prompts(str(tmp_path / "blank.txt"))


@pytest.mark.parametrize(
    ("name", "content"), [("train.csv", "prompt\na b\n"), ("train.txt", "a b\n\n"), ("train.json", '[{"prompt": "a b"}]')]
)
def test_a_folder_holds_splits_in_any_format(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert load_prompts(str(tmp_path), "train")["prompt"] == ["a b"]


@pytest.mark.parametrize("row", ['{"prompt": 3}', '{"prompt": ""}', '{"prompt": null}'])
def test_rows_that_are_no_prompts_are_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "list.jsonl").write_text('{"prompt": "a"}\n' + row)
    with pytest.raises(PromptsError, match=r"cannot be read|row 1 is"):
        load_prompts(str(tmp_path / "list.jsonl"))


def test_captions_to_validate_on_are_none_of_training(tmp_path: Path) -> None:
    check_held_out("captions", ["a", "b"], ["c"])
    check_held_out("labels.jsonl", [0, 1, 2], [0, 1])
    with pytest.warns(UserWarning, match="1 of 2 validation captions are training captions too, such as 'b'"):
        check_held_out("captions", ["a", "b"], ["b", "c"])
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    with pytest.raises(PromptsError, match=r"list\.txt is one file, which has no splits"):
        PromptDataModule(str(tmp_path / "list.txt")).setup("fit")


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
