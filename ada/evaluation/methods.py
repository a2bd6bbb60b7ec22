"""The methods compared. Each turns a pipeline into an accelerated one for the time of a context."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ada.policy import AdaPolicy
from blockdance import BlockDanceConfig, ForwardCost, Plan, Reuse, ReuseSchedule, apply_blockdance, random_schedule

FULL_COMPUTE = "Full compute"
FEWER_STEPS = "Fewer steps"
RANDOM = "Random, as often as Ada"
ADA = "Ada"


@dataclass(frozen=True)
class BatchReport:
    """What a method did to one batch.

    Args:
        actions: int64 `(images, num_steps)`, or None for a method without actions.
        compute_saved: float64 `(images,)`, share of the denoising MACs saved of the steps that the method takes.
    """

    actions: Tensor | None
    compute_saved: Tensor


Accelerate = Callable[[Any, slice], AbstractContextManager[Callable[[], BatchReport]]]
"""Called with the pipeline and the batch's place among all prompts; the pipeline is accelerated while the context lasts.
After the pipeline ran, and still inside, the function that the context gave tells what was done."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to run a pipeline.

    Args:
        name: unique, for the table.
        family: methods that share a colour and a line in the plot.
        label: short name of the point in the plot.
        num_inference_steps: denoising steps.
        accelerate: see `Accelerate`; `Planned` makes one of a BlockDance plan.
        note: what exactly it does, for `results.json`.
    """

    name: str
    family: str
    label: str
    num_inference_steps: int
    accelerate: Accelerate
    note: str


@contextmanager
def unchanged(pipeline: Any, images: slice) -> Iterator[Callable[[], BatchReport]]:
    """Leaves the pipeline as it is."""
    yield lambda: BatchReport(None, torch.zeros(images.stop - images.start, dtype=torch.float64))


@dataclass(frozen=True)
class Planned:
    """Runs a BlockDance plan.

    Args:
        plan: a config, a decider, or a schedule with a single row or one row per prompt of the whole evaluation.
    """

    plan: Plan

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Callable[[], BatchReport]]:
        plan = self.plan
        if isinstance(plan, ReuseSchedule) and plan.batch_size > 1:
            plan = ReuseSchedule(plan.actions[images], plan.kinds)
        with apply_blockdance(pipeline, plan) as handle:

            def report() -> BatchReport:
                done = handle.report()
                return BatchReport(done.actions, done.compute_saved)

            yield report


def default_methods(
    policy: AdaPolicy, decisions: Mapping[float, ReuseSchedule], cost: ForwardCost, num_inference_steps: int, seed: int = 0
) -> list[Method]:
    """The methods of the paper and their controls; the first is the reference.

    Args:
        policy: the policy.
        decisions: for each quality weight λ, what the policy decided: one row per prompt. Fewer steps and random schedules are
            matched to it.
        cost: of one forward call of the transformer.
        num_inference_steps: denoising steps of all methods but "Fewer steps".
        seed: of the random schedules.
    """
    dances = _blockdance(policy, decisions, cost, num_inference_steps)
    full = Method(
        name=FULL_COMPUTE,
        family=FULL_COMPUTE,
        label="full",
        num_inference_steps=num_inference_steps,
        accelerate=unchanged,
        note="The plain pipeline: every block at every step. The reference of the others.",
    )
    saved = {f"λ = {weight:.3g}": schedule for weight, schedule in decisions.items()}
    paper = BlockDanceConfig().kind(len(cost.blocks))
    for interval in (2, 3):
        config = BlockDanceConfig(interval=interval, boundary=paper.boundary)
        saved[f"BlockDance-{interval}"] = config.schedule(num_inference_steps, len(cost.blocks))
    return [
        full,
        *_fewer_steps(saved, cost, num_inference_steps),
        *dances,
        *_random(policy, decisions, num_inference_steps, seed),
        *(_ada(policy, weight, num_inference_steps) for weight in decisions),
    ]


def _fewer_steps(saved: Mapping[str, ReuseSchedule], cost: ForwardCost, num_inference_steps: int) -> list[Method]:
    """Plain pipelines with as many steps as the given schedules' compute is worth; equal counts are one method."""
    matched: dict[int, list[str]] = {}
    for name, schedule in saved.items():
        share = 1 - float(cost.compute_saved(schedule.actions, schedule.kinds).mean())
        matched.setdefault(max(1, round(num_inference_steps * share)), []).append(name)
    return [
        Method(
            name=f"{FEWER_STEPS} ({count})",
            family=FEWER_STEPS,
            label=str(count),
            num_inference_steps=count,
            accelerate=unchanged,
            note=f"The plain pipeline with {count} steps: the compute of {', '.join(matched[count])}.",
        )
        for count in sorted(matched, reverse=True)
        if count < num_inference_steps
    ]


