"""What does not look at the image: fewer steps, BlockDance-N, DeepCache carried over, and schedules searched or calibrated on others."""

from collections.abc import Callable, Sequence

import torch

from ada.evaluation.methods.base import FEWER_STEPS, FULL_COMPUTE, STATIC, Method, Unavailable, planned_method, unchanged
from ada.rollouts import FrozenPipeline
from ada.schedules import Ladder
from blockdance import BlockDanceConfig, BlockReuse, Plan, ReuseSchedule, ScheduleError, measure_feature_change

MOST_STEP_COUNTS = 10
PAPER_RANGES = ((0.25, 0.95), (0.6, 0.95))
"""The paper's range on DiT-XL/2 and Open-Sora, and a cautious one; 40–95 % (PixArt-α) is the default of the other rows."""
DEEP_CACHE_INTERVALS = (2, 3, 5)
OUTER_SHARE = 1 / 7
"""Share of the blocks that DeepCache's carried-over form always runs at either end."""
TIMED_LEVELS = (0.15, 0.25, 0.35, 0.45)
TOLERANCES = (0.05, 0.1, 0.2)
THRESHOLDS = (0.1, 0.2, 0.4)


def training_free(frozen: FrozenPipeline) -> list[Method]:
    """Full compute, fewer steps, BlockDance and DeepCache of any pipeline, images or videos, in default settings."""
    steps, num_blocks = frozen.num_inference_steps, frozen.num_blocks
    return [full_method(steps), *fewer_steps(steps), *blockdance(num_blocks, steps), *deep_cache(num_blocks, steps)]


def full_method(num_inference_steps: int) -> Method:
    """The reference of all others."""
    return Method(
        name=FULL_COMPUTE, family=FULL_COMPUTE, group="plain", label="full", num_inference_steps=num_inference_steps,
        accelerate=unchanged, note="The plain pipeline: every block at every step. The reference of the others.",
    )  # fmt: skip


