"""Weights of a reward from a Hub id, a folder or a file: tensors only, every key accounted for."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from ada.rewards.base import WeightsError


def find_weights(model: str, names: Sequence[str]) -> Path:
    """The file that holds a reward's weights.

    Args:
        model: a file, a folder or a Hub id.
        names: file names to look for in a folder or on the Hub, the best first.

    Raises:
        FileNotFoundError: none of them is there; says where was looked and what for.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"The folder {path} holds none of {', '.join(names)}. Give the weights' file, or a Hub id.")
    trouble = ""
    for name in names:
        try:
            return Path(hf_hub_download(model, name))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            trouble = str(error).strip().partition("\n")[0]
    raise FileNotFoundError(
        f"Neither a file nor a folder is at {model!r}, and none of {', '.join(names)} could be had from the Hub under this name "
        f"({trouble}). Download the file and give its path."
    )


def read_tensors(path: Path, nested: str | None = None) -> dict[str, Tensor]:
    """Reads a `.safetensors`, `.pt` or `.pth` file without ever unpickling more than tensors.

    Args:
        path: the file.
        nested: key under which a pickled file may hold the state dict.

    Raises:
        WeightsError: the file holds something else than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a reader stumbles over in a file of another kind
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path} is no file of tensors alone, and nothing else is unpickled ({reason}). Use the published file or a .safetensors copy."
        ) from error
    if nested is not None and isinstance(content, dict) and nested in content:
        content = content[nested]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds {type(content).__name__}, not a dictionary of tensors by name: not a state dict.")
    return dict(content)


@dataclass(frozen=True)
class Origin:
    """Where a parameter comes from.

    Args:
        key: its name in the file.
        take: what of that tensor it is.
    """

    key: str
    take: Callable[[Tensor], Tensor] = lambda tensor: tensor


def load_strictly(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    origins: Mapping[str, Origin],
    ignored: tuple[str, ...] = (),
    source: str = "the file",
) -> None:
    """Fills a network, which may be on the `meta` device, in float32.

    Args:
        network: its `state_dict` is what has to be filled, all of it.
        tensors: the file's.
        origins: for every entry of the `state_dict`, where it comes from.
        ignored: beginnings of keys that a file may hold and nobody needs.
        source: how errors name the file.

    Raises:
        WeightsError: names the keys that are missing, left over, or of another shape than expected.
    """
    used = {origin.key for origin in origins.values()}
    complaints = _complain("missing", sorted(used - tensors.keys()))
    complaints += _complain("left over", sorted(key for key in tensors.keys() - used if not key.startswith(ignored)))
    if not complaints:
        filled = {name: origin.take(tensors[origin.key]).float() for name, origin in origins.items()}
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert filled.keys() == wanted.keys(), f"origins differ from the network: {filled.keys() ^ wanted.keys()}"
        odd = [
            f"{origins[name].key} (expected {list(shape)}, found {list(filled[name].shape)})"
            for name, shape in wanted.items()
            if filled[name].shape != shape
        ]
        complaints = _complain("of another shape", odd)
    if complaints:
        raise WeightsError(f"{source} does not fit {type(network).__name__}: {'; '.join(complaints)}.")
    network.load_state_dict(filled, strict=True, assign=True)
    _restore_positions(network)
    network.eval().requires_grad_(False)


def shape_of(tensors: Mapping[str, Tensor], key: str, source: str) -> torch.Size:
    """Shape of a tensor that tells a network's size.

    Raises:
        WeightsError: it is missing.
    """
    if key not in tensors:
        raise WeightsError(
            f"{source} has no tensor {key!r}, so these are other weights. It has {', '.join(sorted(tensors)[:3])}, …"
        )
    return tensors[key].shape


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Layers numbered after `prefix` in the names, from 0."""
    numbers = [int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix)]
    return max(numbers, default=-1) + 1


def _complain(what: str, names: Sequence[str], shown: int = 5) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{len(names)} {what}: {', '.join(names[:shown])}{more}"]


def _restore_positions(network: nn.Module) -> None:
    """Position indices are no part of a state dict, so a network built on `meta` lacks them."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                assert name == "position_ids", f"the buffer {name} is neither loaded nor known"
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
