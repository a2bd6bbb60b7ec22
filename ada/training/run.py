"""A run from its beginning, or from where it was killed, to the exported policy and the closing table."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ada.policy import AdaPolicy, LadderPolicy
from ada.training.ladder import LadderTraining
from ada.training.outcome import Outcome
from ada.training.pictures import draw_outcome, picture_decisions
from ada.training.publish import PushPolicy, describe_training, write_figures
from ada.training.rollout_data import RolloutDataModule
from ada.training.steps import StepTraining
from ada.training.summary import print_files, print_history, print_outcome

REQUIRED_LEVELS = (0.15, 0.20)
"""Shares of the compute saved at which `require_gain` demands that the policy wins."""


NUM_PICTURED = 8


class RunError(ValueError):
    """A run's folder that belongs to another run."""


class NothingLearntError(RuntimeError):
    """A policy that does not beat the mixture of static schedules, where it was required to."""


class Run:
    """One training run in its folder.

    Args:
        trainer: its `default_root_dir` is the run's folder.
        module: what learns.
        data: what it learns from.
        config: the settings as the command line gave them: the run's identity, but for the trainer's.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, data: LightningDataModule, config: Any) -> None:
        self.trainer, self.module, self.data = trainer, module, data
        self.folder = Path(trainer.default_root_dir)
        self._identity = json.loads(
            json.dumps({name: _plain(config.get(name)) for name in ("seed_everything", "model", "data")})
        )

    def train(self, require_gain: bool = False) -> None:
        """Trains to the end, exports the policy and says what came of it.

        Raises:
            RunError: the folder holds a run of other settings.
            NothingLearntError: with `require_gain`, the policy does not beat the mixture of static schedules.
        """
        started = time.monotonic()
        self._check_identity()
        for callback in self._publishers:
            callback.prepare()
        # an epoch's end is where a resumed run continues exactly
        keep = ModelCheckpoint(self.folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
        self.trainer.callbacks.append(keep)  # type: ignore[attr-defined]
        last = self.folder / "checkpoints" / "last.ckpt"
        if isinstance(self.module, StepTraining) and not last.is_file():
            self.trainer.validate(self.module, self.data, verbose=False)  # where it starts from
        self.trainer.fit(self.module, self.data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
        if not self.trainer.is_global_zero:
            return
        minutes = (time.monotonic() - started) / 60
        if isinstance(self.module, LadderTraining) and isinstance(self.data, RolloutDataModule):
            self._finish_ladder(self.module, self.data, minutes, require_gain)
        elif isinstance(self.module, StepTraining):
            self.module.policy.save_pretrained(self.folder / "policy")
            self._describe(self.module.policy, self.module.pipeline.model, minutes)
            print_history(self.module.validation_history, minutes)
            print_files(self.folder)
        self._publish()

    def _check_identity(self) -> None:
        file = self.folder / "run.json"
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            differences = _differences(before, self._identity)
            if differences:
                raise RunError(
                    f"{self.folder} holds a run of other settings (there → now): {'; '.join(differences)}. Give another folder with "
                    "`--trainer.default_root_dir`, or delete that one."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self._identity, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _finish_ladder(self, module: LadderTraining, data: RolloutDataModule, minutes: float, require_gain: bool) -> None:
        outcome = module.outcome()
        policy = module.finished_policy(outcome)
        policy.save_pretrained(self.folder / "policy")
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        draw_outcome(outcome, *module.static_points()).savefig(pictures / "outcome.png", dpi=130)
        self._picture(data, outcome, pictures / "decisions.png")
        self._describe(policy, data.pipeline.model, minutes, outcome)
        print_outcome(outcome, len(data.train_data), minutes)
        print_files(self.folder)
        if require_gain:
            check_gain(outcome)

    def _describe(self, policy: AdaPolicy, model: str, minutes: float, outcome: Outcome | None = None) -> None:
        """Writes the exported policy's card, and what it is made of."""
        training = describe_training(self._identity, minutes, self.module.device)
        write_figures(self.folder / "policy", policy, model, training, outcome, self.folder / "pictures")

    def _publish(self) -> None:
        """Publishes what was exported, where a callback says so."""
        for callback in self._publishers:
            callback.publish(self.folder / "policy")

    @property
    def _publishers(self) -> list[PushPolicy]:
        """What publishes the policy, in the one process that does."""
        callbacks = self.trainer.callbacks if self.trainer.is_global_zero else []  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, PushPolicy)]

    def _picture(self, data: RolloutDataModule, outcome: Outcome, path: Path) -> None:
        """The exported policy at work, at 20 % saved or what comes nearest."""
        if not outcome.levels:
            return
        saved = min((level.saved for level in outcome.levels), key=lambda level: abs(level - 0.2))
        cases = data.cases("validation") or data.cases("train")
        shown = cases[:: max(1, len(cases) // NUM_PICTURED)][:NUM_PICTURED]
        policy = LadderPolicy.from_pretrained(self.folder / "policy")
        picture_decisions(
            data.pipeline, policy, [case.prompt for case in shown], [case.seed for case in shown], 1 - saved, path
        )


def check_gain(outcome: Outcome) -> None:
    """Demands that the policy beats the mixture at 15 and 20 % saved, and that it is nowhere worse.

    Raises:
        NothingLearntError: says at which levels it does not.
    """
    verdicts = {level.saved: level.verdict for level in outcome.levels}
    failed = [
        f"{saved:.0%}: {verdicts.get(saved, 'not reached')}" for saved in REQUIRED_LEVELS if verdicts.get(saved) != "better"
    ]
    failed += [f"{saved:.0%}: worse" for saved, verdict in verdicts.items() if verdict == "worse"]
    if failed:
        raise NothingLearntError(f"The policy does not beat the mixture of static schedules at {', '.join(failed)} saved.")


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
