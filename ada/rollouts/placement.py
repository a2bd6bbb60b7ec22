"""Where the weights of a frozen pipeline lie: on one device, in main memory until they are needed, or spread over several devices."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from accelerate import cpu_offload
from diffusers import AutoModel, DiffusionPipeline
from torch import nn

Offload = Literal["none", "model", "sequential"]
"""What waits in main memory while it is not needed: nothing, whole models (text encoder, transformer, decoder), or single layers."""
DeviceMap = str | dict[str, int | str]
"""Where the parts of a transformer lie, as accelerate takes it: `auto`, `balanced`, or a device for every part by its name."""


def check_placement(pipeline: Any, offload: str, device_map: DeviceMap | None) -> None:
    """Refuses what cannot be placed as wanted.

    Args:
        pipeline: a pipeline, a loop, or the folder or Hub id of a pipeline.
        offload: see `Offload`.
        device_map: see `DeviceMap`.

    Raises:
        ValueError: says what can be had.
    """
    if offload not in ("none", "model", "sequential"):
        raise ValueError(f"`offload` must be none, model or sequential; got {offload}.")
    if offload != "none" and device_map is not None:
        raise ValueError(
            "Give `offload` or `device_map`, not both: a `device_map` may name `cpu` for parts that are to wait there."
        )
    if device_map is not None and not isinstance(pipeline, str):
        raise ValueError("`device_map` is for a pipeline that is loaded here: give `model` as a folder or Hub id.")
    for device in device_map.values() if isinstance(device_map, dict) else ():
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device_map` names the device {device}, which this machine does not have.") from error
    if offload != "none" and not isinstance(pipeline, str | DiffusionPipeline):
        raise ValueError(
            f"`offload` is for pipelines of diffusers; this is a {type(pipeline).__name__}, which is moved as a whole."
        )


def load_spread(model: str, dtype: torch.dtype, device_map: DeviceMap) -> dict[str, nn.Module]:
    """The transformer of a pipeline with its parts on the devices of a map, as the pipeline's loading takes it."""
    return {"transformer": AutoModel.from_pretrained(model, subfolder="transformer", dtype=dtype, device_map=device_map)}


def place(pipeline: Any, device: torch.device | str, offload: Offload) -> None:
    """Makes a pipeline compute on a device. A transformer that is spread over several stays where it is."""
    models = {name: part for name, part in vars(pipeline).items() if isinstance(part, nn.Module)}
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.remove_all_hooks()
        for name, part in models.items():
            # as `enable_sequential_cpu_offload` does, which takes no CPU for a device
            if name in pipeline._exclude_from_cpu_offload:
                part.to(device)
            else:
                cpu_offload(part, torch.device(device), offload_buffers=bool(part._parameters))
    elif is_spread(pipeline.transformer):
        for part in models.values():
            if part is not pipeline.transformer:
                part.to(device)
    else:
        pipeline.to(device)


def is_spread(transformer: nn.Module) -> bool:
    """Whether it was loaded with a `device_map`."""
    return isinstance(vars(transformer).get("hf_device_map"), Mapping)


def device_of(pipeline: Any) -> torch.device:
    """Where a pipeline computes, wherever its weights wait."""
    if isinstance(pipeline, DiffusionPipeline):
        return torch.device(pipeline._execution_device)  # type: ignore[attr-defined]  # inherited, and not seen
    return next(pipeline.transformer.parameters()).device  # type: ignore[no-any-return]
