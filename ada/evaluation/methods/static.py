"""What does not look at the image: fewer steps, BlockDance-N, DeepCache carried over, and schedules searched or calibrated on others."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from ada.evaluation.methods.base import FEWER_STEPS, FULL_COMPUTE, STATIC, Method
from ada.rollouts import FrozenPipeline, name_of
from ada.schedules import Ladder
from blockdance import BlockDanceConfig, BlockReuse, FeatureRecorder, Plan, ReuseSchedule, ScheduleError

MOST_STEP_COUNTS = 10
MOST_QUICK = 0.85
PAPER_RANGES = ((0.25, 0.95), (0.6, 0.95))
"""The paper's range on DiT-XL/2 and Open-Sora, and a cautious one; 40–95 % (PixArt-α) is the default of the other rows."""
DEEP_CACHE_INTERVALS = (2, 3, 5)
OUTER_SHARE = 1 / 7
"""Share of the blocks that DeepCache's carried-over form always runs at either end."""
TIMED_LEVELS = (0.15, 0.35)
TOLERANCES = (0.05, 0.1, 0.2)
THRESHOLDS = (0.1, 0.2, 0.4)


def training_free(frozen: FrozenPipeline) -> list[Method]:
    """Full compute, fewer steps, BlockDance and DeepCache of any pipeline, images or videos, in default settings."""
    steps, num_blocks = frozen.num_inference_steps, frozen.num_blocks
    return [full_method(steps), *fewer_steps(steps), *blockdance(num_blocks, steps), *deep_cache(num_blocks, steps)]


def full_method(num_inference_steps: int) -> Method:
    """The reference of all others."""
    note = "The plain pipeline: every block at every step. The reference of the others."
    return Method(name=FULL_COMPUTE, family=FULL_COMPUTE, group="plain", num_inference_steps=num_inference_steps, note=note)