def _blockdance(
    policy: AdaPolicy, decisions: Mapping[float, ReuseSchedule], cost: ForwardCost, num_inference_steps: int
) -> list[Method]:
    """BlockDance-2, 3 and 4 in both orders, at the paper's boundary and at the one that the policy uses most."""
    paper = BlockDanceConfig().kind(len(cost.blocks)).boundary
    favourite = most_used_kind(list(decisions.values())) or policy.kinds[0]
    return [
        Method(
            name=f"BlockDance-{interval}, block {boundary}, order {order}",
            family=f"BlockDance, block {boundary}, order {order}",
            label=f"N={interval}",
            num_inference_steps=num_inference_steps,
            accelerate=Planned(BlockDanceConfig(interval=interval, boundary=boundary, order=order)),
            note=f"Of every {interval} steps between 40 % and 95 %, the first computes; the others start after block "
            + f"{boundary} "
            + ("from the cached output (the paper)." if order == 0 else "from an extrapolation of the cached outputs."),
        )
        for boundary in dict.fromkeys((paper, favourite.boundary))
        for order in (0, 1)
        for interval in (2, 3, 4)
    ]


def _random(policy: AdaPolicy, decisions: Mapping[float, ReuseSchedule], num_inference_steps: int, seed: int) -> list[Method]:
    """Random steps, as many as the policy reused on average at each λ, with the kind of reuse that it used most there."""
    reuse_range = (policy.decision_step(num_inference_steps) / num_inference_steps, 1 - policy.forced_tail)
    methods = []
    for weight, schedule in decisions.items():
        kind = most_used_kind([schedule])
        if kind is None:
            continue
        mean = float((schedule.actions > 0).sum(1).double().mean())
        generator = torch.Generator().manual_seed(seed)
        drawn = random_schedule(schedule.batch_size, num_inference_steps, mean, kind, generator, reuse_range)
        methods.append(
            Method(
                name=f"Random, rate of λ={weight:.3g}",
                family=RANDOM,
                label=f"λ={weight:.3g}",
                num_inference_steps=num_inference_steps,
                accelerate=Planned(drawn),
                note=f"Per image, uniformly drawn steps reuse, {mean:.2f} on average: {kind}.",
            )
        )
    return methods


def _ada(policy: AdaPolicy, weight: float, num_inference_steps: int) -> Method:
    kinds = [f"{action}: {kind}" for action, kind in enumerate(policy.kinds, 1)]
    return Method(
        name=f"{ADA} λ={weight:.3g}",
        family=ADA,
        label=f"λ={weight:.3g}",
        num_inference_steps=num_inference_steps,
        accelerate=Planned(policy.with_options(quality_weight=weight)),
        note=f"The policy's greedy decisions at quality weight {weight:.3g}. The compute saved leaves out the policy "
        f"network, the latency contains it. Actions: 0: compute; {'; '.join(kinds)}.",
    )


def most_used_kind(schedules: Sequence[ReuseSchedule]) -> Reuse | None:
    """The kind of reuse that most image-steps take, over schedules that share their kinds; None if none reuses."""
    actions = torch.cat([schedule.actions.flatten() for schedule in schedules])
    counts = actions[actions > 0].bincount()
    return schedules[0].kinds[int(counts.argmax()) - 1] if len(counts) else None
