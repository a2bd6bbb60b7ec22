"""Composed captions: apart from the emoji captions, reproducible, in the shares asked for."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROMPTS = ROOT / "checkpoints" / "emoji-prompts"


@pytest.fixture(scope="module")
def composer():
    """The example's module; examples are scripts, not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "emoji")
        import compose_prompts

        yield compose_prompts
        for name in ("compose_prompts", "build_dataset"):
            sys.modules.pop(name, None)


def prompts(split: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (PROMPTS / f"{split}.jsonl").read_text().splitlines()]


def sorted_words(caption: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[^\s:,]+", caption.lower())))


def test_shipped_captions_are_apart_from_each_other_and_from_every_emoji_caption():
    composed = {split: [sorted_words(caption) for caption in prompts(f"composed_{split}")] for split in ("train", "validation")}
    assert {split: len(set(captions)) for split, captions in composed.items()} == {"train": 3000, "validation": 300}
    assert {split: len(captions) for split, captions in composed.items()} == {"train": 3000, "validation": 300}
    emojis = {sorted_words(caption) for split in ("train", "validation", "test") for caption in prompts(split)}
    assert not set(composed["train"]) & set(composed["validation"])
    assert not emojis & {*composed["train"], *composed["validation"]}


def test_shipped_captions_contain_no_test_caption():
    tests = [set(sorted_words(caption)) for caption in prompts("test")]
    for caption in prompts("composed_train") + prompts("composed_validation"):
        assert not any(test <= set(sorted_words(caption)) for test in tests), caption


@pytest.mark.parametrize(
    ("caption", "admitted"),
    [
        ("apple red", False),  # a caption of train, its words in another order
        ("Red Apples", False),
        ("spicy burrito", False),  # contains a test caption
        ("gray heart", False),  # a test caption, spelt the other way
        ("tiny red square", False),  # "small red square", another word for it
        ("heart in the grey", False),
        ("cat with hat with cat", False),
        ("keycap: 7", False),
        ("keycap: +", True),
        ("green apple", True),
        ("red heart", True),
    ],
)
def test_filter(composer, caption, admitted):
    assert (
        composer.Filter(["red apple", "keycap: 7"], ["burrito", "grey heart", "small red square"]).admits(caption) is admitted
    )


def test_filter_admits_a_caption_once(composer):
    admitted = composer.Filter([], [])
    assert [admitted.admits(caption) for caption in ("blue cat", "cat, blue", "blue dog")] == [True, False, True]


@pytest.fixture
def vocabulary(composer):
    words = {"colour": ["red", "blue", "green"], "animal": ["cat", "dog", "fox"], "tag:food": ["soup", "taco", "pie"]}
    templates = {"animals": {"{colour} {animal}": 2, "{animal}": 1}, "food": {"{tag}": 1}}
    return composer.Vocabulary(words, templates, {"animals": 6, "food": 3})


def test_composing_keeps_the_shares_and_depends_on_the_seed_alone(composer, vocabulary):
    first, again, other = (composer.compose(vocabulary, 6, composer.Filter([], []), seed) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(caption in vocabulary.words["tag:food"] for caption in first) == {False: 4, True: 2}


def test_an_exhausted_group_is_named(composer, vocabulary):
    with pytest.raises(ValueError, match="`food` gave 2 captions of 3"):
        composer.compose(vocabulary, 9, composer.Filter(["soup"], []), 0)


def test_quotas_go_to_the_largest_remainders(composer):
    assert composer.quotas({"a": 5, "b": 3, "c": 2}, 7) == {"a": 4, "b": 2, "c": 1}  # 3.5, 2.1, 1.4