def fewer_steps(num_inference_steps: int) -> list[Method]:
    """Plain pipelines with fewer steps, from one fewer down to half: dense enough to find the one that is as fast as any method."""
    counts = range(num_inference_steps - 1, max(0, num_inference_steps // 2 - 1), -1)
    counts = counts[:: -(-len(counts) // MOST_STEP_COUNTS)]
    return [
        Method(
            name=f"{FEWER_STEPS} ({count})", family=FEWER_STEPS, group="plain", num_inference_steps=count,
            note=f"The plain pipeline with {count} steps.", settings={"num_inference_steps": count},
            # every second one, down to the fewest: latencies between them are as good as on a line; a step or two fewer do more damage than
            # the full pipeline for some images and four fewer for the others
            main=place % 2 == (len(counts) - 1) % 2, quick=count < MOST_QUICK * num_inference_steps,
        )
        for place, count in enumerate(counts)
    ]  # fmt: skip


def blockdance(num_blocks: int, num_inference_steps: int, other_boundary: int | None = None) -> list[Method]:
    """BlockDance-2, 3 and 4 in both orders at the paper's boundary and another, by default the last block; other ranges; and together with
    fewer steps."""
    paper = BlockDanceConfig().kind(num_blocks).boundary
    last = num_blocks - 1 if other_boundary is None else other_boundary
    steps, methods = num_inference_steps, list[Method]()
    for boundary, order, interval in product(dict.fromkeys((paper, last)), (0, 1), (2, 3, 4)):
        main = order == 0 and (interval == 2 or (interval == 3 and boundary == last))
        kind, options = f", block {boundary}, order {order}", {"boundary": boundary, "order": order}
        methods.append(_dance(interval, kind, steps, options, main=main, timed=interval == 2 and boundary == last))
    for (start, end), interval in product(PAPER_RANGES, (2, 3)):
        kind = f", {start:.0%} to {end:.0%}"
        methods.append(_dance(interval, kind, steps, {"boundary": last, "reuse_range": (start, end)}, main=False))
    for count, interval in product(dict.fromkeys(round(share * steps) for share in (0.85, 0.7)), (2, 3)):
        family, main = "BlockDance with fewer steps", interval == 2 and count > 0.75 * steps
        methods.append(_dance(interval, f" of {count} steps", count, {"boundary": last}, family, main=main, timed=False))
    return methods


def _dance(
    interval: int, kind: str, steps: int, options: dict[str, Any], family: str | None = None, *, main: bool, timed: bool = True
) -> Method:
    config = BlockDanceConfig(interval=interval, **options)
    first, last = config.reuse_range
    source = "the cached output (the paper)" if config.order == 0 else "an extrapolation of the cached outputs"
    return Method(
        name=f"BlockDance-{interval}{kind}", family=family or f"BlockDance{kind}", group="blockdance", num_inference_steps=steps,
        plan=config, main=main, timed=timed, quick=family is None,
        note=f"Of every {interval} steps between {first:.0%} and {last:.0%}, the first computes; the others start after block "
        f"{config.boundary} from {source}.",
    )  # fmt: skip


def deep_cache(num_blocks: int, num_inference_steps: int) -> list[Method]:
    """DeepCache (arXiv 2312.00858) carried over to a transformer, which has no skip connection from its first to its last blocks.

    Its U-Net keeps the outermost blocks and reuses what the inner ones made: here the first and the last blocks always run, and
    between them the change that each inner block made when it last ran is added. As there, uniformly over *all* steps (its
    intervals 2, 3 and 5 are the paper's), the first of every interval computes.
    """
    outer = max(1, round(OUTER_SHARE * num_blocks))
    inner = tuple(range(outer, num_blocks - outer))
    rows = {interval: [[int(step % interval > 0) for step in range(num_inference_steps)]] for interval in DEEP_CACHE_INTERVALS}
    return [
        Method(
            name=f"DeepCache, N={interval}", family="DeepCache", group="peers", num_inference_steps=num_inference_steps,
            plan=ReuseSchedule(torch.tensor(actions), (BlockReuse(blocks=inner),)), main=interval == 2,
            note=f"Of every {interval} steps the first computes; at the others blocks {inner[0]} to {inner[-1]} are skipped and the "
            "change that each made when it last ran is added.",
        )
        for interval, actions in rows.items()
        if inner
    ]  # fmt: skip


def ladder_methods(ladder: Ladder, num_inference_steps: int, num_blocks: int) -> list[Method]:
    """Every rung of a ladder but the first as a static schedule; those nearest to 15 and 35 % are timed. Of a ladder of a deeper model they
    say that it is one."""
    fitted = ladder.for_steps(num_inference_steps)
    last, reason = max(kind.boundary for kind in fitted.kinds), None
    if last >= num_blocks:
        reason = (
            f"The ladder (`--ladder`) reuses after block {last}, and the model has {num_blocks} blocks, 0 to {num_blocks - 1}."
        )
    reused = (fitted.actions > 0).double().mean(1).tolist()
    rungs = fitted.actions.tolist()
    rows = {place: rung for place, rung in enumerate(rungs) if any(rung) and rungs.index(rung) == place}
    timed = {min((abs(reused[place] - level), place) for place in rows)[1] for level in TIMED_LEVELS if rows}
    return [
        Method(
            name=f"Static rung {place}, {reused[place]:.0%}", family=STATIC, group="static", timed=place in timed,
            num_inference_steps=num_inference_steps, plan=fitted.schedule(torch.tensor([place])), reason=reason,
            note=f"Rung {place} of the ladder: {name_of(rung)}, searched on other prompts.",
        )
        for place, rung in rows.items()
    ]  # fmt: skip


def calibrated_methods(frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int]) -> list[Method]:
    """BlockDance-N calibrated at several tolerances, and Block Caching at several thresholds δ, by how much features change on prompts held
    out from the evaluation, which are generated once with every step computed."""
    steps = frozen.num_inference_steps
    with FeatureRecorder(frozen.pipeline, len(prompts)) as recorder:
        frozen.pipeline(**frozen.call_arguments(prompts, seeds) | {"output_type": "latent"})
    measured = recorder.result()
    proposed = "The BlockDance-N that saves most while the injected features stay within"
    cached = "arXiv 2312.03209, without scale-shift: every block is reused until its changes add up to"
    rows: list[tuple[str, str, str, Callable[[float], Plan], Sequence[float]]] = [
        ("Calibrated, tolerance", "BlockDance, calibrated", proposed, measured.propose, TOLERANCES),
        ("Block Caching, δ", "Block Caching", cached, measured.block_caching, THRESHOLDS),
    ]
    methods = []
    for name, family, note, choose, values in rows:
        for place, value in enumerate(values):
            plan, reason, chosen = None, None, ""
            try:
                plan = choose(value)
                chosen = f": {len(plan.kinds)} different sets of blocks" if isinstance(plan, ReuseSchedule) else f": {plan}"
            except ScheduleError as error:
                reason = str(error)
            methods.append(
                Method(
                    name=f"{name} {value:g}", family=family, group="blockdance", num_inference_steps=steps, plan=plan,
                    reason=reason, main=place == len(values) // 2, timed=family == "Block Caching",
                    note=f"{note} {value:g}, measured on {len(prompts)} other prompts{chosen}.",
                )
            )  # fmt: skip
    return methods
