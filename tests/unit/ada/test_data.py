from pathlib import Path

import pytest

from ada.data import load_prompts


def test_files_and_limits(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text("".join(f'{{"prompt": "p{index}"}}\n' for index in range(10)))
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    assert load_prompts(str(tmp_path), "validation", limit=3)[:] == {"prompt": ["p0", "p3", "p6"], "index": [0, 3, 6]}
    assert load_prompts(str(tmp_path / "list.txt"), "train")["prompt"] == ["one", "two"]
    with pytest.raises(ValueError, match="no column `text`; it has prompt"):
        load_prompts(str(tmp_path), "validation", column="text")
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl"):
        load_prompts(str(tmp_path), "test")
