"""Attaching other people's caches: the step that their hooks ask for, one clear error, and a model left as it was found.

Here are those of `diffusers.hooks`; `packages` has the others.
"""

import ast
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from typing import Any

from diffusers.hooks.faster_cache import FasterCacheConfig, apply_faster_cache
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from diffusers.hooks.sea_cache import SeaCacheConfig, apply_sea_cache
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from ada.evaluation.cases import generate
from ada.evaluation.methods.base import BatchReport, NotApplicableError, Run
from ada.rollouts import FrozenPipeline

REGISTRY = "_diffusers_hook"
STEP_CALLBACK = "current_timestep_callback"
APPLY: dict[type, Callable[..., None]] = {
    FirstBlockCacheConfig: apply_first_block_cache,
    TaylorSeerCacheConfig: apply_taylorseer_cache,
    MagCacheConfig: apply_mag_cache,
    PyramidAttentionBroadcastConfig: apply_pyramid_attention_broadcast,
    FasterCacheConfig: apply_faster_cache,
    SeaCacheConfig: apply_sea_cache,
}


@dataclass(frozen=True)
class DiffusersCache:
    """Attaches one of diffusers' caches while its context lasts.

    Where the transformer is no `CacheMixin` (PixArt, DiT, SD3), `enable_cache` does not exist and the pipeline sets no cache
    context. Then the cache is attached with its documented `apply_…` function, and every call of the transformer is wrapped in
    the context that diffusers' error message asks for: without that help such rows could say nothing but "raises an error".

    Args:
        config: class of its configuration.
        settings: fields of the configuration; the callback that asks for the step is added where there is one.
        measured: gives further fields, which have to be measured on the pipeline.
    """

    config: type[Any]
    settings: Mapping[str, Any]
    measured: Callable[[], Mapping[str, Any]] = dict

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        transformer = pipeline.transformer
        with ExitStack() as stack:
            stack.enter_context(explained("diffusers"))
            stack.enter_context(quiet_diffusers())
            stack.enter_context(hooks_removed(transformer))
            watcher = stack.enter_context(watched(pipeline, give_context=not isinstance(transformer, CacheMixin)))
            APPLY[self.config](transformer, self.configure(watcher))
            HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
            if not any(registry.hooks for _, registry in _registries(transformer)):
                raise NotApplicableError(
                    f"{self.config.__name__} attaches no hook to {type(transformer).__name__}, without a word: the pipeline would "
                    "run plain."
                )
            # pipelines reset the caches of a `CacheMixin` at the end, so what is kept is weighed before
            weighed = [0]
            stack.callback(transformer.register_forward_hook(lambda *_: weighed.append(_hook_bytes(transformer))).remove)
            yield Run(lambda: BatchReport(cache_bytes=max(weighed)))

    def configure(self, watcher: "StepWatcher") -> Any:
        """The configuration."""
        asks = any(each.name == STEP_CALLBACK for each in fields(self.config))
        callback = {STEP_CALLBACK: lambda: watcher.timestep} if asks else {}
        return self.config(**self.settings, **callback, **self.measured())


def magnitude_ratios(frozen: FrozenPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> list[float]:
    """MagCache's ratios of this model, as its documentation says: run once in calibration mode, which prints them to be copied."""
    transformer, steps, printed = frozen.transformer, frozen.num_inference_steps, io.StringIO()
    with hooks_removed(transformer), redirect_stdout(printed):
        apply_mag_cache(transformer, MagCacheConfig(calibrate=True, num_inference_steps=steps))
        generate(frozen, prompts, seeds, steps)
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("[") and "," in line]
    if not lines:
        raise NotApplicableError("MagCache's calibration run printed no ratios, so there is nothing to configure it with.")
    ratios: list[float] = ast.literal_eval(lines[0])
    return ratios


