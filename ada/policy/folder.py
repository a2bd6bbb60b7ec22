"""Policy folders, on disk and on the Hugging Face Hub: `config.json` and `model.safetensors`, loaded strictly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockdance import BlockDanceError

VERSION = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class IncompatiblePolicyError(BlockDanceError):
    """A policy and a model that do not belong together, or a folder that holds no policy that can be read."""


def write_folder(folder: Path, form: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes config and weights; each file whole or not at all.

    Args:
        folder: made if it is not there.
        form: the policy class's name in the config.
        config: its constructor's arguments.
        weights: its `state_dict`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": "blockdance-ada", "version": VERSION, "form": form} | dict(config)
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(kept, folder / f"{WEIGHTS}.partial", {"format": "pt"})
    partial.replace(folder / CONFIG)
    (folder / f"{WEIGHTS}.partial").replace(folder / WEIGHTS)


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The policy's folder: a local one, or the snapshot of a Hub repository.

    Args:
        source: folder, or Hub id; `user/name@revision` names a revision too.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: there is none; it says why and what to do.
    """
    local = Path(source)
    if local.exists() or str(source).startswith((".", "/", "checkpoints/", "runs/")):
        if not (local / CONFIG).is_file():
            raise FileNotFoundError(
                f"No policy in {source} (it has no {CONFIG}). Train one with `python train.py`, or give the folder or Hub id of a "
                "trained one."
            )
        return local
    name, _, named_revision = str(source).partition("@")
    revision = revision or named_revision or None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, "README.md"]))
    except HFValidationError as error:
        raise FileNotFoundError(f"{source!r} is neither a folder nor a Hub id of the form `user/name`: {error}") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"The repository {name} has no revision {revision!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no repository {name} on the Hub, or it is private and you are not logged in."
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is not in the local cache and the Hub cannot be reached. Check the network, or give the folder of a policy."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(f"The policy {name} could not be downloaded: {reason} Try again, or give a folder.") from error


def read_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Reads a policy folder.

    Returns:
        The policy class's name, its constructor's arguments, its weights.

    Raises:
        IncompatiblePolicyError: the folder holds something else, an incomplete file, or a policy of a later version.
    """
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IncompatiblePolicyError(f"{folder / CONFIG} cannot be read: {error}") from error
    # version 1 wrote the constructor's arguments alone
    is_first = isinstance(content, dict) and "version" not in content and "action_costs" in content
    if not is_first and (not isinstance(content, dict) or content.pop("format", None) != "blockdance-ada"):
        raise IncompatiblePolicyError(f"{folder} holds no BlockDance-Ada policy: its {CONFIG} does not say so.")
    version = 1 if is_first else content.pop("version", None)
    if not isinstance(version, int) or version > VERSION:
        raise IncompatiblePolicyError(
            f"The policy in {folder} has format version {version}; this package reads up to {VERSION}. Update blockdance-ada."
        )
    form = "steps" if is_first else str(content.pop("form", None))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise IncompatiblePolicyError(f"{folder} has no {WEIGHTS}; other formats are not read, because they may run code.")
    try:
        return form, content, load_file(weights)
    except (OSError, SafetensorError) as error:
        raise IncompatiblePolicyError(f"{weights} is incomplete or no safetensors file: {error}") from error


def push_folder(folder: Path, repo_id: str, *, private: bool | None = None, message: str = "Upload policy") -> str:
    """Publishes a policy folder, its card included; returns the commit's address."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=[CONFIG, WEIGHTS, "*.md", "*.png", "*.json"]
    )
    return str(commit.commit_url)