def fewer_steps(num_inference_steps: int) -> list[Method]:
    """Plain pipelines with fewer steps, from one fewer down to half: dense enough to find the one that is as fast as any method."""
    counts = range(num_inference_steps - 1, max(0, num_inference_steps // 2 - 1), -1)
    counts = counts[:: -(-len(counts) // MOST_STEP_COUNTS)]
    return [
        Method(
            name=f"{FEWER_STEPS} ({count})", family=FEWER_STEPS, group="plain", label=str(count), num_inference_steps=count,
            accelerate=unchanged, note=f"The plain pipeline with {count} steps.", settings={"num_inference_steps": count},
            # every second one, down to the fewest: latencies between them are as good as on a line
            main=place % 2 == (len(counts) - 1) % 2,
        )
        for place, count in enumerate(counts)
    ]  # fmt: skip


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
            f"BlockDance-{interval}, block {boundary}, order {order}", f"BlockDance, block {boundary}, order {order}",
            f"N={interval}", num_inference_steps, BlockDanceConfig(interval=interval, boundary=boundary, order=order),
            main=order == 0 and (interval == 2 or (interval == 3 and boundary == last)), timed=interval == 2,
        )
        for boundary in dict.fromkeys((paper, last))
        for order in (0, 1)
        for interval in (2, 3, 4)
    ]  # fmt: skip
    methods += [
        _dance(
            f"BlockDance-{interval}, {start:.0%} to {end:.0%}", f"BlockDance, {start:.0%} to {end:.0%}", f"N={interval}, {start:.0%}",
            num_inference_steps, BlockDanceConfig(interval=interval, boundary=last, reuse_range=(start, end)), main=False,
        )
        for start, end in PAPER_RANGES
        for interval in (2, 3)
    ]  # fmt: skip
    methods += [
        _dance(
            f"BlockDance-{interval} of {count} steps", "BlockDance with fewer steps", f"N={interval} of {count}", count,
            BlockDanceConfig(interval=interval, boundary=last),
            main=interval == 2 and count > 0.75 * num_inference_steps, timed=False,
        )
        for count in dict.fromkeys(round(share * num_inference_steps) for share in (0.85, 0.7))
        for interval in (2, 3)
    ]  # fmt: skip
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
    return [
        planned_method(
            f"DeepCache, N={interval}", "DeepCache", "peers", f"N={interval}", num_inference_steps,
            ReuseSchedule(
                torch.tensor([[int(step % interval > 0) for step in range(num_inference_steps)]]), (BlockReuse(blocks=inner),)
            ),
            f"Every {interval}th step computes; at the others blocks {inner[0]} to {inner[-1]} are skipped and the change that each "
            "made when it last ran is added.",
            main=interval == 2,
        )
        for interval in DEEP_CACHE_INTERVALS
        if inner
    ]  # fmt: skip


def ladder_methods(ladder: Ladder, num_inference_steps: int) -> list[Method]:
    """Every rung of a ladder but the first as a static schedule; those nearest to 15, 25, 35 and 45 % are timed."""
    fitted = ladder.for_steps(num_inference_steps)
    reused = (fitted.actions > 0).double().mean(1)
    timed = {int((reused - level).abs().argmin()) for level in TIMED_LEVELS}
    rows = {tuple(rung): place for place, rung in enumerate(fitted.actions.tolist()) if any(rung)}
    return [
        planned_method(
            f"Static rung {place}, {float(reused[place]):.0%}", STATIC, "static", f"{float(reused[place]):.0%}", num_inference_steps,
            fitted.schedule(torch.tensor([place])), f"Rung {place} of the ladder: {''.join(map(str, rung))}, searched on training prompts.",
            timed=place in timed,
        )
        for rung, place in rows.items()
    ]  # fmt: skip


def calibrated_methods(frozen: FrozenPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> list[Method]:
    """BlockDance-N calibrated at several tolerances, and Block Caching at several thresholds δ, by how much features change.

    Args:
        frozen: the pipeline; it generates the prompts once, with every step computed.
        prompts: held out from the evaluation.
        seeds: of their noise.
    """
    steps = frozen.num_inference_steps
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    measured = measure_feature_change(
        frozen.pipeline, prompts, num_inference_steps=steps, generator=generators, output_type="latent", **frozen.arguments
    )

    def method(
        name: str, family: str, value: float, note: str, choose: Callable[[float], Plan], *, main: bool, timed: bool
    ) -> Method:
        """The method, or one that says why nothing was chosen."""
        note = f"{note} {value:g}, measured on {len(prompts)} other prompts"
        try:
            plan = choose(value)
        except ScheduleError as error:
            return Method(
                name=f"{name} {value:g}", family=family, group="blockdance", label=f"{value:g}", num_inference_steps=steps,
                accelerate=Unavailable(str(error)), note=f"{note}.", main=main,
            )  # fmt: skip
        chosen = f"{len(plan.kinds)} different sets of blocks" if isinstance(plan, ReuseSchedule) else str(plan)
        return planned_method(
            f"{name} {value:g}", family, "blockdance", f"{value:g}", steps, plan, f"{note}: {chosen}.", main=main, timed=timed
        )

    calibrated = [
        method(
            "Calibrated, tolerance", "BlockDance, calibrated", tolerance,
            "The BlockDance-N that saves most while the injected features stay within", measured.propose,
            main=tolerance == TOLERANCES[len(TOLERANCES) // 2], timed=False,
        )
        for tolerance in TOLERANCES
    ]  # fmt: skip
    cached = [
        method(
            "Block Caching, δ", "Block Caching", threshold,
            "arXiv 2312.03209, without scale-shift: every block is reused until its changes add up to", measured.block_caching,
            main=threshold == THRESHOLDS[len(THRESHOLDS) // 2], timed=True,
        )
        for threshold in THRESHOLDS
    ]  # fmt: skip
    return [*calibrated, *cached]
