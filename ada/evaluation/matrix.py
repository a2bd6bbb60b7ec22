"""The matrix of methods × settings that is compared by default."""

from collections.abc import Mapping, Sequence

import torch

from ada.evaluation.methods import ADA, ADA_BUDGET, FEWER_STEPS, RANDOM, Method, full_method, planned_method, unchanged
from ada.evaluation.subject import Subject
from ada.policy import AdaPolicy
from blockdance import BlockDanceConfig, Reuse, ReuseSchedule, find_layout, random_schedule
from blockdance.layouts import block_stack

MOST_STEP_COUNTS = 10
PAPER_RANGES = ((0.25, 0.95), (0.6, 0.95))
"""The paper's range on DiT-XL/2 and Open-Sora, and a cautious one; 40–95 % (PixArt-α) is the default of the other rows."""


def fewer_steps(num_inference_steps: int) -> list[Method]:
    """Plain pipelines with fewer steps, from one fewer down to half: dense enough to find the one that is as fast as any method."""
    counts = range(num_inference_steps - 1, max(0, num_inference_steps // 2 - 1), -1)
    stride = -(-len(counts) // MOST_STEP_COUNTS)
    return [
        Method(
            name=f"{FEWER_STEPS} ({count})",
            family=FEWER_STEPS,
            label=str(count),
            num_inference_steps=count,
            accelerate=unchanged,
            note=f"The plain pipeline with {count} steps.",
        )
        for count in counts[::stride]
    ]


def blockdance(num_blocks: int, num_inference_steps: int, other_boundary: int | None = None) -> list[Method]:
    """BlockDance-2, 3 and 4 in both orders at the paper's boundary and another; other ranges; and together with fewer steps.

    Args:
        num_blocks: length of the model's block stack.
        num_inference_steps: denoising steps of full compute.
        other_boundary: the second boundary; by default the last block.
    """
    paper = BlockDanceConfig().kind(num_blocks).boundary
    last = num_blocks - 1 if other_boundary is None else other_boundary
    methods = [
        _dance(
            f"BlockDance-{interval}, block {boundary}, order {order}",
            f"BlockDance, block {boundary}, order {order}",
            f"N={interval}",
            num_inference_steps,
            BlockDanceConfig(interval=interval, boundary=boundary, order=order),
        )
        for boundary in dict.fromkeys((paper, last))
        for order in (0, 1)
        for interval in (2, 3, 4)
    ]
    for reuse_range in PAPER_RANGES:
        methods += [
            _dance(
                f"BlockDance-{interval}, {reuse_range[0]:.0%} to {reuse_range[1]:.0%}",
                "BlockDance, other ranges",
                f"N={interval}, {reuse_range[0]:.0%}",
                num_inference_steps,
                BlockDanceConfig(interval=interval, boundary=last, reuse_range=reuse_range),
            )
            for interval in (2, 3)
        ]
    for count in dict.fromkeys(round(share * num_inference_steps) for share in (0.85, 0.7)):
        methods += [
            _dance(
                f"BlockDance-{interval} of {count} steps",
                "BlockDance with fewer steps",
                f"N={interval} of {count}",
                count,
                BlockDanceConfig(interval=interval, boundary=last),
            )
            for interval in (2, 3)
        ]
    return methods


def _dance(name: str, family: str, label: str, num_inference_steps: int, config: BlockDanceConfig) -> Method:
    first, last = config.reuse_range
    source = "the cached output (the paper)" if config.order == 0 else "an extrapolation of the cached outputs"
    note = (
        f"Of every {config.interval} steps between {first:.0%} and {last:.0%}, the first computes; the others start after block "
        f"{config.boundary} from {source}."
    )
    return planned_method(name, family, label, num_inference_steps, config, note)


def training_free(subject: Subject) -> list[Method]:
    """Full compute, fewer steps and BlockDance of any pipeline, images or videos, in default settings."""
    layout = find_layout(subject.pipeline.transformer)
    num_blocks = len(block_stack(subject.pipeline.transformer, layout))
    steps = subject.num_inference_steps
    return [full_method(steps), *fewer_steps(steps), *blockdance(num_blocks, steps)]


def random_schedules(
    policy: AdaPolicy, decisions: Mapping[float, ReuseSchedule], num_inference_steps: int, seed: int = 0
) -> list[Method]:
    """Random steps, as many as the policy reused on average at each λ, with the kind of reuse that it used most there.

    Args:
        policy: the policy.
        decisions: for each quality weight λ, what the policy decided: one row per case.
        num_inference_steps: denoising steps.
        seed: of the drawing.
    """
    reuse_range = (policy.decision_step(num_inference_steps) / num_inference_steps, 1 - policy.forced_tail)
    methods = []
    for weight, schedule in decisions.items():
        kind = most_used_kind([schedule])
        if kind is None:
            continue
        mean = float((schedule.actions > 0).sum(1).double().mean())
        generator = torch.Generator().manual_seed(seed)
        drawn = random_schedule(schedule.batch_size, num_inference_steps, mean, kind, generator, reuse_range)
        note = f"Per image, uniformly drawn steps reuse, {mean:.2f} on average: {kind}."
        name, label = f"Random, rate of λ={weight:.3g}", f"λ={weight:.3g}"
        methods.append(planned_method(name, RANDOM, label, num_inference_steps, drawn, note))
    return methods


def ada(policy: AdaPolicy, weights: Sequence[float], budgets: Sequence[float], num_inference_steps: int) -> list[Method]:
    """The policy at several quality weights λ, and within several compute budgets.

    Args:
        policy: the policy.
        weights: values of λ.
        budgets: shares of the denoising compute to spend.
        num_inference_steps: denoising steps.
    """
    kinds = "; ".join(f"{action}: {kind}" for action, kind in enumerate(policy.kinds, 1))
    legend = f"The compute saved leaves out the policy network, the latency contains it. Actions: 0: compute; {kinds}."
    return [
        planned_method(
            f"{ADA} λ={weight:.3g}", ADA, f"λ={weight:.3g}", num_inference_steps, policy.with_options(quality_weight=weight),
            f"The policy's greedy decisions at quality weight {weight:.3g}. {legend}",
        )
        for weight in weights
    ] + [
        planned_method(
            f"{ADA} budget {budget:.0%}", ADA_BUDGET, f"{budget:.0%}", num_inference_steps, policy.with_options(compute=budget),
            f"The steps that the policy most wants to reuse, as many as bring the compute to {budget:.0%}. {legend}",
        )
        for budget in budgets
    ]  # fmt: skip


def most_used_kind(schedules: Sequence[ReuseSchedule]) -> Reuse | None:
    """The kind of reuse that most image-steps take, over schedules that share their kinds; None if none reuses."""
    actions = torch.cat([schedule.actions.flatten() for schedule in schedules])
    counts = actions[actions > 0].bincount()
    if not len(counts):
        return None
    kind = schedules[0].kinds[int(counts.argmax()) - 1]
    assert isinstance(kind, Reuse), "a policy offers no other kinds"
    return kind
