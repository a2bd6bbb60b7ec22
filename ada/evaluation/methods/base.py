"""What a method is, the cases that it runs on, and what a stock pipeline makes of them: images and videos alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from ada.noise import EVALUATION, noise_seed
from ada.policy import AdaPolicy
from ada.rollouts import FrozenPipeline
from ada.rollouts.fingerprints import described, digest, qualified_name
from blockdance import BlockDanceConfig, BlockDanceError, Plan, ReuseSchedule, apply_blockdance
from blockdance.kinds import Kind

FULL_COMPUTE, FEWER_STEPS, STATIC = "Full compute", "Fewer steps", "Best static schedule"
ADA, ADA_BUDGET, ADA_BATCH = "Ada", "Ada, within a budget", "Ada, a batch within a budget"
RANDOM, SHUFFLED = CONTROLS = "Random, as often as Ada", "Ada, shuffled states"

Group = Literal["plain", "blockdance", "static", "ada", "peers"]
"""Whose idea it is; gives the colour in every figure."""
STATIC_GROUPS = ("plain", "blockdance", "static")
"""Those that do not look at the image: but for the controls, what anyone may pick instead of a policy."""


class NotApplicableError(RuntimeError):
    """A method that cannot run on this pipeline; the message says why, for its row of the table."""


@dataclass(frozen=True)
class Cases:
    """What every method is run on, `batch_size` at a time: every prompt once per sampler seed, all prompts of a seed in a row.

    Args:
        prompts: one per case: whatever `FrozenPipeline.generate` takes.
        seeds: of each case's noise.
        batch_size: cases per call of the pipeline.
        num_seeds: how often each prompt occurs.
    """

    prompts: Sequence[Any]
    seeds: Sequence[int]
    batch_size: int
    num_seeds: int = 1

    @classmethod
    def of(
        cls, prompts: Sequence[Any], indices: Sequence[int], batch_size: int, seed: int = 0, num_seeds: int = 1,
        use: int = EVALUATION,
    ) -> "Cases":  # fmt: skip
        """Cases of prompts, whose noise depends on their index in the data set, the sampler seeds `seed`, `seed + 1`, … and the use: with
        `EVALUATION` or `SEARCH` it is none of training's."""
        seeds = [noise_seed(seed + offset, index, use) for offset in range(num_seeds) for index in indices]
        return cls(list(prompts) * num_seeds, seeds, batch_size, num_seeds)

    def batches(self) -> list[slice]:
        """Places of the batches among the cases; the last of each noise seed may be smaller."""
        count, total = len(self.prompts) // self.num_seeds, len(self.prompts)
        return [
            slice(start, min(start + self.batch_size, first + count))
            for first in range(0, total, count)
            for start in range(first, first + count, self.batch_size)
        ]


@dataclass(frozen=True)
class Generated:
    """What a pipeline made of a batch.

    Args:
        images: `(images, 3, height, width)`, for videos `(videos, frames, 3, height, width)`, float32 in [0, 1].
        latents: what its VAE was given, `(images, values)`, float32.
    """

    images: Tensor
    latents: Tensor

    def take(self, places: Sequence[int] | slice) -> "Generated":
        """Some of the images, on the same device."""
        return Generated(self.images[places], self.latents[places])


