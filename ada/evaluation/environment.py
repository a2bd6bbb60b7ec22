"""Where an evaluation ran, without names of hosts, users or folders."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers")


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Versions of the packages that matter, the processor that ran the model, and how many threads it had."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's model where the system tells it (Linux), else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
