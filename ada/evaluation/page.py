"""One self-contained HTML page: everything that an evaluation found, to read, sort, compare and look at."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.complexity import TITLES, spending
from ada.evaluation.grid import FRAME_MILLISECONDS, to_picture
from ada.evaluation.heatmap import COLOURS, kinds_of, with_schedules
from ada.evaluation.methods import ADA, ADA_BUDGET
from ada.evaluation.metrics import DISTANCE
from ada.evaluation.pareto import POINTS_ONLY, styles_of
from ada.evaluation.results import COMPUTE_SAVED, Results

LARGEST = 256
DIGITS = 6
NOTES = (
    "Every method ran through the stock diffusers pipeline on the same prompts, noise, sampler, precision, batch size and machine.",
    "Each method ran one batch to warm up; then the methods took turns batch by batch, so a machine that slows down slows all of them. "
    "Batches smaller than the others are not timed.",
    "MACs are those of the denoising transformer, guidance branches included. For BlockDance they come from its report, for all others "
    "from counting what the model really executed.",
    "A peer that attaches without skipping anything, or fails, is no row of figures: it is listed with the reason.",
    "Fidelity (PSNR, SSIM, perceptual, latent, Fréchet) is measured to the images of full compute. Quality is the scorer's agreement of "
    "image and prompt.",
    "Peak memory is what one batch held above the weights. Cached is what the method kept between steps; a dash means that nobody knows.",
    "Intervals are percentile bootstraps over prompts (latency: over batches); several sampler seeds of a prompt are averaged first.",
)


def save_page(
    results: Results,
    images: Mapping[str, Sequence[Tensor]],
    places: Sequence[int],
    thumbnails: Mapping[int, Tensor],
    path: Path,
) -> None:
    """Writes the page; it needs no other file and no network.

    Args:
        results: what was measured.
        images: by method, an image `(3, height, width)` or video `(frames, 3, height, width)` in [0, 1] per place.
        places: the prompts that the images belong to.
        thumbnails: reference images by place, for the easiest and the hardest prompts.
        path: the file to write.
    """
    content = page_data(results, images, places, thumbnails)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    page = _template("index.html")
    page = page.replace("/*STYLE*/", _template("style.css"))
    page = page.replace("/*SCRIPT*/", _template("script.js") + _template("tables.js"))
    path.write_text(page.replace("/*DATA*/", text), encoding="utf-8")


def page_data(
    results: Results, images: Mapping[str, Sequence[Tensor]], places: Sequence[int], thumbnails: Mapping[int, Tensor]
) -> dict[str, Any]:
    """What the page's script draws."""
    spent = spenders(results)
    wanted = {place for each in spent for place in (*each["easiest"], *each["hardest"])}
    scheduled = with_schedules(results)
    shown: dict[str, Any] = _rounded(asdict(results))
    return shown | {
        "styles": {family: colour for family, (colour, _) in styles_of(results).items()},
        "points_only": list(POINTS_ONLY),
        "images": {name: [data_uri(image) for image in kept] for name, kept in images.items()},
        "places": list(places),
        "scheduled": [method.name for method in scheduled],
        "kinds": {
            method.name: "; ".join(f"{action}: {kind}" for action, kind in kinds_of(method).items()) for method in scheduled
        },
        "action_colours": list(COLOURS),
        "spending": _rounded(spent),
        "complexity_titles": TITLES,
        "thumbnails": {place: data_uri(thumbnails[place]) for place in sorted(wanted)},
        "notes": [*NOTES, *results.warnings],
    }


def spenders(results: Results) -> list[dict[str, Any]]:
    """Where the methods that decide per image spent their compute."""
    adaptive = [method for method in results.measured if method.family in (ADA, ADA_BUDGET)]
    return [
        asdict(spending(method.name, method.per_prompt[COMPUTE_SAVED], method.per_prompt[DISTANCE], results.complexity))
        for method in adaptive
    ]


def data_uri(image: Tensor) -> str:
    """An image, or the animation of a video, as a WebP inside a URI; large ones are shrunk."""
    frames = list(image) if image.ndim == 4 else [image]
    pictures = [to_picture(frame) for frame in frames]
    scale = min(1.0, LARGEST / max(pictures[0].size))
    if scale < 1:
        size = (round(pictures[0].width * scale), round(pictures[0].height * scale))
        pictures = [to_picture(frame, size) for frame in frames]
    written = io.BytesIO()
    animation: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": FRAME_MILLISECONDS, "loop": 0}
    pictures[0].save(written, "WEBP", lossless=scale == 1, quality=90, **(animation if len(pictures) > 1 else {}))
    return "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode()


def _template(name: str) -> str:
    return files("ada.evaluation").joinpath("page_template", name).read_text(encoding="utf-8")


def _rounded(tree: Any) -> Any:
    """The same with numbers of `DIGITS` digits: half the size, and more than any reader sees."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.{DIGITS}g}") if isinstance(tree, float) else tree
