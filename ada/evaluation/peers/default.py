"""Which peers are compared, and at which settings."""

from collections.abc import Sequence

import torch
from diffusers.hooks.faster_cache import FasterCacheConfig
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig
from diffusers.hooks.sea_cache import SeaCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

from ada.evaluation.methods import PAPER_PEERS, PEERS, Accelerate, Method
from ada.evaluation.peers.diffusers_caches import Calibrated, Configure, DiffusersCache, latents_as_vision
from ada.evaluation.peers.packages import CacheDit, TGate, TokenMerging
from ada.evaluation.subject import Subject

PREFIX = 0.4
"""Share of the steps that always compute, where a peer lets its user say so: the same as BlockDance's."""
HELP = " Where the pipeline sets no cache context, one is set for it around every call."


def peer_methods(subject: Subject, prompts: Sequence[str], seeds: Sequence[int]) -> list[Method]:
    """All peers. One that is not installed, does not attach or skips nothing becomes a row that says so.

    Args:
        subject: the pipeline.
        prompts: held out from the evaluation, for the peers that are calibrated.
        seeds: of their noise.
    """
    steps = subject.num_inference_steps
    first = round(PREFIX * steps)
    return [
        *_first_block_cache(steps),
        *_taylorseer(steps, first),
        *_magcache(subject, list(prompts), list(seeds)),
        *_attention_caches(steps),
        *_sea_cache(steps, first),
        *_cache_dit(steps, first),
        *_paper_peers(steps),
    ]


def _peer(
    name: str, label: str, steps: int, accelerate: Accelerate, note: str, *, data_dependent: bool = False, family: str = PEERS
) -> Method:
    return Method(
        name=name, family=family, label=label, num_inference_steps=steps, accelerate=accelerate, note=note,
        data_dependent=data_dependent, must_save=True,
    )  # fmt: skip


def _diffusers(name: str, label: str, steps: int, configure: Configure, note: str, *, data_dependent: bool = False) -> Method:
    return _peer(name, label, steps, DiffusersCache(configure), note + HELP, data_dependent=data_dependent)


def _first_block_cache(steps: int) -> list[Method]:
    return [
        _diffusers(
            f"FirstBlockCache {threshold:g}", f"FBC {threshold:g}", steps,
            lambda _, threshold=threshold: FirstBlockCacheConfig(threshold=threshold),  # type: ignore[misc]
            f"diffusers: skips all blocks but the first where its residual changed by less than {threshold:g} "
            "(0.05 is the default, 0.2 the documentation's example). It decides for the whole batch.",
            data_dependent=True,
        )
        for threshold in (0.05, 0.1, 0.2)
    ]  # fmt: skip


def _taylorseer(steps: int, first: int) -> list[Method]:
    common = {"cache_interval": 2, "disable_cache_before_step": first, "taylor_factors_dtype": torch.float32}
    return [
        _diffusers(
            "TaylorSeer, defaults", "TaylorSeer", steps, lambda _: TaylorSeerCacheConfig(),
            "diffusers: its default patterns, which name attention modules.",
        ),
        _diffusers(
            "TaylorSeer, sublayers", "Taylor", steps,
            lambda _: TaylorSeerCacheConfig(
                cache_identifiers=[r".*transformer_blocks\.\d+\.(attn\d?|ff|ff_context)"], **common  # type: ignore[arg-type]
            ),
            f"diffusers: extrapolates attention and feed-forward outputs, every second step after step {first}, order 1.",
        ),
        _diffusers(
            "TaylorSeer, lite", "Taylor lite", steps,
            lambda _: TaylorSeerCacheConfig(use_lite_mode=True, **common),  # type: ignore[arg-type]
            f"diffusers: its lite mode extrapolates the model's output, every second step after step {first}, order 1.",
        ),
    ]  # fmt: skip


