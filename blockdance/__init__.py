"""BlockDance: reuse of block outputs between the denoising steps of a diffusion transformer."""

from blockdance.api import BlockDanceHandle, apply_blockdance, get_blockdance, remove_blockdance
from blockdance.cost import ForwardCost, count_macs
from blockdance.errors import BlockDanceError, ScheduleError, StepUnknownError, UnsupportedModelError
from blockdance.executor import ReuseExecutor
from blockdance.feature_recorder import FeatureRecorder, calibrate, measure_feature_change
from blockdance.kinds import BlockReuse, Kind, Reuse
from blockdance.layouts import BlockLayout, find_layout, register_layout
from blockdance.observation import PolicyState
from blockdance.outcome import Outcome, OutcomeSearch
from blockdance.plan import Decider, Plan
from blockdance.plan_file import load_plan, save_plan
from blockdance.recording import Recorded, Recording
from blockdance.report import BlockDanceReport
from blockdance.schedule import (
    BlockDanceConfig,
    ReuseSchedule,
    block_caching,
    blockdance_n,
    full_compute,
    random_schedule,
)
from blockdance.similarity import FeatureChange
from blockdance.state import ReuseState

__all__ = [
    "BlockDanceConfig",
    "BlockDanceError",
    "BlockDanceHandle",
    "BlockDanceReport",
    "BlockLayout",
    "BlockReuse",
    "Decider",
    "FeatureChange",
    "FeatureRecorder",
    "ForwardCost",
    "Kind",
    "Outcome",
    "OutcomeSearch",
    "Plan",
    "PolicyState",
    "Recorded",
    "Recording",
    "Reuse",
    "ReuseExecutor",
    "ReuseSchedule",
    "ReuseState",
    "ScheduleError",
    "StepUnknownError",
    "UnsupportedModelError",
    "apply_blockdance",
    "block_caching",
    "blockdance_n",
    "calibrate",
    "count_macs",
    "find_layout",
    "full_compute",
    "get_blockdance",
    "load_plan",
    "measure_feature_change",
    "random_schedule",
    "register_layout",
    "remove_blockdance",
    "save_plan",
]
