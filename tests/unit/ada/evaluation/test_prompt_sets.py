"""What is asked for: prompt sets by name, columns that are found by their usual names, and how much of a quick look is timed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from ada.evaluation import request
from ada.evaluation.measure import TimingPlan
from ada.evaluation.methods import Method, one_by_one
from ada.evaluation.request import PROMPT_SETS, Request, find_prompts


def test_the_embedded_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[4])
    dataset = find_prompts("emoji", limit=4)
    assert dataset["index"] == [0, 32, 64, 96]
    assert dataset["prompt"][0] == "grinning face with sweat"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("parti", ("nateraw/parti-prompts", "train", "Prompt", 5)),
        ("drawbench", ("sayakpaul/drawbench", "train", "Prompts", 5)),
        ("coco", ("sayakpaul/coco-30-val-2014", "train", "caption", 5)),
    ],
)
def test_known_sets_know_their_columns(monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[object, ...]) -> None:
    """What is asked of the Hub; the Hub itself is not asked."""
    asked: list[tuple[object, ...]] = []

    def load(*arguments: object) -> Dataset:
        asked.append(arguments)
        return Dataset.from_dict({"prompt": ["a"], "index": [0]})

    monkeypatch.setattr(request, "load_prompts", load)
    find_prompts(name, limit=5)
    assert asked == [expected]


@pytest.mark.parametrize("column", sorted({known.column for known in PROMPT_SETS.values()}))
def test_a_local_copy_needs_no_column(tmp_path: Path, column: str) -> None:
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"id": 1, column: text}) for text in "xyz"), encoding="utf-8")
    assert find_prompts(str(tmp_path))["prompt"] == ["x", "y", "z"]


def test_an_unusual_column_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"description": "x"}), encoding="utf-8")
    with pytest.raises(ValueError, match="has no column"):
        find_prompts(str(tmp_path))
    assert find_prompts(str(tmp_path), column="description")["prompt"] == ["x"]


def test_a_quick_look_times_plain_pipelines_and_the_policy_alone_and_says_so() -> None:
    groups = ("plain", "blockdance", "static", "ada", "peers")
    methods = [Method(name=group, family=group, group=group, num_inference_steps=4) for group in groups]  # type: ignore[arg-type]
    quick = Request(prompts=["a"] * 8, indices=range(8), metrics={}, embed=lambda images: images)
    assert [method.name for method in methods if quick.times(method)] == ["plain", "ada"]
    assert quick.timing() == TimingPlan([1], 2, 24.0, weigh=False)
    alone = one_by_one(methods[-1])
    assert [quick.wants(method) for method in (methods[-1], alone)] == [True, False]
    assert str(quick.quick_look([*methods, alone])).endswith(
        "at batch 1 and in two rounds alone, and no memory was weighed. Left out: peers, batch 1."
    )
    asked = replace(quick, rounds=2)
    assert all(asked.times(method) for method in methods)
    assert asked.timing() == TimingPlan([1, 8], 2, 24.0)
    assert str(asked.quick_look([alone])).endswith("tables take 128 or more.")
    whole = replace(quick, prompts=["a"] * 128, indices=range(128))
    assert all(whole.times(method) for method in methods)
    assert whole.wants(alone)
    assert whole.timing() == TimingPlan([1, 8], 10, 180.0)
    assert whole.quick_look([alone]) is None
