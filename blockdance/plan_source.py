"""Where a plan comes from: an object, a file, or a folder of a trained policy, here or on the Hub; with a wish, if it takes wishes."""

import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from blockdance.errors import ScheduleError
from blockdance.plan import Plan
from blockdance.plan_file import load_plan

ENTRY_POINTS = "blockdance.plans"
"""Packages that train policies name under this group of entry points what loads one: a function of a folder or Hub id."""


@runtime_checkable
class Adjustable(Protocol):
    """A decider that takes wishes."""

    def with_options(self, **wishes: float) -> "Plan":
        """The same with a wish; it stays as it is itself."""


def resolve_plan(
    plan: Plan | str | Path, transformers: Mapping[str, nn.Module], wishes: Mapping[str, float | None] | None = None
) -> Plan:
    """A plan as an object.

    Args:
        plan: the plan, a file that `save_plan` wrote, or the folder or Hub id of a trained policy; `user/name@revision` names a
            revision too.
        transformers: the models that it is for.
        wishes: options to set on a policy; those that are None are none.

    Raises:
        FileNotFoundError: there is no such file, folder or repository.
        ScheduleError: the file is no plan for these models, or one of a policy's folder; no installed package loads policies; or the
            plan takes no such wish.
        ValueError: a wish that cannot be met; it says which can.
    """
    if isinstance(plan, str | Path):
        plan = _load(plan, transformers)
    given = {name: wish for name, wish in (wishes or {}).items() if wish is not None}
    if not given:
        return plan
    named = ", ".join(f"`{name}`" for name in given)
    if not isinstance(plan, Adjustable):
        raise ScheduleError(f"{named}: only a trained policy takes wishes; {type(plan).__name__} is carried out as it is.")
    known = inspect.signature(plan.with_options).parameters
    if not set(given) <= set(known):
        raise ScheduleError(f"{type(plan).__name__} does not take {named}. It takes {', '.join(known)}.")
    return plan.with_options(**given)


def _load(plan: str | Path, transformers: Mapping[str, nn.Module]) -> Plan:
    path = Path(plan)
    if path.is_dir():
        return _load_policy(str(plan))
    is_hub_id = isinstance(plan, str) and plan.partition("@")[0].count("/") == 1 and path.suffix != ".json"
    if is_hub_id and not path.exists():
        return _load_policy(str(plan))
    if path.suffix != ".json" and not path.exists():
        raise FileNotFoundError(
            f"There is no plan file and no policy folder {path}. `python -m blockdance calibrate` makes a plan file, `python train.py` a "
            "policy folder; a policy on the Hub is `user/name`."
        )
    if path.name in ("config.json", "model.safetensors") and (path.parent / "model.safetensors").is_file():
        raise ScheduleError(f"{path} is one of a policy's files, which are loaded together. Give its folder: {path.parent}.")
    return load_plan(path, next(iter(transformers.values())))


def _load_policy(source: str) -> Plan:
    loaders = entry_points(group=ENTRY_POINTS)
    if not loaders:
        raise ScheduleError(
            f"{source} is the folder or Hub id of a trained policy, and no installed package loads those. Install `blockdance-ada`, or "
            "load it yourself: `apply_blockdance(pipe, AdaPolicy.from_pretrained(…))` with `from ada.policy import AdaPolicy`."
        )
    plan: Plan = next(iter(loaders)).load()(source)
    return plan
