"""What is asked of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.methods import FULL_COMPUTE, Method
from ada.evaluation.metrics import Metric

DEFAULT_BUDGETS = (0.85, 0.7)
"""The shares of the compute at which the policy runs beside its quality weights."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, and how.

    Args:
        prompts: held-out prompts.
        indices: each prompt's index in its split, which its noise depends on.
        metrics: by name, with `quality` first and `perceptual_distance` among them; see `default_metrics`.
        embed: features of images for the Fréchet distance; see `Embedding`.
        output: folder to write to; made if it is not there. A run that was killed goes on where it was.
        batch_size: images per call of the pipeline.
        seed, num_seeds: the sampler seeds are `seed`, `seed + 1`, …
        compare_with: name of the row that paired differences are taken to.
        keep_images: keep every generated image, not only those of the grid.
        search_prompts, search_indices: prompts that are not evaluated, to search static schedules and calibrate peers on; without
            them neither is done.
        search_schedules: how many static schedules to try.
        peers: whether to compare other people's caches.
        quality_weights: λ at which the policy runs; by default three, log-spaced over the range that it was trained on.
        budgets: shares of the compute at which the policy runs.
        extra_methods: further methods, such as calibrated schedules; see `planned_method`.
        sources: folders and Hub ids to name in `results.json`, such as the policy's; of a folder, only its last part is kept.
        settings: what else to record there.
    """

    prompts: Sequence[str]
    indices: Sequence[int]
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    output: Path
    batch_size: int = 8
    seed: int = 0
    num_seeds: int = 1
    compare_with: str = FULL_COMPUTE
    keep_images: bool = False
    search_prompts: Sequence[str] = ()
    search_indices: Sequence[int] = ()
    search_schedules: int = 64
    peers: bool = True
    quality_weights: Sequence[float] | None = None
    budgets: Sequence[float] = DEFAULT_BUDGETS
    extra_methods: Sequence[Method] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
