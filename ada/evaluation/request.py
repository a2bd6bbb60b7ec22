"""What is asked of an evaluation: by a program, or by the command `python evaluate.py`, whose options these are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ada.evaluation.measure import MOST_IMAGES, PUBLISHED, Metric, TimingPlan
from ada.evaluation.measure.metrics import DISTANCE
from ada.evaluation.methods import Cases, Method
from ada.evaluation.methods.base import FULL_COMPUTE
from ada.policy import AdaPolicy
from ada.rewards import Reward
from ada.rewards.damage import VISIBLE_DISTANCE
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS
from ada.rollouts.pipeline import Dtype
from ada.schedules import Ladder

ROUNDS, QUICK_ROUNDS = 10, 2
TIMING_MINUTES, QUICK_TIMING_MINUTES = 8.0, 0.4
ALWAYS_TIMED = ("plain", "ada")
BRIEF = "Latency was measured at batch 1 and in two rounds alone, and no memory was weighed."
GATES = {"Gate after BAG": "checkpoints/gates/imitation", "Gate of six scalars": "checkpoints/gates/critic"}
"""Rivals of the embedded model's policies."""
LADDER = "configs/ladders/emoji.json"
"""The schedules that were searched for the embedded model."""


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
    """Whether to run the settings around the main ones as well: about 50 rows more."""
    rounds: int | None = None
    """Most rounds of timing; by default 10, in a quick look 2 at batch 1 alone."""
    timing_minutes: float | None = None
    """No round of timing begins later, but for the first two at each batch size; by default 8, in a quick look 0.4."""
    thorough: bool = False
    """Whether to run as well what takes long for what it tells, such as other people's caches image by image: measuring takes 1.7 times as
    long."""
    time_all: bool = False
    """Whether to measure the latency of a setting or two of every method, not of plain pipelines and the policy alone: ten rounds take
    three times as long."""
    most_images: int = MOST_IMAGES
    """Most images of one call of the pipeline that methods share; less takes less memory and more time."""
    processes: int | None = None
    """Processes that measure, each with one thread; by default on a CPU under Linux as many as there are threads, 8 at most."""
    peers: bool = True
    """Whether to compare other people's caches."""
    quality_weights: list[float] | None = None
    """λ at which the policy runs; by default three, log-spaced over its range."""
    budgets: list[float] = field(default_factory=lambda: [0.85, 0.7])
    """Shares of the compute that the policy spends on every image."""
    mean_budgets: list[float] = field(default_factory=lambda: [0.85, 0.8, 0.7, 0.6])
    """Shares that it spends on average, each image as it needs."""
    batch_budgets: list[float] = field(default_factory=lambda: [0.85, 0.8, 0.7, 0.6])
    """Shares that it spends on average in every batch, each image as it needs beside the others."""
    compare_with: str = FULL_COMPUTE
    """The row that paired differences are taken to."""
    visible_damage: float = VISIBLE_DISTANCE
    """τ: the perceptual distance at which a person just sees a change; the default is the embedded scorer's."""
    keep_images: bool = False
    """Keep every generated image as PNG."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seeds", 1), ("rounds", 0), ("most_images", 1), ("processes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be {least} or more; got {value}.")
        if not self.visible_damage > 0:
            raise ValueError(f"`visible_damage` must be positive; got {self.visible_damage}.")


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """What to evaluate. With fewer than 128 prompts it is a quick look.

    Args:
        prompts: held-out prompts, or class labels.
        indices: each prompt's index in its split, which its noise depends on.
        metrics: by name, with `quality` first and `perceptual_distance` among them; see `default_metrics`. Of class labels, those that
            need a text are left out.
        embed: features of images for the Fréchet distance; see `Embedding`.
        search_prompts, search_indices: prompts that are not evaluated, to calibrate on; without them there are no calibrated schedules and
            no threshold rule, and MagCache does not apply.
        ladder: searched static schedules, every rung of which is a row; None leaves them out.
        rivals: other policies by name, each a row per mean budget, such as a gate of six scalars.
        extra_methods: further methods, such as calibrated schedules; see `Method`.
        sources: folders and Hub ids to name in `results.json`, such as the policy's; of a folder, only its last part is kept.
        settings: what else to record there.
    """

    prompts: Sequence[str | int]
    indices: Sequence[int]
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    search_prompts: Sequence[str | int] = ()
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
        if DISTANCE not in self.measured:
            known = ", ".join(self.measured) or "none"
            raise ValueError(
                f"`metrics` must hold `{DISTANCE}`, from which damage is computed (see `default_metrics`); got {known}."
            )

    @property
    def cases(self) -> Cases:
        """Every prompt with every noise seed."""
        return Cases.of(self.prompts, self.indices, self.batch_size, self.seed, self.seeds)

    @property
    def measured(self) -> dict[str, Metric]:
        """The metrics that apply: of class labels, those that need no text."""
        texts = all(isinstance(prompt, str) for prompt in self.prompts)
        return {name: metric for name, metric in self.metrics.items() if texts or not metric.reward.needs_text}

    def remarks(self, methods: Sequence[Method]) -> list[str]:
        """What a reader should know of the figures: that the prompts are too few to publish, and which methods and metrics are left out."""
        found = []
        if len(self.prompts) < PUBLISHED:
            few = f"A quick look: {len(self.prompts)} prompts are too few to publish, whose tables take {PUBLISHED} or more."
            found.append(f"{few} {BRIEF}" if self.is_brief else few)
        if slow := [method.name for method in methods if method.main and not self.wants(method)]:
            found.append(f"Left out (`--thorough true` runs them): {'; '.join(slow)}.")
        if without := [name for name in self.metrics if name not in self.measured]:
            found.append(f"Prompts are class labels, so what needs a text is left out: {', '.join(without)}.")
        return found

    @property
    def is_brief(self) -> bool:
        """Whether it is a quick look of which nobody asks what to time, or how often: then nearly no latency is measured."""
        return len(self.prompts) < PUBLISHED and self.rounds is None and not self.time_all

    def wants(self, method: Method) -> bool:
        """Whether a method runs."""
        return (method.main and (method.quick or self.thorough)) or self.sweeps or method.name == self.compare_with

    def times(self, method: Method) -> bool:
        """Whether latency is measured of a method: unless it is of all, of those that decide whether a policy pays."""
        return method.main and method.timed and (self.time_all or (method.quick and method.group in ALWAYS_TIMED))

    def timing(self) -> TimingPlan:
        """How latency is measured."""
        minutes = QUICK_TIMING_MINUTES if len(self.prompts) < PUBLISHED else TIMING_MINUTES
        seconds = 60 * (minutes if self.timing_minutes is None else self.timing_minutes)
        if self.is_brief:
            return TimingPlan([1], QUICK_ROUNDS, seconds, weigh=False)
        sizes = sorted({1, min(self.batch_size, len(self.prompts))})
        return TimingPlan(sizes, ROUNDS if self.rounds is None else self.rounds, seconds)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Settings):
    """Compares a trained policy with everything that one might pick instead.

    Prints a table over held-out prompts and writes results.json, table.md, Pareto plots, schedules, an image grid, TensorBoard
    events and the page index.html. A run that was killed goes on where it was when the same command is given again.
    """

    policy: str
    """Folder or Hub id of the policy."""
    base_model: str = EMBEDDED
    """Folder or Hub id of the diffusers pipeline that it was trained on."""
    scorer: str = "checkpoints/emoji-scorer"
    """Folder or Hub id of the CLIP that measures quality, and whose features the Fréchet distance is taken in."""
    perceptual: str | None = None
    """Folder or Hub id of the vision model, such as a DINOv2, that perceptual distance is measured by; by default the scorer."""
    rewards: dict[str, Reward] | None = None
    """Further rewards to measure quality by: names, each with a class_path, as in a training configuration."""
    prompts: str = "emoji"
    """A known set (emoji, parti, drawbench, coco), or a folder, file or Hub id of prompts."""
    split: str | None = None
    """Their split; by default that of the known set, else test."""
    column: str | None = None
    """The column that holds the prompt, where it has an unusual name."""
    limit: int = 128
    """Number of prompts, spread evenly over the split; fewer than 128 are a quick look of a few minutes."""
    search_prompts: str | None = "checkpoints/emoji-prompts"
    """Other prompts, to calibrate on; none leaves out calibrated schedules and the threshold rule, and MagCache does not apply."""
    search_split: str = "validation"
    """Their split."""
    search_column: str | None = None
    """The column that holds them, where it has an unusual name."""
    search_limit: int | None = None
    """Number of them, which run in one call; by default as many as a batch has, in a quick look 2."""
    ladder: str | None = "auto"
    """File of searched static schedules, each of which is a row; none leaves them out; auto takes those searched for the embedded
    model beside it, none beside others."""
    num_inference_steps: int = 20
    """Denoising steps of full compute."""
    arguments: dict[str, Any] = field(default_factory=EMBEDDED_ARGUMENTS.copy)
    """Further arguments of the pipeline's call, as in the training configuration."""
    dtype: Dtype = "float32"
    """Precision of the pipeline."""
    rivals: dict[str, str] | None = None
    """Other policies to compare with: names, each with a folder or Hub id; of one made for another architecture the row says so. By default
    two gates of six scalars beside the embedded model, none beside others."""
    device: str = "auto"
    """Such as cpu or cuda; auto takes the accelerator where there is one."""


def ladder_of(options: EvaluationOptions) -> str | None:
    """The file of searched static schedules; None where there are none. (The command would take a method for a command of its own.)"""
    known = LADDER if options.base_model == EMBEDDED else None
    return known if options.ladder == "auto" else options.ladder
