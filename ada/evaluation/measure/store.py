"""Measurements on disk, written as they are made: a run that was killed goes on where it was, and so does one that asks for more."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ada.evaluation.methods.base import Method
from ada.files import whole
from ada.grid import to_picture
from ada.processor import processor_name
from ada.rollouts.fingerprints import digest

PACKAGES = ("blockdance-ada", "torch", "diffusers", "transformers", "cache-dit", "tgate", "tomesd")


class Store:
    """The measurements of one evaluation.

    They lie in `parts/<fingerprint>`, and kept images in `images/<fingerprint>`, so an evaluation of another model, with other prompts
    or metrics, or by other versions, never takes them for its own; further methods and noise seeds join those that are there.

    Args:
        folder: the evaluation's output folder; made if it is not there.
        settings: everything that the measurements of all methods depend on, as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        fingerprint = digest(settings)
        self.parts, self.images = folder / "parts" / fingerprint, folder / "images" / fingerprint
        self.write("settings", dict(settings))

    def read(self, name: str) -> Any:
        """What `write` wrote under this name; None where there is nothing."""
        path = self.parts / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, name: str, content: Any) -> None:
        """Writes JSON."""
        with _whole(self.parts / f"{name}.json") as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def reason(self, method: Method) -> str | None:
        """Why a method does not apply; None where it does, or has not run yet."""
        refused: str | None = self.read(f"{key_of(method)}/refused")
        return refused

    def refuse(self, method: Method, reason: str) -> None:
        """Keeps why a method does not apply."""
        self.write(f"{key_of(method)}/refused", reason)

    def batch(self, method: Method, batch: slice) -> Any:
        """A method's measurements of the cases at these places; None where it has not run yet."""
        return self.read(f"{key_of(method)}/batch-{batch.start}-{batch.stop}")

    def add_batch(self, method: Method, batch: slice, measurements: Mapping[str, Any], features: Tensor) -> None:
        """Keeps a batch: features `(images, width)` first, so that the measurements mark it as complete."""
        with _whole(self._features(method, batch)) as partial, partial.open("wb") as file:
            np.save(file, features.cpu().numpy())
        self.write(f"{key_of(method)}/batch-{batch.start}-{batch.stop}", measurements)

    def features(self, method: Method, batch: slice) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Features of a batch's images."""
        loaded: np.ndarray[Any, np.dtype[np.float32]] = np.load(self._features(method, batch))
        return loaded

    def _features(self, method: Method, batch: slice) -> Path:
        return self.parts / key_of(method) / f"features-{batch.start}-{batch.stop}.npy"

    def add_images(self, method: Method, places: Sequence[int], images: Tensor) -> None:
        """Keeps images `(images, 3, height, width)` or `(videos, frames, 3, height, width)` in [0, 1], at their places among all cases, as
        PNG; the frames of a video lie one above the other."""
        for place, image in zip(places, images, strict=True):
            tall = torch.cat(list(image), dim=-2) if image.ndim == 4 else image
            with _whole(self._picture(method, place)) as partial:
                to_picture(tall.cpu()).save(partial, "PNG")

    def has_images(self, method: Method, places: Sequence[int]) -> bool:
        """Whether the images of all these cases were kept."""
        return all(self._picture(method, place).is_file() for place in places)

    def image(self, method: Method, place: int, frames: int | None = None) -> Tensor:
        """An image `(3, height, width)`, or a video `(frames, 3, height, width)`, that was kept."""
        with Image.open(self._picture(method, place)) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        return pixels if frames is None else torch.stack(pixels.chunk(frames, dim=-2))

    def _picture(self, method: Method, place: int) -> Path:
        return self.images / key_of(method) / f"{place:05d}.png"


def _whole(path: Path) -> AbstractContextManager[Path]:
    """Where to write a file to, in a folder that is made if it is not there; see `whole`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return whole(path)


def key_of(method: Method) -> str:
    """Folder name of a method: readable, and another one when what it does is another."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", method.name).strip("-").lower()
    return f"{readable}-{digest([method.name, method.num_inference_steps, method.described])[:6]}"


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Versions of the packages that matter and of all peers, the processor that ran the model, and how many threads it had."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
