"""Where a plan comes from: an object, a file, or a folder of a trained policy, here or on the Hub."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from torch import nn

from blockdance.errors import ScheduleError
from blockdance.plan import Plan
from blockdance.plan_file import load_plan

ENTRY_POINTS = "blockdance.plans"
"""Packages that train policies name under this group of entry points what loads one: a function of a folder or Hub id."""


def resolve_plan(plan: Plan | str | Path, transformers: Mapping[str, nn.Module]) -> Plan:
    """A plan as an object.

    Args:
        plan: the plan, a file that `save_plan` wrote, or the folder or Hub id of a trained policy.
        transformers: the models that it is for.

    Raises:
        FileNotFoundError: there is no such file, folder or repository.
        ScheduleError: the file is no plan for these models, or no installed package loads policies.
    """
    if not isinstance(plan, str | Path):
        return plan
    path = Path(plan)
    is_policy = path.is_dir() or (
        isinstance(plan, str) and plan.count("/") == 1 and path.suffix != ".json" and not path.exists()
    )
    if is_policy:
        return _load_policy(str(plan))
    return next(load_plan(path, transformer) for transformer in transformers.values())


def _load_policy(source: str) -> Plan:
    loaders = entry_points(group=ENTRY_POINTS)
    if not loaders:
        raise ScheduleError(
            f"{source} is the folder or Hub id of a trained policy, and no installed package loads those. `pip install blockdance-ada`, or "
            "load it yourself: `apply_blockdance(pipe, AdaPolicy.from_pretrained(…))` with `from ada.policy import AdaPolicy`."
        )
    plan: Plan = next(iter(loaders)).load()(source)
    return plan
