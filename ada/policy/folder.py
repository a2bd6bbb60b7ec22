"""Policy folders: `config.json` and `model.safetensors`, loaded strictly; and what may lie beside them.

`config.json` says `format`, `version` and `form`, then the constructor's arguments. Whatever is added to it raises the version. Every
version is read for ever (`tests/golden`); a later one than this package knows is refused, since it may mean something else.

1. the constructor's arguments alone
2. `format`, `version`, `form`; a ladder's coefficients are products of three tensors of a `rank`
3. `base_model.name`: the Hub id of the model that the policy was trained on; coefficients as they are
4. `pooling` of the paper's policy; before, all of them pooled in raster order
5. `error_variance` of a ladder's predictions; before, none was reckoned with
6. `batch_compute`: a budget that the images of a batch share
7. `prompt_width` of the paper's policy: what it sees, where the base model's configuration does not tell
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ada.files import whole
from blockdance import BlockDanceError

VERSION = 7
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OUTCOME, TRAINING = "outcome.json", "training.json"
BESIDE = (CARD, OUTCOME, TRAINING, "*.png", "table.md")
"""What is published with a policy and is not needed to run it."""


class IncompatiblePolicyError(BlockDanceError):
    """A policy and a model that do not belong together, or a folder that holds no policy that can be read."""


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that tell weights apart, the same on every machine and device."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def write_folder(folder: Path, form: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes config and weights, each file whole or not at all; then card and figures of the weights that lay there go into `earlier/`.

    Args:
        folder: made if it is not there.
        form: the policy class's name in the config.
        config: its constructor's arguments.
        weights: its `state_dict`.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _digest_in(folder)
    content = {"format": "blockdance-ada", "version": VERSION, "form": form} | dict(config)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        with whole(folder / WEIGHTS) as weights_file, whole(folder / CONFIG) as config_file:
            config_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            save_file(kept, weights_file, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise OSError(f"The policy could not be written to {folder}: {error}. Make room, or choose another folder.") from error
    if earlier is not None and earlier != digest_of(weights):
        _put_aside(folder, earlier)


def _digest_in(folder: Path) -> str | None:
    """The digest of the weights in a folder; "unknown" where they cannot be read, None where it holds no policy."""
    if not (folder / CONFIG).is_file():
        return None
    try:
        return digest_of(read_folder(folder, str(folder))[2])
    except IncompatiblePolicyError:
        return "unknown"


def _put_aside(folder: Path, digest: str) -> None:
    """Moves card and figures into `earlier/`, into a folder named after the weights that they are of."""
    for file in [file for pattern in BESIDE for file in folder.glob(pattern)]:
        place = folder / "earlier" / digest
        place.mkdir(parents=True, exist_ok=True)
        file.replace(place / file.name)


def read_folder(folder: Path, name: str) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Reads a policy folder.

    Args:
        folder: where it is.
        name: what the user called it.

    Returns:
        The policy class's name, its constructor's arguments, its weights.

    Raises:
        IncompatiblePolicyError: the folder holds something else, an incomplete file, or a policy of a later version.
    """
    form, version, config = _read_config(folder / CONFIG, name)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise IncompatiblePolicyError(f"{name} has no {WEIGHTS}; other formats are not read, because they may run code.")
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise IncompatiblePolicyError(f"{WEIGHTS} of {name} is incomplete or no safetensors file: {error}") from error
    if config.pop("rank", None) is not None:
        tensors = _multiplied(tensors)
    if form == "ladder" and version < 5 and "coefficients" in tensors:
        stages, _, rungs = tensors["coefficients"].shape
        tensors["error_variance"] = torch.zeros(stages, rungs)
    return form, config, tensors


def _multiplied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a version 2 ladder as later versions have them; where one is missing, the loading that follows says so."""
    if not {"direction", "stage_scale", "slope"} <= set(tensors):
        return tensors
    direction, scale, slope = (tensors.pop(name) for name in ("direction", "stage_scale", "slope"))
    return tensors | {"coefficients": torch.einsum("wr,sr,rk->swk", direction, scale, slope)}


def _read_config(file: Path, name: str) -> tuple[str, int, dict[str, Any]]:
    """The policy class's name, the version, and the constructor's arguments."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IncompatiblePolicyError(f"{name} holds no BlockDance-Ada policy: it has no {CONFIG}.") from error
    except (OSError, ValueError) as error:
        raise IncompatiblePolicyError(f"{CONFIG} of {name} cannot be read: {error}") from error
    if isinstance(content, dict) and "version" not in content and "action_costs" in content:
        return "steps", 1, content | {"pooling": "raster"}
    if not isinstance(content, dict) or content.pop("format", None) != "blockdance-ada":
        raise IncompatiblePolicyError(f"{name} holds no BlockDance-Ada policy: its {CONFIG} does not say so.")
    version, form = content.pop("version", None), content.pop("form", None)
    if type(version) is not int or version < 2:
        raise IncompatiblePolicyError(f"{CONFIG} of {name} has no valid `version`: {version!r}. Fetch the policy again.")
    if version > VERSION:
        raise IncompatiblePolicyError(
            f"The policy in {name} has format version {version}; this package reads up to {VERSION}. Update "
            "the package `blockdance-ada`: a clone by `git pull`."
        )
    if form == "steps" and version < 4:
        content["pooling"] = "raster"
    return str(form), version, content
