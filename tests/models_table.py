"""Writes the table of supported models into docs/models.md, from the layouts that the conformance test holds.

python tests/models_table.py
"""

from pathlib import Path

import torch
from diffusers.models import transformers

from blockdance import BlockDanceConfig
from blockdance.layouts import LAYOUTS, UNSUPPORTED, BlockLayout, block_stack

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- table: start -->\n", "<!-- table: end -->\n"


def table() -> str:
    """A row per class: block lists, default boundary with the class's default arguments, calls of a batch of mixed actions, notes."""
    head = ("class", "blocks, in execution order", "default boundary", "mixed actions", "notes")
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, layout in sorted(LAYOUTS.items()):
        if hasattr(transformers, name):
            lists = (", " if not layout.interleaved else ", in turns with ").join(f"`{path}`" for path in layout.lists)
            rows.append(f"| `{name}` | {lists} | {_default_boundary(name, layout)} | {_calls(layout)} | {layout.note} |")
    rows += [f"| `{name}` | – | – | – | Not supported: {reason}. |" for name, reason in sorted(UNSUPPORTED.items())]
    return "\n".join(rows) + "\n"


def _default_boundary(name: str, layout: BlockLayout) -> str:
    try:
        with torch.device("meta"):
            blocks = len(block_stack(getattr(transformers, name)(), layout))
    except (TypeError, ValueError):  # some classes cannot be made without arguments
        return "20 of 28 blocks, scaled"
    return f"{BlockDanceConfig().kind(blocks).boundary} of {blocks}"


def _calls(layout: BlockLayout) -> str:
    """How a batch of images that take different actions runs, where the call has nothing that forbids it."""
    if layout.one_image or not layout.splits_rows({}):
        return "–"
    return "one call" if layout.joins_rows({}) else "a call for each"


def page_with_table() -> str:
    """The page with today's table in the place of the old one."""
    before, rest = PAGE.read_text().split(START)
    _, after = rest.split(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
    print(f"written: {PAGE}")
