"""The caches of `diffusers.hooks`: FirstBlockCache, TaylorSeer, MagCache, PyramidAttentionBroadcast, FasterCache, SeaCache."""

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
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

from ada.evaluation.methods.base import BatchReport, NotApplicableError, Run
from ada.evaluation.methods.peers.attach import StepWatcher, explained, hook_bytes, hooks_removed, num_hooks, watched
from ada.evaluation.subject import Subject, generate

Configure = Callable[[StepWatcher], Any]
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
        configure: makes the configuration; it is given the step, for the callbacks that some configurations want.
    """

    configure: Configure

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        transformer = pipeline.transformer
        supported = isinstance(transformer, CacheMixin)
        with ExitStack() as stack:
            stack.enter_context(explained("diffusers"))
            stack.enter_context(quiet_diffusers())
            stack.enter_context(hooks_removed(transformer))
            watcher = stack.enter_context(watched(pipeline, give_context=not supported))
            config = self.configure(watcher)
            APPLY[type(config)](transformer, config)
            HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
            if not num_hooks(transformer):
                raise NotApplicableError(
                    f"{type(config).__name__} attaches no hook to {type(transformer).__name__}, without a word: the pipeline would "
                    "run plain."
                )
            # pipelines reset the caches of a `CacheMixin` at the end, so what is kept is weighed before
            weighed = [0]
            stack.callback(transformer.register_forward_hook(lambda *_: weighed.append(hook_bytes(transformer))).remove)
            yield Run(lambda: BatchReport(cache_bytes=max(weighed)))


@dataclass
class Calibrated:
    """MagCache's configuration, with the ratios of this model: measured once, as its documentation says.

    Args:
        subject: the pipeline to calibrate.
        prompts, seeds: what to calibrate on.
        settings: further fields of the configuration.
    """

    subject: Subject
    prompts: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    ratios: list[float] = field(default_factory=list)

    def __call__(self, watcher: StepWatcher) -> Any:
        steps = self.subject.num_inference_steps
        if not self.ratios:
            self.ratios = self._calibrate(steps)
        return MagCacheConfig(num_inference_steps=steps, mag_ratios=self.ratios, **self.settings)

    def _calibrate(self, steps: int) -> list[float]:
        """Runs once in calibration mode and reads the ratios that MagCache prints to be copied."""
        pipeline, printed = self.subject.pipeline, io.StringIO()
        with hooks_removed(pipeline.transformer), redirect_stdout(printed):
            apply_mag_cache(pipeline.transformer, MagCacheConfig(calibrate=True, num_inference_steps=steps))
            generate(self.subject, self.prompts, self.seeds, steps)
        lines = [line for line in printed.getvalue().splitlines() if line.startswith("[") and "," in line]
        if not lines:
            raise NotApplicableError("MagCache's calibration run printed no ratios, so there is nothing to configure it with.")
        ratios: list[float] = ast.literal_eval(lines[0])
        return ratios


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keeps diffusers' warnings out of the progress bar: attaching again for every batch repeats them."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def latents_as_vision(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """SeaCache's `raw_vision_callback` for a model that is given latents: each `(channels, frames, height, width)`."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return [one[:, None] if one.ndim == 3 else one for one in latents]
