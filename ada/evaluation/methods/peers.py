"""What a user might pick instead: other people's caches, at the settings that their own documentation gives, and some around them.

Nothing of ours is imposed: warm-up steps, intervals and thresholds are the packages' defaults where the note says so. The settings
around them are not `main`: they run in a sweep only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from diffusers.hooks.faster_cache import FasterCacheConfig
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.mag_cache import MagCacheConfig
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig
from diffusers.hooks.sea_cache import SeaCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

from ada.evaluation.methods.base import Attach, BatchReport, Method, Run
from ada.evaluation.methods.caches import attaching, diffusers_cache, latents_as_vision, magnitude_ratios
from ada.evaluation.methods.packages import cache_dit, t_gate, token_merging
from ada.rollouts import FrozenPipeline

SUBLAYERS = [r".*transformer_blocks\.\d+\.(attn\d?|ff|ff_context)"]
CACHE_DIT = {"Fn_compute_blocks": 8, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.08, "max_warmup_steps": 8}
CACHE_DIT_F1 = CACHE_DIT | {"Fn_compute_blocks": 1}
SGLANG = {
    "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.24, "max_warmup_steps": 4,
    "max_continuous_cached_steps": 3,
}  # fmt: skip
"""SGLang's defaults for cache-dit: https://docs.sglang.io/diffusion/environment_variables.html."""
SLOW = {"PyramidAttentionBroadcast", "FasterCache", "cache-dit, SGLang", "T-GATE", "ToMe"}
"""Rows and families that run where an evaluation is to be thorough."""


def peer_methods(frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int]) -> list[Method]:
    """All peers, of which one is calibrated on prompts held out from the evaluation, with their seeds. One that is not installed, does not
    attach or skips nothing becomes a row that says so."""
    ratios = cache(lambda: {"mag_ratios": magnitude_ratios(frozen, prompts, seeds)})
    rows = [*_diffusers_rows(frozen.num_inference_steps, ratios, len(prompts)), *_package_rows(frozen.num_inference_steps)]
    return [*rows, *(one_by_one(row) for row in rows if row.main and row.data_dependent)]


def _peer(
    name: str, family: str, steps: int, attach: Attach, settings: Mapping[str, Any], note: str, *, main: bool, whole_batch: bool = False,
) -> Method:  # fmt: skip
    return Method(
        name=name, family=family, group="peers", num_inference_steps=steps, attach=attach, settings=settings, main=main,
        note=f"{note} It decides for the whole batch." if whole_batch else note, data_dependent=whole_batch,
        joint=whole_batch, must_save=True, quick=not {name, family} & SLOW,
    )  # fmt: skip


def _diffusers_rows(steps: int, ratios: Callable[[], Mapping[str, Any]], calibrated_on: int) -> Iterator[Method]:
    """FirstBlockCache, TaylorSeer, MagCache, PyramidAttentionBroadcast, FasterCache and SeaCache."""

    def row(
        name: str, family: str, config: type[Any], settings: Mapping[str, Any], note: str, *, main: bool, whole_batch: bool = False,
        measured: Callable[[], Mapping[str, Any]] = dict, **further: Any,
    ) -> Method:  # fmt: skip
        """`further` are fields of the configuration that the settings cannot record."""
        note = f"diffusers: {note} Where the pipeline sets no cache context, one is set for it around every call."
        attach = attaching("diffusers", partial(diffusers_cache, config, {**settings, **further}, measured=measured))
        return _peer(name, family, steps, attach, settings, note, main=main, whole_batch=whole_batch)

    for threshold in (0.05, 0.1, 0.2, 0.3):
        yield row(
            f"FirstBlockCache {threshold:g}", "FirstBlockCache", FirstBlockCacheConfig, {"threshold": threshold},
            f"skips all blocks but the first where its residual changed by less than {threshold:g} (0.05 is the default, 0.2 the "
            "documentation's example).", main=threshold == 0.2, whole_batch=True,
        )  # fmt: skip
    note = "its default patterns, which name attention modules."
    yield row("TaylorSeer, defaults", "TaylorSeer", TaylorSeerCacheConfig, {}, note, main=True)
    modes: list[tuple[str, str, dict[str, Any], str]] = [
        ("TaylorSeer, sublayers", "TaylorSeer", {"cache_identifiers": SUBLAYERS}, "extrapolates attention and feed-forward outputs"),
        ("TaylorSeer, lite", "TaylorSeer, lite", {"use_lite_mode": True}, "its lite mode extrapolates the model's output"),
    ]  # fmt: skip
    for (name, family, mode, words), interval in product(modes, (2, 3, 5)):
        yield row(
            f"{name}, N={interval}", family, TaylorSeerCacheConfig, {**mode, "cache_interval": interval},
            f"{words}; one of every {interval} steps computes (5 is the default), and the first 3 (the default); order 1 (the default).",
            main=interval == 5, taylor_factors_dtype=torch.float32,
        )  # fmt: skip
    for threshold in (0.03, 0.06, 0.12):
        yield row(
            f"MagCache {threshold:g}", "MagCache", MagCacheConfig, {"threshold": threshold, "num_inference_steps": steps},
            f"skips while the accumulated error estimate is below {threshold:g} (0.06 is the default), never in the first 20 % nor more "
            f"than 3 steps in a row (the defaults); its magnitude ratios are calibrated on other prompts ({calibrated_on} here), as "
            "its documentation says.", main=threshold == 0.06, measured=ratios,
        )  # fmt: skip
    name, spatial = "PyramidAttentionBroadcast", {"spatial_attention_block_skip_range": 2}
    between = "between timesteps 100 and 800 (the default), self-attention is computed every second step"
    yield row(
        name, name, PyramidAttentionBroadcastConfig, spatial, f"{between} (the documentation's example).", main=True
    )  # fmt: skip
    yield row(
        f"{name}, cross 6", name, PyramidAttentionBroadcastConfig, {**spatial, "cross_attention_block_skip_range": 6},
        f"{between}, cross-attention every sixth (the paper's).", main=False,
    )  # fmt: skip
    yield row(
        "FasterCache", "FasterCache", FasterCacheConfig, {"tensor_format": "BCHW"},
        "its defaults below timestep 681: every second attention, every fifth unconditional branch; weight 0.3 as in the "
        "documentation's example.", main=True, attention_weight_callback=lambda _: 0.3,
    )  # fmt: skip
    for threshold, power in ((0.25, 3.0), (0.12, 3.0), (0.12, 2.0), (0.25, 2.0)):
        yield row(
            f"SeaCache {threshold:g}, power {power:g}", f"SeaCache, power {power:g}", SeaCacheConfig,
            {"threshold": threshold, "power_exp": power},
            f"threshold {threshold:g} (0.25 is the default), power {power:g} (3 is the default, for videos); 1 step at either end "
            "computes (the defaults); the model's latents through its `raw_vision_callback`, which other models than Cosmos 3 and Wan "
            "need.", main=(threshold, power) == (0.25, 3.0), whole_batch=True, raw_vision_callback=latents_as_vision,
        )  # fmt: skip


