"""Policies for other programs: the static schedule of one level of saving, as a file that cache-dit reads."""

from pathlib import Path
from typing import Literal

import yaml

from ada.policy import AdaPolicy, LadderPolicy
from blockdance import BlockDanceError, ReuseSchedule
from blockdance.schedule import COMPUTE


class ExportError(BlockDanceError):
    """What a policy decides cannot be said in the other program's words."""


def static_schedule(policy: AdaPolicy, compute: float, num_steps: int) -> ReuseSchedule:
    """The rung of a policy's ladder that comes nearest to a budget: one schedule for all images.

    Args:
        policy: a ladder's policy.
        compute: share of the denoising compute.
        num_steps: denoising steps; the ladder is stretched to them.

    Raises:
        ExportError: the policy has no ladder.
        ValueError: a budget that it cannot meet, or too few steps.
    """
    if not isinstance(policy, LadderPolicy):
        raise ExportError(
            f"A {type(policy).__name__} decides every step by the image and has no static schedule. Export a ladder's policy, or "
            "search a ladder with `python -m ada search`."
        )
    policy.with_options(compute=compute).check_budget(num_steps)
    ladder = policy.ladder.for_steps(num_steps)
    distance = (1 - ladder.saved(policy.reuse_costs) - compute).abs()
    return ReuseSchedule(ladder.actions[distance.argmin()][None], ladder.kinds)


def cache_dit_config(policy: AdaPolicy, compute: float, num_steps: int, source: str) -> str:
    """A cache-dit configuration, YAML that its `load_configs` reads: a `steps_computation_mask` of the policy's ladder.

    cache-dit computes the first block at every step and the blocks after the boundary too; what is between adds what it added when
    it last ran.

    Args:
        policy, compute, num_steps: as in `static_schedule`.
        source: where the policy comes from, for the header.

    Raises:
        ExportError: no ladder, or a schedule that reuses nothing, or at several boundaries, which cache-dit has no word for.
        ValueError: a budget that the policy cannot meet, or too few steps.
    """
    schedule = static_schedule(policy, compute, num_steps)
    actions: list[int] = schedule.actions[0].tolist()
    used = sorted({action for action in actions if action != COMPUTE})
    boundaries = {policy.kinds[action - 1].boundary for action in used}
    if not used:
        raise ExportError(
            f"The schedule nearest to `compute` {compute} computes every step: cache-dit has nothing to do. Give less."
        )
    if len(boundaries) > 1:
        raise ExportError(
            f"The schedule nearest to `compute` {compute} reuses after the blocks {sorted(boundaries)}; cache-dit knows one boundary for "
            "all steps."
        )
    mask = [int(action == COMPUTE) for action in actions]
    settings = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": policy.base_model.num_blocks - 1 - boundaries.pop(),
        "max_warmup_steps": mask.index(0),
        "num_inference_steps": num_steps,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }
    kinds = "; ".join(str(policy.kinds[action - 1]) for action in used)
    header = (
        f"# {source} at compute {compute:g}, {num_steps} steps: one schedule for all images.\n"
        f"# The policy's own reuse is {kinds}; cache-dit adds the last residual of the blocks instead.\n"
        f"# For {policy.base_model.transformer} with {policy.base_model.num_blocks} blocks, and this number of steps only.\n"
    )
    return header + yaml.safe_dump({"cache_config": settings}, sort_keys=False, default_flow_style=None, width=200)


def export(
    policy: str,
    output: Path,
    format: Literal["cache-dit"] = "cache-dit",
    compute: float = 0.75,
    steps: int = 20,
    revision: str | None = None,
) -> None:
    """Writes one level of a policy's saving as a file of another program: a static schedule, the same for every image.

    Args:
        policy: folder or Hub id.
        output: the file.
        format: `cache-dit`: YAML that its `load_configs` and SGLang's `--cache-dit-config` read.
        compute: share of the denoising compute that the schedule comes nearest to.
        steps: denoising steps; the schedule serves this number only.
        revision: branch, tag or commit on the Hub.
    """
    content = cache_dit_config(AdaPolicy.from_pretrained(policy, revision=revision), compute, steps, policy)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(content, encoding="utf-8")
    print(f"Wrote {output}, for {format} and {steps} steps.")
