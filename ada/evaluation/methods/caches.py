"""Attaching other people's caches: whatever they raise is one clear reason, and the model is left as it was found. diffusers' hooks."""

import ast
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import fields
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

from ada.evaluation.methods.base import Attach, BatchReport, NotApplicableError, Run, generate
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


def attaching(package: str, enter: Callable[[Any], AbstractContextManager[Run]]) -> Attach:
    """Makes a method's `attach` of a peer: an error of its own becomes the reason why it does not apply, and nothing of it stays."""

    @contextmanager
    def attach(pipeline: Any, images: slice) -> Iterator[Run]:
        level = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()  # attaching again for every batch would repeat warnings in the progress bar
        try:
            with left_as_found(pipeline), enter(pipeline) as run:
                yield run
        except NotApplicableError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise NotApplicableError(f"{package} raised {type(error).__name__}: {text[:300]}") from error
        finally:
            diffusers_logging.set_verbosity(level)

    return attach


@contextmanager
def left_as_found(pipeline: Any) -> Iterator[None]:
    """Gives a pipeline, its transformer's modules and their hooks all their attributes back, such as a `forward` that was replaced, and
    what their dictionaries and lists held, such as blocks and hooks."""
    parts = [pipeline, *pipeline.transformer.modules()]
    parts += [vars(part)[REGISTRY] for part in parts if REGISTRY in vars(part)]
    owned = [vars(part) for part in parts]
    owned += [value for attributes in owned for value in attributes.values() if type(value) in (dict, OrderedDict, list)]
    before = [(one, one.copy()) for one in owned]
    try:
        yield
    finally:
        for one, content in before:
            one.clear()
            one.extend(content) if isinstance(one, list) else one.update(content)


@contextmanager
def diffusers_cache(
    config: type[Any], settings: Mapping[str, Any], pipeline: Any, measured: Callable[[], Mapping[str, Any]] = dict
) -> Iterator[Run]:
    """Attaches one of diffusers' caches.

    Where the transformer is no `CacheMixin` (PixArt, DiT, SD3), `enable_cache` does not exist and the pipeline sets no cache
    context. Then the cache is attached with its documented `apply_…` function, and every call of the transformer is given a context
    (`watched`): without that help such rows could say nothing but "raises an error".

    Args:
        config: class of its configuration.
        settings: its fields; the callback that asks for the step is added where there is one.
        pipeline: the pipeline.
        measured: gives further fields, which have to be measured on the pipeline.
    """
    transformer = pipeline.transformer
    with watched(pipeline) as timestep:
        asked = {STEP_CALLBACK: timestep} if any(each.name == STEP_CALLBACK for each in fields(config)) else {}
        APPLY[config](transformer, config(**settings, **asked, **measured()))
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        registries = [vars(module)[REGISTRY] for module in transformer.modules() if REGISTRY in vars(module)]
        attached = [vars(hook) for registry in registries for hook in registry.hooks.values()]
        if not attached:
            raise NotApplicableError(
                f"{config.__name__} attaches no hook to {type(transformer).__name__}, without a word: the pipeline would run plain."
            )

        def kept() -> list[Any]:
            return [value for hook in attached for name, value in hook.items() if name != "fn_ref"]

        # pipelines reset the caches of a `CacheMixin` at the end, so what is kept is weighed before
        with weighing(transformer, kept) as weighed:
            yield Run(lambda: BatchReport(cache_bytes=max(weighed)))


@contextmanager
def watched(pipeline: Any) -> Iterator[Callable[[], float]]:
    """Watches the transformer's calls, and tells the timestep of the newest one. Where the transformer is no `CacheMixin`, each call is
    wrapped in the `cache_context` that its pipeline does not set, as diffusers' own error message asks for."""
    give_context = not isinstance(pipeline.transformer, CacheMixin)
    transformer, scheduler, timestep, inside = pipeline.transformer, pipeline.scheduler, 0.0, ExitStack()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal timestep
        given = kwargs["timestep"] if "timestep" in kwargs else args[2]
        timestep = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
        if give_context:
            step, sigmas = int((scheduler.timesteps.float() - timestep).abs().argmin()), getattr(scheduler, "sigmas", None)
            # the noise level of schedulers without sigmas is the timestep's share of all
            sigma = float(sigmas[step]) if sigmas is not None else timestep / 1000
            told = {"step_index": step, "num_inference_steps": len(scheduler.timesteps), "sigma": sigma}
            inside.enter_context(CacheMixin.cache_context(transformer, "cond_uncond", **told))

    with ExitStack() as watching:
        watching.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        watching.callback(transformer.register_forward_hook(lambda *_: inside.close(), always_call=True).remove)
        yield lambda: timestep


def magnitude_ratios(frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int]) -> list[float]:
    """MagCache's ratios of this model, as its documentation says: run once in calibration mode, which prints them to be copied."""
    if not prompts:
        raise NotApplicableError("MagCache has to be calibrated on other prompts: give search prompts.")
    steps, printed = frozen.num_inference_steps, io.StringIO()
    with left_as_found(frozen.pipeline), redirect_stdout(printed):
        apply_mag_cache(frozen.transformer, MagCacheConfig(calibrate=True, num_inference_steps=steps))
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


@contextmanager
def weighing(transformer: nn.Module, kept: Callable[[], object]) -> Iterator[list[int]]:
    """Weighs what is kept after each of the transformer's calls: a list of bytes that grows."""
    weighed = [0]
    with transformer.register_forward_hook(lambda *_: weighed.append(num_bytes(kept()))):
        yield weighed


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
