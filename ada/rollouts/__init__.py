"""Rollouts: the stock pipeline's own calls on prompts × schedules, and the table of what they did."""

from ada.rollouts.collect import Collector, measure, open_table
from ada.rollouts.driver import Rollout, probe, roll_out
from ada.rollouts.loop import SamplingLoop
from ada.rollouts.pipeline import EMBEDDED, EMBEDDED_ARGUMENTS, FrozenPipeline, Generated
from ada.rollouts.references import References
from ada.rollouts.table import Case, Table, name_of
from ada.rollouts.tape import Tape

__all__ = [
    "EMBEDDED",
    "EMBEDDED_ARGUMENTS",
    "Case",
    "Collector",
    "FrozenPipeline",
    "Generated",
    "References",
    "Rollout",
    "SamplingLoop",
    "Table",
    "Tape",
    "measure",
    "name_of",
    "open_table",
    "probe",
    "roll_out",
]
