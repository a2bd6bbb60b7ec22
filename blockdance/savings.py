"""A plan that saves nothing is said, with what was found and what to do."""

import warnings
from collections.abc import Collection

from blockdance.generation import Generation
from blockdance.runtime import Controller
from blockdance.schedule import COMPUTE, BlockDanceConfig, step_range


def warn_of_nothing_saved(controllers: Collection[Controller]) -> bool:
    """Warns, at the end of a generation, where no step of any of its transformers reused though the plan is made to; returns whether."""
    ran = [(controller, controller.generation) for controller in controllers if controller.generation is not None]
    if any(generation.has_reused for _, generation in ran):
        return False
    reasons = [reason for controller, generation in ran if (reason := _reason(controller, generation))]
    if not reasons:
        return False
    warnings.warn(f"BlockDance saved nothing in this generation: {reasons[0]}", stacklevel=2)
    return True


def _reason(controller: Controller, generation: Generation) -> str | None:
    """Why a transformer reused nothing; None where its plan wants it so."""
    plan, num_steps = controller.plan, generation.num_steps
    if generation.schedule is None:
        first = next(step for step, action in enumerate(generation.taken[0]) if action != -1)
        return (
            f"{type(plan).__name__} was never asked. Of {num_steps} steps those from {first} on ran, and it is asked after the second of "
            "them at the earliest, about those that follow. Take more steps, or, from an image, a greater `strength`."
        )
    planned = (generation.schedule.actions != COMPUTE).any(0).nonzero().flatten().tolist()
    if not planned:
        if not isinstance(plan, BlockDanceConfig):
            return None
        first, last = step_range(num_steps, plan.reuse_range)
        return (
            f"of {num_steps} steps, `reuse_range` {plan.reuse_range} covers those from {first} to before {last}, and of every group of "
            f"{plan.interval} the first computes. Take more steps, or widen `reuse_range`."
        )
    steps = ", ".join(map(str, planned))
    if generation.is_unsplit:
        return (
            f"steps {steps} were to reuse, but the images of the batch take different actions, and this model cannot run them apart. "
            f"{controller.layout.note} Use a plan with the same actions for all images, or batches of one."
        )
    kinds = "; ".join(str(kind) for kind in controller.kinds)
    return (
        f"steps {steps} were to reuse ({kinds}), but all computed: in these calls the model left these blocks out, or too few steps ran "
        "before. Choose the boundary among the blocks that run: `python -m blockdance inspect` lists them."
    )
