"""Plans as small JSON files that name the model they were made for."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from blockdance.errors import ScheduleError
from blockdance.kinds import KINDS, Kind
from blockdance.layouts import block_stack, find_layout
from blockdance.schedule import BlockDanceConfig, ReuseSchedule
from blockdance.targets import transformers_of

_FORMAT = "blockdance-plan-1"


def save_plan(plan: BlockDanceConfig | ReuseSchedule, path: str | Path, target: Any) -> None:
    """Writes a plan for a model; `apply_blockdance(pipe, path)` carries it out.

    Args:
        plan: a training-free config, or a schedule.
        path: file to write.
        target: the pipeline or transformer that the plan was made for.

    Raises:
        ScheduleError: it is no plan that a file holds.
    """
    if not isinstance(plan, BlockDanceConfig | ReuseSchedule):
        raise ScheduleError(
            f"A plan file holds a BlockDanceConfig or a ReuseSchedule; got {type(plan).__name__}. A trained policy is saved as a folder: "
            "`policy.save_pretrained(folder)`."
        )
    content: dict[str, Any] = {"format": _FORMAT, "model": _model(target)}
    if isinstance(plan, BlockDanceConfig):
        content["config"] = asdict(plan)
    else:
        content["schedule"] = {"actions": plan.actions.tolist(), "kinds": [dict(vars(kind)) for kind in plan.kinds]}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def load_plan(path: str | Path, target: Any) -> BlockDanceConfig | ReuseSchedule:
    """Reads a plan and checks that it was made for this pipeline or transformer.

    Raises:
        FileNotFoundError: there is no such file.
        ScheduleError: it is no plan, or one for another model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no plan {path}. `python -m blockdance calibrate` makes one; or pass a BlockDanceConfig instead of a file."
        )
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        plan = _plan(content)
        made_for = content["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ScheduleError(
            f"{path} is no plan that `save_plan` wrote ({type(error).__name__}: {error}). `python -m blockdance calibrate` makes one; a "
            "trained policy is given by its folder."
        ) from error
    model = _model(target)
    if made_for != model:
        raise ScheduleError(
            f"The plan {path} was made for {made_for['class']} with {made_for['blocks']} blocks, but this model is "
            f"{model['class']} with {model['blocks']}. Calibrate this model: `python -m blockdance calibrate`."
        )
    return plan


def _model(target: Any) -> dict[str, Any]:
    transformer = next(iter(transformers_of(target).values()))
    return {"class": type(transformer).__name__, "blocks": len(block_stack(transformer, find_layout(transformer)))}


def _plan(content: dict[str, Any]) -> BlockDanceConfig | ReuseSchedule:
    if "config" in content:
        config = content["config"]
        unknown = set(config) - {field.name for field in fields(BlockDanceConfig)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return BlockDanceConfig(**config | {"reuse_range": tuple(config["reuse_range"])})
    schedule = content["schedule"]
    return ReuseSchedule(torch.tensor(schedule["actions"]), tuple(_kind(kind) for kind in schedule["kinds"]))


def _kind(values: dict[str, Any]) -> Kind:
    """The kind of reuse whose fields these are; JSON knows no tuples."""
    for kind_class in KINDS:
        if set(values) <= {field.name for field in fields(kind_class)}:
            kind: Kind = kind_class(**{name: tuple(one) if isinstance(one, list) else one for name, one in values.items()})
            return kind
    raise ValueError(f"no kind of reuse has the settings {', '.join(sorted(values))}")
