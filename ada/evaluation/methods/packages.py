"""Attaching the packages of the extra `peers`: cache-dit, T-GATE and ToMe."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ada.evaluation.methods.base import BatchReport, NotApplicableError, Run
from ada.evaluation.methods.caches import num_bytes, weighing


def optional_package(name: str) -> ModuleType:
    """Imports a package of the extra `peers`.

    Raises:
        NotApplicableError: it is not installed, or cannot be imported with these versions.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise NotApplicableError(
            f"The package {name} cannot be imported ({error}). Install the extra `peers`: `pip install -e '.[peers]'` in a clone."
        ) from error


@contextmanager
def cache_dit(settings: Mapping[str, Any], taylorseer_order: int | None, pipeline: Any) -> Iterator[Run]:
    """cache-dit's DBCache: after the first blocks it skips the others where their residual changed little, or with an order of its
    TaylorSeer calibrator extrapolates them. Settings are fields of its `DBCacheConfig`."""
    logging.getLogger("cache_dit").setLevel(logging.ERROR)  # which speaks as soon as it is imported
    package = optional_package("cache_dit")
    for name in [name for name in logging.Logger.manager.loggerDict if name.lower().startswith("cache")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    calibrated = taylorseer_order is not None
    calibrator = package.TaylorSeerCalibratorConfig(taylorseer_order=taylorseer_order) if calibrated else None
    package.enable_cache(pipeline, cache_config=package.DBCacheConfig(**settings), calibrator_config=calibrator)
    try:
        # None where this version keeps its tensors elsewhere
        yield Run(lambda: BatchReport(cache_bytes=num_bytes(getattr(pipeline, "_context_manager", None)) or None))
    finally:
        package.disable_cache(pipeline)


@contextmanager
def t_gate(settings: Mapping[str, int], pipeline: Any) -> Iterator[Run]:
    """T-GATE (Liu et al., 2024): after the gate step, cross-attention comes from a cache and guidance is dropped.

    Runs the authors' own loop, which is made for PixArt-α and PixArt-Σ among the diffusion transformers, and takes the settings.
    """
    package = optional_package("tgate")
    loaders = {PixArtAlphaPipeline: "TgatePixArtAlphaLoader", PixArtSigmaPipeline: "TgatePixArtSigmaLoader"}
    names = [name for family, name in loaders.items() if isinstance(pipeline, family)]
    if not names:
        raise NotApplicableError(
            f"The package tgate has loaders for PixArt-α and PixArt-Σ, none for {type(pipeline).__name__}."
        )
    getattr(package, names[0])(pipeline)
    attentions = [module for module in pipeline.transformer.modules() if isinstance(module, Attention)]
    with weighing(pipeline.transformer, lambda: [vars(module).get("cache") for module in attentions]) as weighed:
        yield Run(lambda: BatchReport(cache_bytes=max(weighed)), partial(pipeline.tgate, **settings))


@contextmanager
def token_merging(ratio: float, pipeline: Any) -> Iterator[Run]:
    """Token merging (ToMe, Bolya and Hoffman, 2023): a share of the tokens is merged into others for self-attention.

    `tomesd.apply_patch` patches the blocks of Stable Diffusion's UNet and fails on a PixArt block (it asks for a `norm3`), so the
    package's matching and merging is put around the self-attention here, which is what its default settings do.
    """
    merging, transformer = optional_package("tomesd.merge"), pipeline.transformer
    blocks = [part for name, part in transformer.named_modules() if name.endswith("attn1") and isinstance(part, Attention)]
    if not blocks:
        raise NotApplicableError(
            f"{type(transformer).__name__} has no self-attention named `attn1` whose tokens could be merged; joint attention over "
            "text and image tokens is not what ToMe's matching is made for."
        )
    generator = torch.Generator(device=transformer.device).manual_seed(0)

    def merged(attend: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = hidden_states.shape[1]
        side = round(tokens**0.5)
        if side * side != tokens:
            raise NotApplicableError(f"ToMe matches tokens on a square grid; this model has {tokens}.")
        merge, unmerge = merging.bipartite_soft_matching_random2d(
            hidden_states, side, side, 2, 2, int(tokens * ratio), generator=generator
        )
        joined: Tensor = unmerge(attend(merge(hidden_states), *args, **kwargs))
        return joined

    for block in blocks:
        vars(block)["forward"] = partial(merged, block.forward)
    yield Run(lambda: BatchReport(cache_bytes=0))
