"""One self-contained HTML page: everything that an evaluation found, to read, sort, compare and look at."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.measure import Results, metrics
from ada.evaluation.methods.base import FEWER_STEPS
from ada.evaluation.report.figures import BANDED, GROUPS, PANEL_TOP, colours_of, with_schedules
from ada.evaluation.report.findings import COMPARABLE_SAVING, MIXTURE, headline_of, spending, static_curve
from ada.grid import FRAME_MILLISECONDS, to_picture
from ada.statistics import FEW, LEAST_SPREAD, SPARSE, STUDENT

ImageOf = Callable[[str, int], Tensor]
"""By a method's name and the prompt's place, an image `(3, height, width)` or video `(frames, 3, height, width)` in [0, 1]; read when it
is asked for, since all of them at once are gigabytes."""
LARGEST = 256
COMPLEXITY_TITLES = {
    metrics.SENSITIVITY: "the damage of searched schedules, by which an oracle spends",
    metrics.EDGE_DENSITY: "edge density of the reference",
    metrics.PROMPT_LENGTH: "words in the prompt",
}
DIGITS = 6
NOTES = (
    "Every method ran through the stock diffusers pipeline on the same prompts, noise, sampler, precision, batch size and machine.",
    "Damage is the perceptual distance d to the image of full compute. A few images that turn into another picture own its raw mean, so "
    "the headlines are bounded damage, d / (d + {tau:g}), and the share of images visibly changed, d > {tau:g}; median, 0.9 quantile and "
    "raw mean stand beside them.",
    "Intervals hold 95 % on log-normal damage, by simulation: studentised bootstrap over prompts for means, Wilson's score interval for "
    "shares, Newcombe's for their differences, Woodruff's for quantiles. Noise seeds of a prompt are averaged first; of rows that decide "
    "for a whole batch, a batch counts as one prompt. The raw mean has none, because none holds.",
    "The best static mixture takes two ways that do not look at the image (plain steps, BlockDance, searched schedules), each for a part "
    "of the images, at the same mean compute. It is chosen by the figures shown, so it looks a little better "
    "than it is, and nothing that beats it does.",
    "Latency: after a warm-up, rounds at each batch size in which every timed method runs once, in an order drawn anew, on images on which "
    "it computes what it computes on average; medians, with intervals from six rounds on.",
    "MACs are those of the denoising transformer, guidance branches included, and of Ada's policy. For BlockDance they come from its "
    "report, for all others from counting what the model really executed.",
    "Peers run at their own documented defaults, and in a sweep at settings around them. A peer that attaches without skipping "
    "anything, or fails, is no row of figures: it is listed with the reason.",
    "Quality is the scorer's agreement of image and prompt. Peak memory is what one batch held above the weights. Cached is what the "
    "method kept between steps; a dash means that nobody knows.",
)


def save_page(results: Results, image_of: ImageOf, shown: Sequence[int], path: Path) -> None:
    """Writes the page, which needs no other file and no network, with the images at the places that are shown, and of the reference also
    those of the easiest and the hardest prompts."""
    # numbers of `DIGITS` digits: half the size, and more than any reader sees
    content = json.loads(
        json.dumps(page_data(results, image_of, shown), default=asdict),
        parse_float=lambda text: float(f"{float(text):.{DIGITS}g}"),
    )
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _template("index.html")
    page = page.replace("/*STYLE*/", _template("style.css"))
    page = page.replace("/*SCRIPT*/", _template("script.js") + _template("tables.js"))
    path.write_text(page.replace("/*DATA*/", text), encoding="utf-8")


def page_data(results: Results, image_of: ImageOf, shown: Sequence[int]) -> dict[str, Any]:
    """What the page's script draws."""
    spent = spending(results)
    extremes = sorted({place for each in spent for place in (*each.easiest, *each.hardest)})
    scheduled = with_schedules(results)
    content = asdict(results)
    for method in content["methods"]:
        del method["distances"]  # per case: `results.json` has them
    return content | {
        "headline": headline_of(results),
        "quick_look": results.is_quick_look,
        "groups": GROUPS,
        "banded": list(BANDED),
        "label_saving": COMPARABLE_SAVING,
        "statistics": {"student": list(STUDENT), "few": FEW, "sparse": SPARSE, "spread": LEAST_SPREAD},
        "fewer_steps": FEWER_STEPS,
        "panel_top": PANEL_TOP,
        "arrows": {json.dumps(better): arrow for better, arrow in metrics.ARROWS.items()},
        "mixture": {"name": MIXTURE, "points": static_curve(results)},
        "kinds_of_match": [metrics.STATIC_MIXTURE, metrics.SAME_COMPUTE, metrics.SAME_LATENCY],
        "costs": list(metrics.COSTS),
        "headlines": [metrics.BOUNDED, metrics.VISIBLE],
        "images": {method.name: [data_uri(image_of(method.name, place)) for place in shown] for method in results.measured},
        "places": list(shown),
        "scheduled": [method.name for method in scheduled],
        "action_colours": colours_of(scheduled),
        "spending": spent,
        "complexity_titles": COMPLEXITY_TITLES,
        "thumbnails": {place: data_uri(image_of(results.methods[0].name, place)) for place in extremes},
        "notes": [*(note.format(tau=results.settings["visible_damage"]) for note in NOTES), *results.warnings],
    }


def data_uri(image: Tensor) -> str:
    """An image, or the animation of a video, as a WebP inside a URI; large ones are shrunk."""
    height, width = image.shape[-2:]
    scale = min(1.0, LARGEST / max(height, width))
    size = (round(width * scale), round(height * scale))
    first, *others = [to_picture(frame, size) for frame in (image if image.ndim == 4 else [image])]
    animation: dict[str, Any] = {"save_all": True, "append_images": others, "duration": FRAME_MILLISECONDS, "loop": 0}
    written = io.BytesIO()
    # method 2: a quarter of the time for a twentieth more bytes
    first.save(written, "WEBP", lossless=scale == 1, quality=90, method=2, **(animation if others else {}))
    return "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode()


def _template(name: str) -> str:
    return files("ada.evaluation.report").joinpath("page_template", name).read_text(encoding="utf-8")
