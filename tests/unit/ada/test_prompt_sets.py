"""Prompt sets by name, and columns that are found by their usual names."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from ada import data
from ada.data import PROMPT_SETS, PromptDataModule, load_prompts


def test_the_embedded_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    dataset = load_prompts("emoji", limit=4)
    assert dataset["index"] == [0, 32, 64, 96]
    assert dataset["prompt"][0] == "grinning face with sweat"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("parti", ("nateraw/parti-prompts", "train", "Prompt")),
        ("drawbench", ("sayakpaul/drawbench", "train", "Prompts")),
        ("coco", ("sayakpaul/coco-30-val-2014", "train", "caption")),
    ],
)
def test_known_sets_know_their_columns(monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str, str, str]) -> None:
    """What is asked of the Hub; the Hub itself is not asked. The column that is the set's own comes first, whatever else is there."""
    source, split, column = expected
    asked: list[tuple[str, str]] = []

    def load(source: str, *, split: str) -> Dataset:
        asked.append((source, split))
        return Dataset.from_dict({"prompt": ["wrong"] * 9, column: ["right"] * 9})

    monkeypatch.setattr(data, "load_dataset", load)
    assert load_prompts(name, limit=5)["prompt"] == ["right"] * 5
    assert asked == [(source, split)]


@pytest.mark.parametrize("column", sorted({known.column for known in PROMPT_SETS.values()}))
def test_a_local_copy_needs_no_column(tmp_path: Path, column: str) -> None:
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"id": 1, column: text}) for text in "xyz"), encoding="utf-8")
    assert load_prompts(str(tmp_path))["prompt"] == ["x", "y", "z"]


def test_training_needs_no_column_either(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": 1, "caption": "x"}), encoding="utf-8")
    assert PromptDataModule(str(tmp_path)).prompts("train")["prompt"] == ["x"]


def test_an_unusual_column_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"description": "x"}), encoding="utf-8")
    with pytest.raises(ValueError, match="has no column"):
        load_prompts(str(tmp_path))
    assert load_prompts(str(tmp_path), column="description")["prompt"] == ["x"]