def latents_as_vision(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """SeaCache's `raw_vision_callback` for a model that is given latents: each `(channels, frames, height, width)`."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return [one[:, None] if one.ndim == 3 else one for one in latents]


class StepWatcher:
    """Which denoising step the transformer is at, from the timestep that it is given."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.timestep = 0.0

    def observe(self, timestep: Any) -> None:
        """Notes the timestep of a call."""
        self.timestep = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)

    def context(self) -> dict[str, Any]:
        """The fields of a cache context; the noise level of schedulers without sigmas is the timestep's share of all."""
        scheduler = self._pipeline.scheduler
        step = int((scheduler.timesteps.float() - self.timestep).abs().argmin())
        sigmas = getattr(scheduler, "sigmas", None)
        sigma = float(sigmas[step]) if sigmas is not None else self.timestep / 1000
        return {"step_index": step, "num_inference_steps": len(scheduler.timesteps), "sigma": sigma}


@contextmanager
def watched(pipeline: Any, *, give_context: bool) -> Iterator[StepWatcher]:
    """Watches the transformer's calls, and gives diffusers' hooks the cache context that some pipelines do not set.

    Args:
        pipeline: the pipeline.
        give_context: whether to wrap each call in a `cache_context`, as diffusers' own error message asks for.
    """
    watcher, transformer = StepWatcher(pipeline), pipeline.transformer
    inside: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watcher.observe(kwargs["timestep"] if "timestep" in kwargs else args[2])
        if give_context:
            inside.append(CacheMixin.cache_context(transformer, "cond_uncond", **watcher.context()))
            inside[-1].__enter__()

    def after(*arguments: Any) -> None:
        if inside:
            inside.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(transformer.register_forward_hook(after, always_call=True).remove)
        yield watcher


@contextmanager
def hooks_removed(transformer: nn.Module) -> Iterator[None]:
    """Removes at the end every diffusers hook that was attached inside."""
    before = {module: set(registry.hooks) for module, registry in _registries(transformer)}
    patched = {module for module in transformer.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, registry in reversed(_registries(transformer)):
            for name in set(registry.hooks) - before.get(module, set()):
                registry.remove_hook(name, recurse=False)
            if module not in before:
                delattr(module, REGISTRY)
        # what is removed puts the class's own `forward` back, but as an attribute of the module
        for module in set(transformer.modules()) - patched:
            vars(module).pop("forward", None)


def _registries(transformer: nn.Module) -> list[tuple[nn.Module, HookRegistry]]:
    return [(module, vars(module)[REGISTRY]) for module in transformer.modules() if REGISTRY in vars(module)]


def _hook_bytes(transformer: nn.Module) -> int:
    """Bytes of the tensors that the attached hooks keep."""
    hooks = [hook for _, registry in _registries(transformer) for hook in registry.hooks.values()]
    return num_bytes([{name: value for name, value in vars(hook).items() if name != "fn_ref"} for hook in hooks])


@contextmanager
def explained(peer: str) -> Iterator[None]:
    """Turns whatever a peer raises into the reason why it does not apply."""
    try:
        yield
    except NotApplicableError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise NotApplicableError(f"{peer} raised {type(error).__name__}: {text[:300]}") from error


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keeps diffusers' warnings out of the progress bar: attaching again for every batch repeats them."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def num_bytes(tree: object) -> int:
    """Bytes of all tensors that hang from an object, through containers and attributes; shared storage counts once.

    Classes, modules and functions are not entered.
    """
    storages: dict[int, int] = {}
    seen: dict[int, object] = {}
    todo = [tree]
    while todo:
        node = todo.pop()
        if id(node) in seen or isinstance(node, nn.Module | type | Callable | str | bytes | int | float):
            continue
        seen[id(node)] = node
        if isinstance(node, Tensor):
            storage = node.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(node, list | tuple | set):
            todo += node
        else:
            todo += (node if isinstance(node, dict) else getattr(node, "__dict__", {})).values()
    return sum(storages.values())
