"""Training: what is learnt, from what data, and what came of it."""

from ada.training.cli import TrainingCLI
from ada.training.errors import EXPECTED_ERRORS, NothingLearntError, RunError
from ada.training.ladder import LadderTraining
from ada.training.outcome import HeldOut, LevelOutcome, Outcome, measure_outcome
from ada.training.publish import PushPolicy
from ada.training.quiet import quieten_libraries
from ada.training.rollout_data import RolloutDataModule
from ada.training.run import Run
from ada.training.steps import StepTraining

__all__ = [
    "EXPECTED_ERRORS",
    "HeldOut",
    "LadderTraining",
    "LevelOutcome",
    "NothingLearntError",
    "Outcome",
    "PushPolicy",
    "RolloutDataModule",
    "Run",
    "RunError",
    "StepTraining",
    "TrainingCLI",
    "measure_outcome",
    "quieten_libraries",
]
