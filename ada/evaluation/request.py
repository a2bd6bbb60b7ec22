"""What is asked of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.measure import MOST_IMAGES, PUBLISHED, Metric, TimingPlan
from ada.evaluation.methods import FULL_COMPUTE, Method
from ada.policy import AdaPolicy
from ada.schedules import Ladder

ROUNDS, QUICK_ROUNDS = 10, 3
TIMING_MINUTES, QUICK_TIMING_MINUTES = 3.0, 0.4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is run, and how: what the command line and a request have in common."""

    output: Path = Path("outputs/evaluation")
    """Folder to write to."""
    batch_size: int = 8
    """Images per call of the pipeline."""
    seed: int = 0
    """First seed of the noise, and seed of the random schedules."""
    seeds: int = 1
    """Noise seeds per prompt: the first and those that follow it."""
    sweeps: bool = False
    """Whether to run the settings around the main ones as well: about twice as many rows."""
    rounds: int | None = None
    """Most rounds of timing; by default 10, in a quick look 3, and then at batch 1 alone."""
    timing_minutes: float | None = None
    """No round of timing begins later, but for the first two at each batch size; by default 3, in a quick look 0.4."""
    most_images: int = MOST_IMAGES
    """Most images of one call of the pipeline that methods share; less takes less memory and more time."""
    peers: bool = True
    """Whether to compare other people's caches."""
    quality_weights: list[float] | None = None
    """λ at which the policy runs; by default three, log-spaced over its range."""
    budgets: list[float] = field(default_factory=lambda: [0.85, 0.7])
    """Shares of the compute that the policy spends on every image."""
    mean_budgets: list[float] = field(default_factory=lambda: [0.85, 0.8, 0.7, 0.6])
    """Shares that it spends on average, each image as it needs."""
    compare_with: str = FULL_COMPUTE
    """The row that paired differences are taken to."""
    keep_images: bool = False
    """Keep every generated image as PNG."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seeds", 1), ("rounds", 0), ("most_images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be {least} or more; got {value}.")


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """What to evaluate. With fewer than 128 prompts it is a quick look.

    Args:
        prompts: held-out prompts.
        indices: each prompt's index in its split, which its noise depends on.
        metrics: by name, with `quality` first and `perceptual_distance` among them; see `default_metrics`.
        embed: features of images for the Fréchet distance; see `Embedding`.
        search_prompts, search_indices: prompts that are not evaluated, to calibrate BlockDance and peers on; without them neither
            is compared.
        ladder: searched static schedules, every rung of which is a row; None leaves them out.
        rivals: other policies by name, each a row per mean budget, such as a gate of six scalars.
        extra_methods: further methods, such as calibrated schedules; see `planned_method`.
        sources: folders and Hub ids to name in `results.json`, such as the policy's; of a folder, only its last part is kept.
        settings: what else to record there.
    """

    prompts: Sequence[str]
    indices: Sequence[int]
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    search_prompts: Sequence[str] = ()
    search_indices: Sequence[int] = ()
    ladder: Ladder | None = None
    rivals: Mapping[str, AdaPolicy] = field(default_factory=dict)
    extra_methods: Sequence[Method] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise ValueError("There are no prompts to evaluate on.")

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
