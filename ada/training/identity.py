"""What makes a training run the run it is, and whose folder a folder is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from ada.data import PromptDataModule
from ada.rollouts.fingerprints import digest
from ada.training.errors import RunError
from ada.training.files import write_whole
from ada.training.ladder import LadderTraining
from ada.training.rollout_data import RolloutDataModule
from ada.training.steps import StepTraining

LENGTHS = {"max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
"""What else says how many steps a run has, with Lightning's defaults, which go unsaid."""


def identify(trainer: Trainer, module: LightningModule, data: LightningDataModule, config: Any) -> dict[str, Any]:
    """Settings, prompts and frozen weights of a run, as JSON. The trainer's settings are no part of it, so that a run may go on for
    longer; but a ladder's learning rate falls over all of its epochs, so these are.

    Args:
        trainer, module, data: the run's.
        config: the settings as the command line gave them.
    """
    found = {name: _plain(config.get(name)) for name in ("seed_everything", "model", "data")}
    if isinstance(data, RolloutDataModule):
        found["rollouts"] = data.collector.identity
        found["prompts"] = {split: _summary([case.prompt for case in data.cases(split)]) for split in ("train", "validation")}
    if isinstance(data, PromptDataModule):
        found["prompts"] = {split: _summary(list(data.prompts(split)["prompt"])) for split in ("train", "validation")}
    if isinstance(module, StepTraining):
        found["base"] = digest(module.pipeline.fingerprint())
    if isinstance(module, LadderTraining):
        length = {name: getattr(trainer, name) for name in LENGTHS if getattr(trainer, name) != LENGTHS[name]}
        found["trainer"] = {"max_epochs": trainer.max_epochs, "processes": trainer.world_size, **length}
    content: dict[str, Any] = json.loads(json.dumps(found))
    return content


def claim_folder(folder: Path, identity: Mapping[str, Any], write: bool) -> None:
    """Makes a folder a run's own. One in which another run has learnt something is left as it is.

    Args:
        folder: the run's folder.
        identity: of the run, as `identify` gives it.
        write: whether this process writes; the others check alone.

    Raises:
        RunError: the folder is another run's, or it cannot be told whose; says what differs.
    """
    file, last = folder / "run.json", folder / "checkpoints" / "last.ckpt"
    if last.is_file() and not file.is_file():
        raise RunError(
            f"{folder} holds what a run has learnt ({last.name}), and no {file.name} that says which. Put that file back, give another "
            "folder with `--trainer.default_root_dir`, or delete this one."
        )
    learnt = last.is_file() or (folder / "policy").is_dir()
    if file.is_file() and learnt:
        differences = _differences(_read(file), identity)
        if differences:
            raise RunError(
                f"{folder} holds a run of other settings (there → now): {'; '.join(differences)}. Give another folder with "
                "`--trainer.default_root_dir`, or delete that one."
            )
    elif write:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(identity, indent=1, ensure_ascii=False) + "\n").encode())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"{file} cannot be read ({error}), so whose folder it is cannot be told. Give another folder with "
            "`--trainer.default_root_dir`."
        ) from error


def _summary(prompts: list[str]) -> str:
    return f"{len(prompts)} prompts, {digest(prompts)}"


def _plain(value: Any) -> Any:
    """A configuration as JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float | str | bool | None):
        return value
    return _plain(vars(value)) if type(value).__name__ == "Namespace" else str(value)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two pieces of JSON, one line a place."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        return [line for name in names for line in _differences(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))]
    return [] if before == now else [f"{path}: {before} → {now}"]
