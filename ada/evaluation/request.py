"""What is asked of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.measure import MOST_IMAGES, Metric, TimingPlan
from ada.evaluation.measure.results import PUBLISHED
from ada.evaluation.methods import FULL_COMPUTE, Method
from ada.policy import AdaPolicy
from ada.schedules import Ladder

DEFAULT_BUDGETS = (0.85, 0.7)
"""The shares of the compute at which the policy runs beside its quality weights."""
DEFAULT_MEAN_BUDGETS = (0.85, 0.8, 0.7, 0.6)
"""The shares that it spends on average."""
ROUNDS, QUICK_ROUNDS = 10, 3
TIMING_MINUTES, QUICK_TIMING_MINUTES = 3.0, 0.4
SEARCH_PROMPTS, QUICK_SEARCH_PROMPTS = 12, 4


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, and how. With fewer than 128 prompts it is a quick look, where what is None below takes less time.

    Args:
        prompts: held-out prompts.
        indices: each prompt's index in its split, which its noise depends on.
        metrics: by name, with `quality` first and `perceptual_distance` among them; see `default_metrics`.
        embed: features of images for the Fréchet distance; see `Embedding`.
        output: folder to write to; made if it is not there. A run that was killed goes on where it was.
        batch_size: images per call of the pipeline.
        seed, seeds: the noise seeds of every prompt are `seed`, `seed + 1`, …: as many as `seeds`.
        compare_with: name of the row that paired differences are taken to.
        keep_images: keep every generated image, not only those of the grid.
        sweeps: run the settings around the main ones as well.
        rounds: most rounds of timing; None: 10, in a quick look 3, and then at batch 1 alone.
        timing_minutes: no round of timing begins later, but for the first two at each batch size; None: 3, in a quick look 0.4.
        most_images: most images of one call of the pipeline that methods share; less takes less memory and more time.
        search_prompts, search_indices: prompts that are not evaluated, to calibrate BlockDance and peers on; without them neither
            is compared.
        ladder: searched static schedules, every rung of which is a row; None leaves them out.
        peers: whether to compare other people's caches.
        quality_weights: λ at which the policy runs; by default three, log-spaced over the range that it was trained on.
        budgets: shares of the compute that the policy spends on every image.
        mean_budgets: shares that it spends on average, each image as it needs; policies without a measured curve have none.
        rivals: other policies by name, each a row per mean budget, such as a gate of six scalars.
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
    seeds: int = 1
    compare_with: str = FULL_COMPUTE
    keep_images: bool = False
    sweeps: bool = False
    rounds: int | None = None
    timing_minutes: float | None = None
    most_images: int = MOST_IMAGES
    search_prompts: Sequence[str] = ()
    search_indices: Sequence[int] = ()
    ladder: Ladder | None = None
    peers: bool = True
    quality_weights: Sequence[float] | None = None
    budgets: Sequence[float] = DEFAULT_BUDGETS
    mean_budgets: Sequence[float] = DEFAULT_MEAN_BUDGETS
    rivals: Mapping[str, AdaPolicy] = field(default_factory=dict)
    extra_methods: Sequence[Method] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seeds", 1), ("rounds", 0), ("most_images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be {least} or more; got {value}.")

    @property
    def is_quick_look(self) -> bool:
        """Whether there are too few prompts to publish."""
        return len(self.prompts) < PUBLISHED

    def wants(self, method: Method) -> bool:
        """Whether a method runs."""
        return method.main or self.sweeps or method.name == self.compare_with

    def timing(self, num_cases: int) -> TimingPlan:
        """How latency is measured."""
        minutes = QUICK_TIMING_MINUTES if self.is_quick_look else TIMING_MINUTES
        seconds = 60 * (minutes if self.timing_minutes is None else self.timing_minutes)
        if self.rounds is None and self.is_quick_look:
            return TimingPlan([1], QUICK_ROUNDS, seconds)
        rounds = ROUNDS if self.rounds is None else self.rounds
        return TimingPlan(sorted({1, min(self.batch_size, num_cases)}), rounds, seconds)
