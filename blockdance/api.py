"""One call turns BlockDance on, one turns it off."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import nn

from blockdance.cost import ForwardCost
from blockdance.errors import BlockDanceError
from blockdance.layouts import find_layout, pipeline_parts
from blockdance.plan import Plan
from blockdance.plan_file import load_plan
from blockdance.report import BlockDanceReport
from blockdance.runtime import Controller

_ATTRIBUTE = "_blockdance_controller"


class BlockDanceHandle:
    """Returned by `apply_blockdance`; a context manager that turns BlockDance off when it ends."""

    def __init__(self, transformer: nn.Module, controller: Controller) -> None:
        self._transformer = transformer
        self._controller = controller

    def report(self) -> BlockDanceReport:
        """What the last generation did: actions per image, MACs, cache bytes. `print` shows it as text."""
        return self._controller.report()

    def cost(self) -> ForwardCost:
        """MACs of one forward call of the last generation, all its rows together."""
        return self._controller.cost()

    def remove(self) -> None:
        """Turns BlockDance off: the model is again what it was."""
        _detach(self._transformer)

    def __enter__(self) -> "BlockDanceHandle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def apply_blockdance(
    target: Any,
    plan: Plan | str | Path,
    *,
    component: str = "transformer",
    num_inference_steps: int | None = None,
    guidance_branches: int | None = None,
    groups: Sequence[int] | None = None,
    max_rows: int | None = None,
) -> BlockDanceHandle:
    """Turns BlockDance on, on a diffusers pipeline or a transformer alone.

    Args:
        target: a pipeline with a `transformer`, or the transformer.
        plan: a `BlockDanceConfig` (training-free), a `ReuseSchedule`, a file that `save_plan` wrote, or anything with
            `decide(state) -> ReuseSchedule`, such as an `ada.AdaPolicy`.
        component: name of the pipeline's transformer; some have a second one (`transformer_2` of Wan 2.2).
        num_inference_steps: number of denoising steps; needed for a transformer alone.
        guidance_branches: copies of each image in one forward call. By default it is seen from the latents, which the branches
            of fused classifier-free guidance share.
        groups: a number for each image of the batch; images of one number have the same prompt and noise, so what they share, as
            long as their actions are equal, is computed once. For trying many schedules on one image.
        max_rows: most rows that the transformer is given at once; a larger batch runs in parts.

    Raises:
        UnsupportedModelError: no block layout is known, or the pipeline has no transformer.
        ScheduleError: a boundary that the model does not have, or something that is no plan.
        BlockDanceError: BlockDance is on already.
    """
    transformer, pipeline = pipeline_parts(target, component)
    if hasattr(transformer, _ATTRIBUTE):
        raise BlockDanceError(
            f"BlockDance is already on for this {type(transformer).__name__}. Turn it off first: `remove_blockdance(pipe)`, or "
            "the `remove()` of the handle that `apply_blockdance` returned."
        )
    if isinstance(plan, str | Path):
        plan = load_plan(plan, transformer)
    controller = Controller(
        transformer, find_layout(transformer), plan, pipeline, num_inference_steps, guidance_branches, groups, max_rows
    )
    if type(transformer) not in _CONTROLLED:
        _CONTROLLED[type(transformer)] = _controlled(type(transformer))
    transformer.__class__ = _CONTROLLED[type(transformer)]
    object.__setattr__(transformer, _ATTRIBUTE, controller)
    return BlockDanceHandle(transformer, controller)


def remove_blockdance(target: Any, component: str = "transformer") -> None:
    """Turns BlockDance off on a pipeline or transformer; does nothing where it is off."""
    transformer, _ = pipeline_parts(target, component)
    _detach(transformer)


def _detach(transformer: nn.Module) -> None:
    controller = getattr(transformer, _ATTRIBUTE, None)
    if controller is None:
        return
    controller.reset()
    object.__delattr__(transformer, _ATTRIBUTE)
    transformer.__class__ = type(transformer).__bases__[0]


_CONTROLLED: dict[type[nn.Module], type[nn.Module]] = {}
"""One subclass per model class: code that was compiled for it stays valid when BlockDance is turned on again."""


def _controlled(model_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the same name whose calls go through the controller.

    A subclass, rather than a hook or a patched `forward`, keeps the controller outside a compiled region in every order of
    compiling and enabling, and leaves `forward`'s signature, `state_dict` and `save_pretrained` alone.
    """

    plain_context: Any = getattr(model_class, "cache_context", None)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, _ATTRIBUTE).call(partial(model_class.__call__, self), args, kwargs)

    def cache_context(self: Any, name: str, **kwargs: Any) -> Any:
        return _NamedContext(getattr(self, _ATTRIBUTE), plain_context(self, name, **kwargs), name, kwargs)

    members: dict[str, Any] = {
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
        "__doc__": model_class.__doc__,
        "__call__": torch._dynamo.disable(call, recursive=False),
    }
    if plain_context is not None:
        members["cache_context"] = cache_context
    return type(model_class.__name__, (model_class,), members)


class _NamedContext:
    """Passes diffusers' cache context on to the controller as well."""

    def __init__(self, controller: Controller, inner: Any, name: str, fields: dict[str, Any]) -> None:
        self._controller, self._inner = controller, inner
        self._context = CacheContext(name, **fields)

    def __enter__(self) -> Any:
        self._controller.context = self._context
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._controller.context = None
        return self._inner.__exit__(*error)
