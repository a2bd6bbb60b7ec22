"""Prompt sets by name: where they are, and which column holds the prompt."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ada.data import load_prompts


@dataclass(frozen=True)
class PromptSet:
    """A known set.

    Args:
        source: Hub id, or folder.
        split: its split.
        column: the column that holds the prompt.
        about: what it is.
    """

    source: str
    split: str
    column: str
    about: str


PROMPT_SETS = {
    "emoji": PromptSet("checkpoints/emoji-prompts", "test", "prompt", "128 held-out captions of the embedded model"),
    "parti": PromptSet("nateraw/parti-prompts", "train", "Prompt", "PartiPrompts, 1632 prompts (Yu et al., 2022)"),
    "drawbench": PromptSet("sayakpaul/drawbench", "train", "Prompts", "DrawBench, 200 prompts (Saharia et al., 2022)"),
    "coco": PromptSet("sayakpaul/coco-30-val-2014", "train", "caption", "30 000 captions of COCO 2014's validation images"),
}
COLUMNS = ("prompt", "Prompt", "Prompts", "prompts", "caption", "text")
"""Tried in this order for a set that has no name here."""


def find_prompts(source: str, split: str | None = None, column: str | None = None, limit: int | None = None) -> Dataset:
    """Loads prompts with the columns `prompt` and `index`.

    Args:
        source: a name of `PROMPT_SETS`; or a folder, a file or the Hub id of a data set, as in `ada.data.load_prompts`.
        split: of the data set; by default a named set's own, else `test`.
        column: that holds the prompt; by default a named set's own, else the usual names are tried.
        limit: take only so many, spread evenly.

    Raises:
        FileNotFoundError: `source` looks like a path that is not there.
        ValueError: no such column.
    """
    known = PROMPT_SETS.get(source)
    if known is not None and not Path(source).exists():
        return load_prompts(known.source, split or known.split, column or known.column, limit)
    candidates = [column] if column else list(COLUMNS)
    for name in candidates:
        try:
            return load_prompts(source, split or "test", name, limit)
        except ValueError as error:
            if "has no column" not in str(error) or name == candidates[-1]:
                raise
    raise AssertionError("unreachable: the last candidate returns or raises")
