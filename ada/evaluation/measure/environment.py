"""Where an evaluation ran, without names of hosts, users or folders."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers")
PEERS = ("cache-dit", "tgate", "tomesd")


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Versions of the packages that matter and of all peers, the processor that ran the model, and how many threads it had."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{package: _version(package) for package in PEERS},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model where the system tells it (Linux), else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def public_name(source: str) -> str:
    """What a source is called in published results: a Hub id as it is, a folder by its last part, for paths are private."""
    path = Path(source)
    return path.resolve().name if path.exists() else source
