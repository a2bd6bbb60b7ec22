"""A run from its beginning, or from where it was killed, to the exported policy and the closing table."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ada.data import PromptDataModule
from ada.policy import AdaPolicy, LadderPolicy
from ada.rollouts import FrozenPipeline
from ada.training.checkpoints import CheckpointFiles, KeepBest, KeepLast, StopTogether, read_checkpoint, stop_at_sigterm
from ada.training.errors import NothingLearntError, RunError
from ada.training.health import FiniteGradients, check_precision
from ada.training.identity import claim_folder, identify
from ada.training.ladder import LadderTraining
from ada.training.lines import ProgressLines
from ada.training.outcome import Outcome
from ada.training.pictures import draw_outcome, picture_decisions
from ada.training.publish import PushPolicy, describe_training, evaluation_command, write_figures
from ada.training.rollout_data import RolloutDataModule
from ada.training.signals import GreedySignals
from ada.training.steps import StepTraining
from ada.training.summary import FEWEST_CAPTIONS, print_files, print_history, print_outcome, verdict

REQUIRED_LEVELS = (0.15, 0.20)
"""Shares of the compute saved at which `require_gain` demands that the policy wins."""

NUM_PICTURED = 8
TERMINATED = 143
"""Exit status of a process that SIGTERM ended."""


class Run:
    """One training run in its folder.

    Args:
        trainer: its `default_root_dir` is the run's folder. It must have no checkpoint callback of its own.
        module: what learns.
        data: what it learns from.
        config: the settings as the command line gave them: the run's identity, but for the trainer's.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, data: LightningDataModule, config: Any) -> None:
        check_precision(str(trainer.precision))
        if trainer.max_epochs == 0 or trainer.limit_train_batches == 0:
            raise RunError(
                "With `trainer.max_epochs` or `trainer.limit_train_batches` 0 nothing would be learnt. Give 1 or more."
            )
        self.trainer, self.module, self.data, self._config = trainer, module, data, config
        self.folder = Path(trainer.default_root_dir)
        self._last = self.folder / "checkpoints" / "last.ckpt"
        self._best = self._add_callbacks()

    def _add_callbacks(self) -> KeepBest | None:
        trainer = self.trainer
        files = CheckpointFiles()
        trainer.strategy.checkpoint_io = files
        # a ladder's training is judged once, at its end: whoever chose by that judgement would find it too good
        best = KeepBest(self._last.parent, "validation/reward", "max") if isinstance(self.module, StepTraining) else None
        signals = [GreedySignals()] if isinstance(self.module, LadderTraining) else []
        callbacks = [FiniteGradients(), StopTogether(), *signals, *([best] if best else [])]
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            callbacks.append(KeepLast(self._last, files, within_epochs=isinstance(self.data, PromptDataModule)))
        bar = trainer.progress_bar_callback
        if bar is not None and not sys.stderr.isatty():
            trainer.callbacks.remove(bar)  # type: ignore[attr-defined]
            callbacks.append(ProgressLines())
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        return best

    def train(self, require_gain: bool = False) -> None:
        """Trains to the end, exports the policy and says what came of it. Lightning's dry run (`fast_dev_run`) leaves nothing but rollouts.

        Raises:
            RunError: the folder holds a run of other settings, the run cannot go on, or `require_gain` is asked of an algorithm that judges
                nothing beside static schedules.
            NothingLearntError: with `require_gain`, the policy does not beat the mixture of static schedules.
            SystemExit: the run was told to stop by SIGTERM.
        """
        if require_gain and not isinstance(self.module, LadderTraining):
            raise RunError(
                f"`require_gain` is for a ladder's training, which judges its policy beside static schedules; {type(self.module).__name__} "
                "does not. Leave it out, and compare the policy by `python evaluate.py`."
            )
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.fit(self.module, self.data)
            print("A dry run (`trainer.fast_dev_run`): training works, and nothing was exported.", flush=True)
            return
        started = time.monotonic()
        self._identity = identify(self.trainer, self.module, self.data, self._config)
        claim_folder(self.folder, self._identity, self.trainer.is_global_zero)
        for callback in self._publishers:
            callback.prepare()
        try:
            with stop_at_sigterm(self.trainer):
                self._fit()
                if self.trainer.is_global_zero:
                    self._finish((time.monotonic() - started) / 60, require_gain)
        except SIGTERMException as error:
            if self.trainer.is_global_zero:
                print(
                    f"Stopped by SIGTERM. What was rolled out and learnt is kept in {self.folder}; the same command goes on from there.",
                    file=sys.stderr,
                )
            raise SystemExit(TERMINATED) from error

    def _fit(self) -> None:
        last = self._last if self._last.is_file() else None
        if last is not None:
            self._check_epochs(read_checkpoint(last))
        elif isinstance(self.module, StepTraining):
            self.trainer.validate(self.module, self.data, verbose=False)  # where it starts from
            if self.trainer.received_sigterm:  # Lightning took it up, and would forget it
                raise SIGTERMException
        self.trainer.fit(self.module, self.data, ckpt_path=None if last is None else str(last), weights_only=True)

    def _check_epochs(self, checkpoint: dict[str, Any]) -> None:
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        wanted = self.trainer.max_epochs
        if wanted is not None and 0 <= wanted < done:
            raise RunError(
                f"{self.folder} has trained for {done} epochs, and `trainer.max_epochs` is {wanted}. Give `--trainer.max_epochs {done}` or "
                "more, or another folder with `--trainer.default_root_dir`."
            )
        if self.trainer.is_global_zero:
            of_all = "" if wanted is None or wanted < 0 else f" of {wanted}"
            print(f"Going on in {self.folder} after epoch {done}{of_all}.", flush=True)

    def _finish(self, minutes: float, require_gain: bool) -> None:
        """Exports the best; where nothing was validated, the last."""
        if self._best is not None and self._best.file.is_file():
            self.module.load_state_dict(read_checkpoint(self._best.file)["state_dict"])
        if isinstance(self.module, LadderTraining) and isinstance(self.data, RolloutDataModule):
            self._finish_ladder(self.module, self.data, minutes, require_gain)
        elif isinstance(self.module, StepTraining):
            self.module.policy.save_pretrained(self.folder / "policy")
            self._describe(self.module.policy, self.module.pipeline, minutes)
            print_history(self.module.validation_history, minutes)
            print_files(self.folder, evaluation_command(self.folder / "policy", self._identity))
        self._publish()

    def _finish_ladder(self, module: LadderTraining, data: RolloutDataModule, minutes: float, require_gain: bool) -> None:
        outcome = module.outcome()
        policy = module.finished_policy(outcome)
        policy.save_pretrained(self.folder / "policy")
        print_outcome(outcome, len(data.train_data), minutes)
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        draw_outcome(outcome, *module.static_points()).savefig(pictures / "outcome.png", dpi=130)
        self._picture(data, outcome, pictures / "decisions.png")
        self._describe(policy, data.pipeline, minutes, outcome)
        print_files(self.folder, evaluation_command(self.folder / "policy", self._identity))
        if require_gain:
            check_gain(outcome)

    def _describe(self, policy: AdaPolicy, pipeline: FrozenPipeline, minutes: float, outcome: Outcome | None = None) -> None:
        """Writes the exported policy's card, and what it is made of."""
        settings = {name: self._identity[name] for name in ("seed_everything", "model", "data")}
        # the module itself is back on the CPU by now
        training = describe_training(settings, minutes, pipeline.device)
        write_figures(self.folder / "policy", policy, pipeline.model, training, outcome, self.folder / "pictures")

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
        spent = outcome.curve.met_instead(1 - saved) or 1 - saved
        picture_decisions(data.pipeline, policy, [case.prompt for case in shown], [case.seed for case in shown], spent, path)


def check_gain(outcome: Outcome) -> None:
    """Demands that the policy beats the mixture at 15 and 20 % saved, and that it is nowhere worse.

    Raises:
        NothingLearntError: says at which levels it does not, or that too few captions were judged to say so.
    """
    if outcome.num_captions < FEWEST_CAPTIONS:
        raise NothingLearntError(verdict(outcome))
    verdicts = {level.saved: level.verdict for level in outcome.levels}
    failed = [
        f"{saved:.0%}: {verdicts.get(saved, 'not reached')}" for saved in REQUIRED_LEVELS if verdicts.get(saved) != "better"
    ]
    failed += [f"{saved:.0%}: worse" for saved, verdict in verdicts.items() if verdict == "worse"]
    if failed:
        raise NothingLearntError(f"The policy does not beat the mixture of static schedules at {', '.join(failed)} saved.")
