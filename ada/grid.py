"""The image grid: the reference on top, then every method's images and their differences; of videos, an animated one."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 8
LINE = 15
SMALLEST_SIDE = 96
LARGEST_SIDE = 192
AMPLIFIED = 4
FRAME_MILLISECONDS = 125


@dataclass(frozen=True)
class Row:
    """One method's row.

    Args:
        title: the method.
        images: `(3, height, width)` each, or `(frames, 3, height, width)`, in [0, 1], one per column.
        captions: one per image.
    """

    title: str
    images: Sequence[Tensor]
    captions: Sequence[str]


def save_grid(rows: Sequence[Row], prompts: Sequence[str], path: Path) -> None:
    """Writes the grid as PNG; of videos, as an animated WebP.

    Args:
        rows: the reference first.
        prompts: one per column.
        path: the file to write.
    """
    frames = rows[0].images[0].shape[0] if rows[0].images[0].ndim == 4 else None
    if frames is None:
        draw_grid(rows, prompts).save(path)
        return
    pictures = [draw_grid([_frame(row, number) for row in rows], prompts) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=FRAME_MILLISECONDS, loop=0, lossless=True)


def draw_grid(rows: Sequence[Row], prompts: Sequence[str]) -> Image.Image:
    """Draws the reference's row and, for every other one, a row of images and a row of their differences to the reference."""
    height, width = rows[0].images[0].shape[-2:]
    factor = max(1, -(-SMALLEST_SIDE // min(height, width)))
    shrink = min(1.0, LARGEST_SIDE / (factor * max(height, width)))
    side, tall = round(width * factor * shrink), round(height * factor * shrink)
    font, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (12, 11))
    titles = [_wrap(prompt, font, side) for prompt in prompts]
    beside = f"difference × {AMPLIFIED}"
    left = GAP + max(round(font.getlength(label)) for label in (beside, *(row.title for row in rows))) + 2 * GAP
    top = GAP + LINE * max(map(len, titles)) + GAP
    first, other = tall + LINE + GAP, 2 * tall + LINE + GAP
    canvas = Image.new("RGB", (left + len(prompts) * (side + GAP), top + first + (len(rows) - 1) * other), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(titles):
        centre = left + column * (side + GAP) + side / 2
        draw.text((centre, top - GAP), "\n".join(lines), "black", font, anchor="md", align="center", spacing=1)
    y = top
    for number, row in enumerate(rows):
        draw.text((left - 2 * GAP, y + tall / 2), row.title, "black", font, anchor="rm")
        if number:
            draw.text((left - 2 * GAP, y + tall * 1.5), beside, "#777777", small, anchor="rm")
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            x = left + column * (side + GAP)
            canvas.paste(to_picture(image, (side, tall)), (x, y))
            below = y + tall
            if number:
                difference = (0.5 + AMPLIFIED * (image - rows[0].images[column])).clamp(0, 1)
                canvas.paste(to_picture(difference, (side, tall)), (x, below))
                below += tall
            draw.text((x + side / 2, below + 2), caption, "#555555", small, anchor="ma")
        y += other if number else first
    return canvas


def to_picture(image: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """An image `(3, height, width)` in [0, 1] as a picture; enlarged in whole pixels, shrunk smoothly."""
    picture = Image.fromarray(np.asarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)))
    if size is None or size == picture.size:
        return picture
    enlarged = size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _frame(row: Row, number: int) -> Row:
    return Row(row.title, [video[number] for video in row.images], row.captions)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most four lines that fit the width."""
    letters = max(1, int(width / font.getlength("n")))
    return textwrap.wrap(text, letters, max_lines=4, placeholder="…") or [""]