def _package_rows(steps: int) -> Iterator[Method]:
    """cache-dit, T-GATE and ToMe."""
    rows: tuple[tuple[str, str, dict[str, Any], int | None, bool], ...] = (
        ("defaults", "its defaults", CACHE_DIT, None, True),
        ("F1", "its defaults but for one block that always computes (its F1B0)", CACHE_DIT_F1, None, False),
        ("F1, TaylorSeer", "F1B0 with its TaylorSeer calibrator of order 1", CACHE_DIT_F1, 1, False),
        ("F1, 0.16", "F1B0, threshold 0.16", CACHE_DIT_F1 | {"residual_diff_threshold": 0.16}, None, False),
        ("SGLang", "SGLang's defaults", SGLANG, None, True),
        ("SGLang, TaylorSeer", "SGLang's defaults with the TaylorSeer calibrator of order 1", SGLANG, 1, True),
        ("SGLang, 0.12", "SGLang's defaults, threshold 0.12", SGLANG | {"residual_diff_threshold": 0.12}, None, False),
    )  # fmt: skip
    for label, words, settings, order, main in rows:
        yield _peer(
            f"cache-dit, {label}", "cache-dit with TaylorSeer" if order else "cache-dit", steps,
            attaching("cache-dit", partial(cache_dit, {**settings, "num_inference_steps": steps}, order)),
            {**settings, "taylorseer_order": order},
            f"cache-dit's DBCache, {words}: skips the blocks after the first {settings['Fn_compute_blocks']} where the residual changed "
            f"by less than {settings['residual_diff_threshold']:g}, never in the first {settings['max_warmup_steps']} steps.",
            main=main, whole_batch=True,
        )  # fmt: skip
    for gate, interval in ((round(8 / 25 * steps), 1), (round(15 / 25 * steps), 3)):
        yield _peer(
            f"T-GATE, gate {gate}", "T-GATE", steps,
            attaching("tgate", partial(t_gate, {"gate_step": gate, "sp_interval": interval, "fi_interval": 1, "warm_up": 2})),
            {"gate": gate, "sp_interval": interval},
            f"The package tgate: after step {gate} cross-attention comes from the cache and guidance is dropped; before, self-attention "
            f"is computed every {interval} steps (its documentation's PixArt settings, for 25 steps).", main=interval == 1,
        )  # fmt: skip
    for ratio in (0.25, 0.5):
        yield _peer(
            f"ToMe {ratio:.0%}", "ToMe", steps, attaching("tomesd", partial(token_merging, ratio)), {"ratio": ratio},
            f"tomesd's matching around the self-attention of every block: {ratio:.0%} of the tokens are merged into others (50 % is the "
            "default).", main=ratio == 0.5,
        )  # fmt: skip


def one_by_one(method: Method) -> Method:
    """The method image by image: for those that decide for the whole batch, a batch of one is where they are at their best."""

    @contextmanager
    def attach(pipeline: Any, images: slice) -> Iterator[Run]:
        kept: list[int | None] = []

        @contextmanager
        def each(place: int) -> Iterator[Run]:
            start = images.start + place
            with method.accelerate(pipeline, slice(start, start + 1)) as run:
                yield run
                kept.append(run.report().cache_bytes)

        yield Run(lambda: BatchReport(cache_bytes=max((known for known in kept if known is not None), default=None)), each=each)

    return replace(
        method, name=f"{method.name}, batch 1", family=f"{method.family}, batch 1", plan=None, attach=attach, timed=False, joint=False,
        note=f"{method.note} Here every image is a batch of its own.", settings={**method.described, "batch_size": 1}, quick=False,
    )  # fmt: skip
