"""What needs no policy: the plain pipeline with fewer steps, BlockDance-N, and DeepCache carried over."""

import torch

from ada.evaluation.methods.base import DEEP_CACHE, FEWER_STEPS, Method, full_method, planned_method, unchanged
from ada.evaluation.subject import Subject
from blockdance import BlockDanceConfig, BlockReuse, ReuseSchedule, find_layout
from blockdance.layouts import block_stack

MOST_STEP_COUNTS = 10
PAPER_RANGES = ((0.25, 0.95), (0.6, 0.95))
"""The paper's range on DiT-XL/2 and Open-Sora, and a cautious one; 40–95 % (PixArt-α) is the default of the other rows."""
DEEP_CACHE_INTERVALS = (2, 3, 5)
OUTER_SHARE = 1 / 7
"""Share of the blocks that DeepCache's carried-over form always runs at either end."""


def fewer_steps(num_inference_steps: int) -> list[Method]:
    """Plain pipelines with fewer steps, from one fewer down to half: dense enough to find the one that is as fast as any method."""
    counts = range(num_inference_steps - 1, max(0, num_inference_steps // 2 - 1), -1)
    stride = -(-len(counts) // MOST_STEP_COUNTS)
    return [
        Method(
            name=f"{FEWER_STEPS} ({count})",
            family=FEWER_STEPS,
            group="plain",
            label=str(count),
            num_inference_steps=count,
            accelerate=unchanged,
            note=f"The plain pipeline with {count} steps.",
            settings={"num_inference_steps": count},
            # every second one, down to the fewest: latencies between them are as good as on a line
            main=place % 2 == (len(counts[::stride]) - 1) % 2,
        )
        for place, count in enumerate(counts[::stride])
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
            main=order == 0 and (interval == 2 or (interval == 3 and boundary == last)),
            timed=interval == 2,
        )
        for boundary in dict.fromkeys((paper, last))
        for order in (0, 1)
        for interval in (2, 3, 4)
    ]
    for reuse_range in PAPER_RANGES:
        methods += [
            _dance(
                f"BlockDance-{interval}, {reuse_range[0]:.0%} to {reuse_range[1]:.0%}",
                f"BlockDance, {reuse_range[0]:.0%} to {reuse_range[1]:.0%}",
                f"N={interval}, {reuse_range[0]:.0%}",
                num_inference_steps,
                BlockDanceConfig(interval=interval, boundary=last, reuse_range=reuse_range),
                main=False,
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
                main=interval == 2 and count > 0.75 * num_inference_steps,
                timed=False,
            )
            for interval in (2, 3)
        ]
    return methods


def _dance(
    name: str, family: str, label: str, num_inference_steps: int, config: BlockDanceConfig, *, main: bool, timed: bool = True
) -> Method:
    first, last = config.reuse_range
    source = "the cached output (the paper)" if config.order == 0 else "an extrapolation of the cached outputs"
    note = (
        f"Of every {config.interval} steps between {first:.0%} and {last:.0%}, the first computes; the others start after block "
        f"{config.boundary} from {source}."
    )
    return planned_method(name, family, "blockdance", label, num_inference_steps, config, note, main=main, timed=timed)


def deep_cache(num_blocks: int, num_inference_steps: int) -> list[Method]:
    """DeepCache (arXiv 2312.00858) carried over to a transformer, which has no skip connection from its first to its last blocks.

    Its U-Net keeps the outermost blocks and reuses what the inner ones made: here the first and the last blocks always run, and
    between them the change that each inner block made when it last ran is added. As there, uniformly over *all* steps (its
    intervals 2, 3 and 5 are the paper's), the first of every interval computes.
    """
    outer = max(1, round(OUTER_SHARE * num_blocks))
    inner = tuple(range(outer, num_blocks - outer))
    if not inner:
        return []
    methods = []
    for interval in DEEP_CACHE_INTERVALS:
        actions = [int(step % interval > 0) for step in range(num_inference_steps)]
        plan = ReuseSchedule(torch.tensor([actions]), (BlockReuse(blocks=inner),))
        note = (
            f"Every {interval}th step computes; at the others blocks {inner[0]} to {inner[-1]} are skipped and the change that each "
            "made when it last ran is added."
        )
        methods.append(
            planned_method(
                f"DeepCache, N={interval}", DEEP_CACHE, "peers", f"N={interval}", num_inference_steps, plan, note, main=interval == 2
            )
        )  # fmt: skip
    return methods


def num_blocks_of(subject: Subject) -> int:
    """Length of the pipeline's block stack."""
    transformer = subject.pipeline.transformer
    return len(block_stack(transformer, find_layout(transformer)))


def training_free(subject: Subject) -> list[Method]:
    """Full compute, fewer steps, BlockDance and DeepCache of any pipeline, images or videos, in default settings."""
    steps, num_blocks = subject.num_inference_steps, num_blocks_of(subject)
    return [full_method(steps), *fewer_steps(steps), *blockdance(num_blocks, steps), *deep_cache(num_blocks, steps)]
