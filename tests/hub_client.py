"""What the tests of the Hub run in processes of their own, whose `huggingface_hub` is pointed at the loopback server by its environment."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from configparser import ConfigParser
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from ladders import MORE_CASES, STEPS, build_frozen
from torch import Tensor


class Client:
    """A fresh process with a cache of its own.

    Args:
        pool: of one process.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Runs a function there."""
        return self._pool.submit(function, *arguments, **options).result(timeout=300)


@contextmanager
def client(home: Path, endpoint: str, token: str = "") -> Iterator[Client]:
    """A process whose Hub is at `endpoint`.

    Args:
        home: of its cache.
        endpoint: address of the server.
        token: none where it is not logged in.
    """
    environment = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), find_in, [str(write_entry_points(home))]) as pool:
            pool.submit(os.getpid).result(timeout=300)  # it begins, with this environment
            os.environ.clear()
            os.environ.update(before)
            yield Client(pool)
    finally:
        os.environ.clear()
        os.environ.update(before)


def find_in(folder: str) -> None:
    """Looks for packages in a folder first."""
    sys.path.insert(0, folder)


def write_entry_points(home: Path) -> Path:
    """What an installation tells of the entry points, for a checkout that is not installed, or was once; returns the folder."""
    settings = ConfigParser()
    settings.read(Path(__file__).parents[1] / "setup.cfg")
    folder = home / "site" / "blockdance_ada-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: blockdance-ada\nVersion: 0\n")
    groups = settings["options.entry_points"]
    (folder / "entry_points.txt").write_text("\n".join(f"[{name}]\n{groups[name].strip()}\n" for name in groups))
    return folder.parent


# --- run there ---


def actions_of(plan: Any, **wishes: float) -> Tensor:
    """The actions that the small stock pipeline takes for every case: int64 `(cases, steps)`."""
    from blockdance import apply_blockdance

    frozen = build_frozen()
    with apply_blockdance(frozen.pipeline, plan, **wishes) as handle:
        frozen.pipeline(
            [case.prompt for case in MORE_CASES], num_inference_steps=STEPS, output_type="latent",
            generator=[torch.Generator().manual_seed(case.seed) for case in MORE_CASES], **frozen.arguments,
        )  # fmt: skip
        return handle.report().actions


def push(source: Path | str, repo_id: str, options: dict[str, Any], **publishing: Any) -> str:
    """Publishes a policy with options set; returns the commit's hash."""
    from ada import AdaPolicy

    policy = AdaPolicy.from_pretrained(source, token=publishing.get("token"))
    address = policy.with_options(**options).push_to_hub(repo_id, **publishing)
    return address.rpartition("/")[2]


def load(source: str, revision: str | None = None, **login: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A policy's config and weights."""
    from ada import AdaPolicy

    policy = AdaPolicy.from_pretrained(source, revision=revision, **login)
    return policy.config, policy.state_dict()


def command(*arguments: str) -> tuple[int, str]:
    """`python -m ada …`: its exit status, and what it printed."""
    from ada.__main__ import main

    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = main(arguments)
    return status, printed.getvalue()


def run_training(*arguments: str) -> None:
    """`python train.py …`."""
    import train

    with redirect_stdout(StringIO()):
        train.main(list(arguments))


def tag(repo_id: str, name: str, revision: str) -> None:
    """Tags a commit."""
    from huggingface_hub import HfApi

    HfApi().create_tag(repo_id, tag=name, revision=revision)


def failure(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    """Class and text of the error that a function raises."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""
