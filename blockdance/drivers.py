"""Who drives a call of the transformer: the pipeline in whose denoising loop it is made."""

import sys
from collections.abc import Collection
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline
from torch import nn
from torch._dynamo import OptimizedModule

from blockdance.overrides import ForwardOverride

_PASSING_ON = tuple(
    method.__code__ for method in (nn.Module._call_impl, nn.Module._wrapped_call_impl, ForwardOverride.__call__)
)
"""What only hands a call on. Local variables of a frame are costly to look at, and so is the hash of its code."""
_KEY = "__blockdance_call__"


class PipelineCall:
    """One call of a pipeline.

    It is kept among the local variables of that call, so it lives exactly as long: whether the call returned, was interrupted or raised,
    weak references tell when it is over.

    Args:
        is_guided: whether it uses classifier-free guidance, where it has noted that among its local variables: pipelines without a
            property of that name do; else None.
    """

    def __init__(self, is_guided: bool | None) -> None:
        self.is_guided = is_guided


class Driver(NamedTuple):
    """Who makes a call of a transformer.

    Args:
        pipeline: the pipeline, or None for a loop that is none.
        call: the pipeline's call, where it is a `DiffusionPipeline`.
    """

    pipeline: Any = None
    call: PipelineCall | None = None


UNKNOWN = Driver()


def find_driver(transformer: nn.Module, owners: Collection[Any]) -> Driver:
    """The pipeline whose method makes this call: one that BlockDance was applied to, or a `DiffusionPipeline` that has the transformer.

    Several pipelines may share a transformer, also in several threads, and each counts its own steps. What calls a module does not say
    who it is, so the stack is asked: the nearest frame whose `self` is such a pipeline.

    Args:
        transformer: the model.
        owners: the pipelines that BlockDance was applied to; None for those that are gone.
    """
    frame = sys._getframe(2)  # the caller is BlockDance's own
    pipeline: Any = None
    while frame is not None:
        code = frame.f_code
        if code not in _PASSING_ON and code.co_argcount and code.co_varnames[0] == "self":
            subject = frame.f_locals.get("self")
            if pipeline is None and _drives(subject, transformer, owners):
                pipeline = subject
                if not isinstance(pipeline, DiffusionPipeline):
                    return Driver(pipeline)
            if pipeline is not None and subject is pipeline and code.co_name == "__call__":
                noted = frame.f_locals
                return Driver(pipeline, noted.setdefault(_KEY, PipelineCall(noted.get("do_classifier_free_guidance"))))
        frame = frame.f_back  # type: ignore[assignment]
    return UNKNOWN if pipeline is None else Driver(pipeline)


def _drives(subject: Any, transformer: nn.Module, owners: Collection[Any]) -> bool:
    for owner in owners:
        if owner is not None and subject is owner:
            return True
    return isinstance(subject, DiffusionPipeline) and any(unwrapped(part) is transformer for part in vars(subject).values())


def unwrapped(module: Any) -> Any:
    """The model inside `torch.compile(model)`."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module