def _magcache(subject: Subject, prompts: list[str], seeds: list[int]) -> list[Method]:
    return [
        _diffusers(
            f"MagCache {threshold:g}", f"Mag {threshold:g}", subject.num_inference_steps,
            Calibrated(subject, prompts, seeds, {"threshold": threshold, "retention_ratio": PREFIX}),
            f"diffusers: skips while the accumulated error estimate is below {threshold:g} (0.06 is the default), never in the "
            f"first {PREFIX:.0%}; its magnitude ratios were calibrated on {len(prompts)} other prompts.",
        )
        for threshold in (0.06, 0.12)
    ]  # fmt: skip


def _attention_caches(steps: int) -> list[Method]:
    return [
        _diffusers(
            "PyramidAttentionBroadcast", "PAB", steps,
            lambda at: PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, cross_attention_block_skip_range=6,
                current_timestep_callback=lambda: at.timestep,  # type: ignore[arg-type,return-value]
            ),
            "diffusers: between timesteps 100 and 800, self-attention is computed every second step, cross-attention every sixth.",
        ),
        _diffusers(
            "FasterCache", "Faster", steps,
            lambda at: FasterCacheConfig(
                tensor_format="BCHW", attention_weight_callback=lambda _: 0.3,
                current_timestep_callback=lambda: at.timestep,  # type: ignore[arg-type,return-value]
            ),
            "diffusers: its defaults below timestep 681: every second attention, every fifth unconditional branch; weight 0.3 as in "
            "the documentation's example.",
        ),
    ]  # fmt: skip


def _sea_cache(steps: int, first: int) -> list[Method]:
    return [
        _diffusers(
            "SeaCache, defaults", "Sea", steps, lambda _: SeaCacheConfig(),
            "diffusers: its defaults, made for Cosmos 3 and Wan.", data_dependent=True,
        ),
        _diffusers(
            "SeaCache, adapted", "Sea", steps,
            lambda _: SeaCacheConfig(
                retention_steps=first, power_exp=2.0, raw_vision_callback=latents_as_vision
            ),
            f"diffusers: the model's latents through its `raw_vision_callback`, exponent 2 for images, never before step {first}.",
            data_dependent=True,
        ),
    ]  # fmt: skip


def _cache_dit(steps: int, first: int) -> list[Method]:
    common = {"max_warmup_steps": first, "num_inference_steps": steps}
    return [
        _peer(
            f"cache-dit F{front}, {threshold:g}", f"DBCache {threshold:g}", steps,
            CacheDit({"Fn_compute_blocks": front, "Bn_compute_blocks": 0, "residual_diff_threshold": threshold, **common}),
            f"cache-dit's DBCache: skips the blocks after the first {front} where the residual changed by less than {threshold:g}, "
            f"never in the first {first} steps. It decides for the whole batch.",
            data_dependent=True,
        )
        for front, threshold in ((8, 0.08), (1, 0.08), (1, 0.16))
    ]  # fmt: skip


def _paper_peers(steps: int) -> list[Method]:
    gates = ({"gate": 8 / 25, "sp_interval": 1}, {"gate": 15 / 25, "sp_interval": 3})
    gated = [
        _peer(
            f"T-GATE, gate {round(gate['gate'] * steps)}", f"gate {round(gate['gate'] * steps)}", steps,
            TGate({"gate_step": round(gate["gate"] * steps), "sp_interval": int(gate["sp_interval"]), "fi_interval": 1, "warm_up": 2}),
            f"The package tgate: after step {round(gate['gate'] * steps)} cross-attention comes from the cache and guidance is "
            f"dropped; before, self-attention is computed every {gate['sp_interval']:g} steps (its documentation's PixArt settings).",
            family=PAPER_PEERS,
        )
        for gate in gates
    ]  # fmt: skip
    merged = [
        _peer(
            f"ToMe {ratio:.0%}", f"ToMe {ratio:.0%}", steps, TokenMerging(ratio),
            f"tomesd's matching around the self-attention of every block: {ratio:.0%} of the tokens are merged into others.",
            family=PAPER_PEERS,
        )
        for ratio in (0.25, 0.5)
    ]  # fmt: skip
    return gated + merged
