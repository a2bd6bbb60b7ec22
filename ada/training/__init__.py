"""Training: what is learnt, from what data, and what came of it."""

from ada.training.ladder import LadderTraining
from ada.training.outcome import HeldOut, LevelOutcome, Outcome, measure_outcome
from ada.training.publish import PushPolicy
from ada.training.rollout_data import RolloutDataModule
from ada.training.run import NothingLearntError, Run, RunError
from ada.training.steps import StepTraining

__all__ = [
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
    "measure_outcome",
]
