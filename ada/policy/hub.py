"""Policies on the Hugging Face Hub: found, fetched and published, with one named error for whatever goes wrong."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # of the httpx that it was built on
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ada.policy.folder import BESIDE, CARD, CONFIG, WEIGHTS
from blockdance import BlockDanceError

NOT_FOUND = "There is neither a folder nor a Hub repository {name}, or it is private: then `hf auth login`, or set HF_TOKEN."
OURS = "checkpoints/"
"""Of a clone of this repository: no user of the Hub, also where the clone is not."""


class PolicyNotFoundError(BlockDanceError, FileNotFoundError):
    """There is no such folder, repository or revision."""


class HubError(BlockDanceError, ConnectionError):
    """The Hub could not be reached, broke off, or refused."""


def hub_id(name: str) -> str | None:
    """The name where it can be the id of a Hub repository and is no path here; else None."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name and not name.startswith(OURS) and not Path(name).exists() else None


def find_folder(source: str | Path, revision: str | None = None, beside: Sequence[str] = (), **download: Any) -> Path:
    """The policy's folder: a local one, or the snapshot of a Hub repository, fetched where it is not in the cache.

    Args:
        source: folder, or Hub id; `user/name@revision` names a revision too.
        revision: branch, tag or commit on the Hub; a folder has none.
        beside: patterns of further files to fetch.
        download: further arguments of huggingface_hub's `snapshot_download`.

    Raises:
        PolicyNotFoundError: there is none; it says why and what to do.
        HubError: the Hub cannot be reached, or the download broke off.
    """
    if isinstance(source, Path) or Path(source).exists() or source.startswith(OURS):
        if not (Path(source) / CONFIG).is_file():
            raise PolicyNotFoundError(
                f"No policy in {source} (it has no {CONFIG}). Train one with `python train.py`, or give the folder or Hub id of a "
                "trained one; the embedded model's is checkpoints/ada-emoji in a clone of the repository, and paths are relative to the "
                "folder you run in."
            )
        if revision is not None:
            raise PolicyNotFoundError(
                f"{source} is a folder, which has no revisions; got {revision!r}. Leave `revision` out, or give a Hub id."
            )
        return Path(source)
    name, _, named_revision = source.partition("@")
    if named_revision and revision and named_revision != revision:
        raise PolicyNotFoundError(f"{source!r} and `revision` {revision!r} name different revisions. Give one of them.")
    revision = revision or named_revision or None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, *beside], **download))
    except HFValidationError as error:
        raise PolicyNotFoundError(
            f"No policy in {source}: it is neither a folder nor a Hub id of the form `user/name`. Train one with `python train.py`, or "
            "give the folder or Hub id of a trained one."
        ) from error
    except RevisionNotFoundError as error:
        raise PolicyNotFoundError(
            f"The repository {name} has no revision {revision!r}. Its branches, tags and commits are listed on its page on the Hub."
        ) from error
    except GatedRepoError as error:
        raise PolicyNotFoundError(
            f"The repository {name} is gated: ask for access on its page on the Hub, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise PolicyNotFoundError(NOT_FOUND.format(name=name)) from error
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"There is no folder {name}, it is not in the local cache, and the Hub cannot be reached: "
            f"{_reason(error.__cause__ or error)}. "
            "Check the network and HF_HUB_OFFLINE, or give the folder of a policy."
        ) from error
    except (TransportError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise PolicyNotFoundError(NOT_FOUND.format(name=name)) from error
        raise HubError(
            f"The download of the policy {name} broke off: {_reason(error)}. Try again: what has arrived is kept."
        ) from error


def pull_folder(source: str, folder: Path, revision: str | None = None) -> None:
    """Copies a policy with its card and figures into a folder.

    Raises:
        PolicyNotFoundError, HubError: as in `find_folder`.
    """
    found = find_folder(source, revision, beside=BESIDE)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (CONFIG, WEIGHTS, *BESIDE):
        for file in found.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def make_repository(repo_id: str, *, private: bool | None = None, token: bool | str | None = None) -> None:
    """Makes a repository; one that is there stays as it is.

    Raises:
        HubError: the Hub cannot be reached, or it refuses.
    """
    with _publishing(repo_id):
        HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True)


def has_card(repo_id: str, *, token: bool | str | None = None) -> bool:
    """Whether a repository has a card.

    Raises:
        HubError: the Hub cannot be reached.
    """
    with _publishing(repo_id):
        return HfApi(token=token).file_exists(repo_id, CARD)


def push_folder(
    folder: Path, repo_id: str, *, revision: str | None = None, message: str = "Upload policy", token: bool | str | None = None
) -> str:  # fmt: skip
    """Publishes every file of a folder in one commit; returns the commit's address.

    Args:
        folder: what to publish.
        repo_id: a repository that is there.
        revision: branch to commit to, made where it is not there; by default the main one.
        message: of the commit.
        token: the login, as everywhere in huggingface_hub.

    Raises:
        HubError: the Hub cannot be reached, broke off, or refuses.
    """
    with _publishing(repo_id):
        api = HfApi(token=token)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision)
        return str(commit.commit_url)


@contextmanager
def _publishing(repo_id: str) -> Iterator[None]:
    """Names what goes wrong while something is published."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no Hub id of the form `user/name`: {error}") from error
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 401
        remedy = {
            401: "Log in with `hf auth login`, or set HF_TOKEN.",
            403: "Your token needs the right to write there: make one at https://huggingface.co/settings/tokens.",
            409: "Somebody else is changing the repository: try again.",
        }.get(status, "Try again later.")
        raise HubError(f"The Hub refused to publish {repo_id}: {_reason(error)}. {remedy}") from error
    except (TransportError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError: an upload that failed; ValueError: a card that the Hub finds wrong
        said = error if isinstance(error, ValueError) else error.__cause__ or error
        raise HubError(f"{repo_id} could not be published: {_reason(said)}. Nothing was published.") from error


def _reason(error: BaseException) -> str:
    """What the client says, on one line."""
    said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {said}".rstrip(".: ")
