"""Peers that are packages of their own: cache-dit, T-GATE and ToMe (the extra `peers`)."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ada.evaluation.methods.base import BatchReport, NotApplicableError, Run
from ada.evaluation.methods.caches import explained, hooks_removed, num_bytes


def optional_package(name: str) -> ModuleType:
    """Imports a package of the extra `peers`.

    Raises:
        NotApplicableError: it is not installed, or cannot be imported with these versions.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise NotApplicableError(
            f"The package {name} cannot be imported ({error}). Install it with `pip install 'blockdance-ada[peers]'`."
        ) from error


@dataclass(frozen=True)
class CacheDit:
    """cache-dit's DBCache: after the first blocks it skips the others where their residual changed little.

    Args:
        settings: fields of its `DBCacheConfig`.
        taylorseer_order: of its TaylorSeer calibrator, which extrapolates what is skipped; None leaves it out.
    """

    settings: Mapping[str, Any]
    taylorseer_order: int | None = None

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        logging.getLogger("cache_dit").setLevel(logging.ERROR)
        package = optional_package("cache_dit")
        for name in [name for name in logging.Logger.manager.loggerDict if name.lower().startswith("cache")]:
            logging.getLogger(name).setLevel(logging.ERROR)
        with explained("cache-dit"), hooks_removed(pipeline.transformer):
            order = self.taylorseer_order
            calibrator = None if order is None else package.TaylorSeerCalibratorConfig(taylorseer_order=order)
            config = package.DBCacheConfig(**self.settings)
            package.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)
            try:
                # None where this version keeps its tensors elsewhere
                yield Run(lambda: BatchReport(cache_bytes=num_bytes(getattr(pipeline, "_context_manager", None)) or None))
            finally:
                package.disable_cache(pipeline)


@dataclass(frozen=True)
class TGate:
    """T-GATE (Liu et al., 2024): after the gate step, cross-attention comes from a cache and guidance is dropped.

    Runs the authors' own loop, which is made for PixArt-α and PixArt-Σ among the diffusion transformers.

    Args:
        settings: `gate_step`, `sp_interval`, `fi_interval` and `warm_up`.
    """

    settings: Mapping[str, int]

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        package = optional_package("tgate")
        loaders = {PixArtAlphaPipeline: "TgatePixArtAlphaLoader", PixArtSigmaPipeline: "TgatePixArtSigmaLoader"}
        names = [name for family, name in loaders.items() if isinstance(pipeline, family)]
        if not names:
            raise NotApplicableError(
                f"The package tgate has loaders for PixArt-α and PixArt-Σ, none for {type(pipeline).__name__}."
            )
        attentions = [module for module in pipeline.transformer.modules() if isinstance(module, Attention)]
        weighed = [0]

        def call(prompts: list[str], **arguments: Any) -> Any:
            return pipeline.tgate(prompts, **arguments, **self.settings)

        def weigh(*_: Any) -> None:
            weighed.append(num_bytes([vars(module).get("cache") for module in attentions]))

        with ExitStack() as stack:
            stack.enter_context(explained("tgate"))
            # T-GATE replaces the modules' `forward` for good: they get theirs back
            stack.callback(vars(pipeline).pop, "tgate", None)
            for module in attentions:
                for name in ("forward", "cache"):
                    stack.callback(vars(module).pop, name, None)
            getattr(package, names[0])(pipeline)
            stack.callback(pipeline.transformer.register_forward_hook(weigh).remove)
            yield Run(lambda: BatchReport(cache_bytes=max(weighed)), call)


@dataclass(frozen=True)
class TokenMerging:
    """Token merging (ToMe, Bolya and Hoffman, 2023): self-attention runs on merged tokens.

    `tomesd.apply_patch` patches the blocks of Stable Diffusion's UNet and fails on a PixArt block (it asks for a `norm3`), so the
    package's matching and merging is put around the self-attention here, which is what its default settings do.

    Args:
        ratio: share of the tokens that are merged into others.
        seed: of the choice of tokens to merge into.
    """

    ratio: float
    seed: int = 0

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        merge = optional_package("tomesd.merge")
        transformer = pipeline.transformer
        blocks = [
            module for name, module in transformer.named_modules() if name.endswith("attn1") and isinstance(module, Attention)
        ]
        if not blocks:
            raise NotApplicableError(
                f"{type(transformer).__name__} has no self-attention named `attn1` whose tokens could be merged; joint attention over "
                "text and image tokens is not what ToMe's matching is made for."
            )
        generator = torch.Generator(device=transformer.device).manual_seed(self.seed)
        match = partial(merge.bipartite_soft_matching_random2d, generator=generator)
        with ExitStack() as stack:
            stack.enter_context(explained("tomesd"))
            for block in blocks:
                stack.callback(vars(block).pop, "forward", None)
                vars(block)["forward"] = self._merged(block.forward, match)
            yield Run(lambda: BatchReport(cache_bytes=0))

    def _merged(self, attend: Callable[..., Tensor], match: Callable[..., Any]) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            tokens = hidden_states.shape[1]
            side = round(tokens**0.5)
            if side * side != tokens:
                raise NotApplicableError(f"ToMe matches tokens on a square grid; this model has {tokens}.")
            merge, unmerge = match(hidden_states, side, side, 2, 2, int(tokens * self.ratio))
            merged: Tensor = unmerge(attend(merge(hidden_states), *args, **kwargs))
            return merged

        return forward
