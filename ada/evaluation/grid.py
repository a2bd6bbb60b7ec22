"""The image grid: a row per method, a column per prompt, the reference on top."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ada.evaluation.results import COMPUTE_SAVED
from ada.evaluation.run import Record

GAP = 8
LINE = 15
SMALLEST_SIDE = 96


def save_grid(records: Sequence[Record], prompts: Sequence[str], path: Path) -> None:
    """Writes the images that the records kept.

    Args:
        records: one per method, the reference first; all kept the same prompts.
        prompts: all prompts.
        path: the PNG file to write.
    """
    kept = sorted(records[0].images)
    height, width = next(iter(records[0].images.values())).shape[-2:]
    factor = max(2, -(-SMALLEST_SIDE // min(height, width)))
    side, tall = width * factor, height * factor
    font = ImageFont.truetype(findfont("DejaVu Sans"), 12)
    small = ImageFont.truetype(findfont("DejaVu Sans"), 11)
    titles = [_wrap(prompts[place], font, side) for place in kept]
    left = GAP + max(round(font.getlength(record.method.name)) for record in records) + 2 * GAP
    top = GAP + LINE * max(map(len, titles)) + GAP
    row = tall + LINE + GAP
    canvas = Image.new("RGB", (left + len(kept) * (side + GAP), top + len(records) * row), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(titles):
        centre = left + column * (side + GAP) + side / 2
        draw.text((centre, top - GAP), "\n".join(lines), "black", font, anchor="md", align="center", spacing=1)
    for index, record in enumerate(records):
        y = top + index * row
        draw.text((left - 2 * GAP, y + tall / 2), record.method.name, "black", font, anchor="rm")
        for column, place in enumerate(kept):
            x = left + column * (side + GAP)
            canvas.paste(_picture(record.images[place], (side, tall)), (x, y))
            caption = f"{record.per_prompt[COMPUTE_SAVED][place]:.0%} saved" if index else "reference"
            draw.text((x + side / 2, y + tall + 2), caption, "#555555", small, anchor="ma")
    canvas.save(path)


def _picture(image: Tensor, size: tuple[int, int]) -> Image.Image:
    pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most four lines that fit the width."""
    letters = max(1, int(width / font.getlength("n")))
    return textwrap.wrap(text, letters, max_lines=4, placeholder="…") or [""]
