"""Schedules that are chosen by measuring how much features change: calibrated BlockDance-N, and Block Caching."""

from collections.abc import Callable, Sequence

import torch

from ada.evaluation.methods.base import BLOCK_CACHING, CALIBRATED, Method, Unavailable, planned_method
from ada.evaluation.subject import Subject
from blockdance import FeatureChange, Plan, ReuseSchedule, ScheduleError, measure_feature_change

TOLERANCES = (0.05, 0.1, 0.2)
THRESHOLDS = (0.1, 0.2, 0.4)


def calibrated_methods(subject: Subject, prompts: Sequence[str], seeds: Sequence[int]) -> list[Method]:
    """BlockDance-N calibrated at several tolerances, and Block Caching at several thresholds δ.

    Args:
        subject: the pipeline; it generates the prompts once, with every step computed.
        prompts: held out from the evaluation.
        seeds: of their noise.
    """
    steps = subject.num_inference_steps
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    measured = measure_feature_change(
        subject.pipeline, prompts, num_inference_steps=steps, generator=generators, output_type="latent", **subject.arguments
    )
    on = f"measured on {len(prompts)} other prompts"
    return [
        *(
            _method(
                f"Calibrated, tolerance {tolerance:g}", CALIBRATED, f"{tolerance:g}", steps, measured, _proposal(tolerance),
                f"The BlockDance-N that saves most while the injected features stay within {tolerance:g}, {on}",
                main=tolerance == TOLERANCES[len(TOLERANCES) // 2],
            )
            for tolerance in TOLERANCES
        ),
        *(
            _method(
                f"Block Caching, δ {threshold:g}", BLOCK_CACHING, f"{threshold:g}", steps, measured, _caching(threshold),
                f"Every block is reused until its changes add up to {threshold:g}, {on} (arXiv 2312.03209, without scale-shift)",
                main=threshold == THRESHOLDS[len(THRESHOLDS) // 2],
            )
            for threshold in THRESHOLDS
        ),
    ]  # fmt: skip


def _proposal(tolerance: float) -> Callable[[FeatureChange], Plan]:
    return lambda measured: measured.propose(tolerance)


def _caching(threshold: float) -> Callable[[FeatureChange], Plan]:
    return lambda measured: measured.block_caching(threshold)


def _method(
    name: str, family: str, label: str, steps: int, measured: FeatureChange, choose: Callable[[FeatureChange], Plan], note: str,
    *, main: bool,
) -> Method:  # fmt: skip
    """The method, or one that says why nothing was chosen."""
    try:
        plan = choose(measured)
    except ScheduleError as error:
        return Method(
            name=name, family=family, group="blockdance", label=label, num_inference_steps=steps,
            accelerate=Unavailable(str(error)), note=note, main=main,
        )  # fmt: skip
    return planned_method(
        name, family, "blockdance", label, steps, plan, f"{note}: {_describe(plan)}.", main=main, timed=family == BLOCK_CACHING
    )


def _describe(plan: Plan) -> str:
    """A schedule by its number of kinds, which Block Caching has many of; a configuration as it is."""
    return f"{len(plan.kinds)} different sets of blocks" if isinstance(plan, ReuseSchedule) else str(plan)