def generate(
    frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int], num_inference_steps: int, run: "Run | None" = None
) -> Generated:
    """Runs the pipeline as a user would, or as `run` asks for; every image has a prompt and a seed of its noise."""
    run = run or Run()
    if run.each is not None:
        made = []
        for place in range(len(prompts)):
            with run.each(place) as alone:
                own = slice(place, place + 1)
                made.append(generate(frozen, prompts[own], seeds[own], num_inference_steps, alone))
        return Generated(torch.cat([one.images for one in made]), torch.cat([one.latents for one in made]))
    decode, latents = frozen.pipeline.vae.decode, list[Tensor]()

    def recorded(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        latents.append(given.detach().clone())
        return decode(given, *args, **kwargs)

    # what the VAE decodes is the end of denoising in every family of pipelines; frames may be decoded in chunks
    with patch.object(frozen.pipeline.vae, "decode", recorded):
        given = frozen.call_arguments(prompts, seeds) | {"num_inference_steps": num_inference_steps, "output_type": "pt"}
        output = (run.call or frozen.pipeline)(**given)
    images: Tensor = output[0]
    return Generated(images.float(), torch.cat(latents).float().reshape(len(prompts), -1))


@dataclass(frozen=True)
class BatchReport:
    """What a method did to one batch.

    Args:
        actions: int64 `(images, num_steps)`, or None for a method without actions.
        action_names: what the actions mean, action 0 first; empty without actions.
        macs: float64 `(images,)`, MACs of the denoising steps that ran; None where they are counted from outside.
        cache_bytes: most bytes that the method kept between steps; None where nobody knows.
        own_macs: per image, MACs of whatever decides; 0 where they were not counted.
    """

    actions: Tensor | None = None
    action_names: tuple[str, ...] = ()
    macs: Tensor | None = None
    cache_bytes: int | None = None
    own_macs: float = 0.0


@dataclass
class Run:
    """An accelerated pipeline, while its context lasts.

    Args:
        report: tells, after the pipeline ran and still inside the context, what was done.
        call: is called in place of the pipeline, with the pipeline's arguments by name; None calls the pipeline itself.
        each: accelerates the pipeline for the image at one place of the batch, which then has a call of its own; None for one call of the
            whole batch.
    """

    report: Callable[[], BatchReport] = field(default=BatchReport)
    call: Callable[..., Any] | None = None
    each: "Callable[[int], AbstractContextManager[Run]] | None" = None


Attach = Callable[[Any, slice], AbstractContextManager[Run]]
"""Called with the pipeline and the batch's place among all cases; the pipeline is accelerated while the context lasts."""


@contextmanager
def unchanged(pipeline: Any, images: slice) -> Iterator[Run]:
    """Leaves the pipeline as it is."""
    yield Run(lambda: BatchReport(cache_bytes=0))


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a pipeline: plain, by a BlockDance plan, or with something else attached.

    Args:
        name: unique, for the table.
        family: methods that form a line in the plot.
        group: whose colour it takes.
        num_inference_steps: denoising steps.
        note: what exactly it does, in words.
        plan: what `apply_blockdance` takes: a config, a decider, or a schedule with a single row or one row per case of the whole
            evaluation. Calibrated, learnt and handwritten schedules are plans.
        attach: what accelerates the pipeline where there is no plan.
        reason: why it does not apply, where that is known before it runs.
        settings: what it does, for programs, but for what the plan says; with the name it tells stored measurements apart.
        data_dependent: whether the work depends on the images, so that it is counted for every batch, not once.
        joint: whether it decides for a batch as a whole, so that batches, and not images, are independent.
        must_save: whether a run that does not save MACs means that the method never took hold.
        main: whether it is what its documentation recommends; the others are settings around it, which a sweep runs as well.
        timed: whether the latency of a main one is measured; where a neighbouring setting is timed, it tells nothing new.
        quick: whether a main one runs unless an evaluation is to be thorough: not what takes long for what it tells.
        after: name of the method that has to be measured before, because it does as that one did.
    """

    name: str
    family: str
    group: Group
    num_inference_steps: int
    note: str = ""
    plan: Plan | None = None
    attach: Attach = unchanged
    reason: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_dependent: bool = False
    joint: bool = False
    must_save: bool = False
    main: bool = True
    timed: bool = True
    quick: bool = True
    after: str = ""

    def __post_init__(self) -> None:
        if self.plan is not None and self.attach is not unchanged:
            raise ValueError(f"{self.name}: a method has a `plan` or an `attach`, not both.")

    @cached_property
    def described(self) -> dict[str, Any]:
        """The settings, and of a plan a configuration's fields, a schedule's actions and kinds, or which policy or other decider it is."""
        plan, known = self.plan, dict[str, Any]()
        if isinstance(plan, BlockDanceConfig):
            known = {**asdict(plan), "reuse_range": list(plan.reuse_range)}
        elif isinstance(plan, ReuseSchedule):
            rows = [("" if len(plan.kinds) < 10 else " ").join(map(str, row)) for row in plan.actions.tolist()]
            known = {"actions": rows[0] if len(rows) == 1 else rows, "kinds": [str(kind) for kind in plan.kinds]}
        elif isinstance(plan, AdaPolicy):
            known = {"policy": policy_digest(plan)}
        elif plan is not None:
            known = {"decider": [qualified_name(plan), digest(described(vars(plan)))]}
        return known | dict(self.settings)

    def accelerate(self, pipeline: Any, images: slice) -> AbstractContextManager[Run]:
        """Accelerates a pipeline while the context lasts, for the cases at these places.

        Raises:
            NotApplicableError: it does not apply.
        """
        if self.reason is not None:
            raise NotApplicableError(self.reason)
        return self.attach(pipeline, images) if self.plan is None else planned(pipeline, rows_of(self.plan, images))


@contextmanager
def planned(pipeline: Any, plan: Plan) -> Iterator[Run]:
    """Runs a BlockDance plan."""
    with apply_blockdance(pipeline, plan) as handle:

        def report() -> BatchReport:
            done = handle.report()
            return BatchReport(done.actions, names_of(done.kinds), done.macs_computed, done.peak_cache_bytes)

        try:
            yield Run(report)
        except BlockDanceError as error:  # a wish that a policy finds out too late that it cannot meet
            if isinstance(plan, BlockDanceConfig | ReuseSchedule):
                raise
            raise NotApplicableError(str(error)) from error


def rows_of(plan: Any, images: slice) -> Any:
    """A plan for some of the cases: of a schedule with a row per case their rows."""
    has_rows = isinstance(plan, ReuseSchedule) and plan.batch_size > 1
    return ReuseSchedule(plan.actions[images], plan.kinds) if has_rows else plan


def policy_digest(policy: AdaPolicy) -> str:
    """Tells a policy from others by its weights and its configuration: of the same weights, another curve meets other budgets."""
    return digest([policy.digest(), policy.config])


def names_of(kinds: Sequence[Kind]) -> tuple[str, ...]:
    """What actions mean, action 0 first."""
    return ("compute", *(f"reuse {kind}" for kind in kinds))
