"""BlockDance: reuse of block outputs between the denoising steps of a diffusion transformer."""

from blockdance.api import BlockDanceHandle, apply_blockdance, remove_blockdance
from blockdance.cost import ForwardCost, count_macs
from blockdance.errors import BlockDanceError, ScheduleError, StepUnknownError, UnsupportedModelError
from blockdance.executor import ReuseExecutor, ReuseState
from blockdance.layout import BlockLayout, find_layout, register_layout
from blockdance.runtime import BlockDanceReport, Decider, Plan, PolicyState
from blockdance.schedule import BlockDanceConfig, Reuse, ReuseSchedule, blockdance_n, full_compute, random_schedule

__all__ = [
    "BlockDanceConfig",
    "BlockDanceError",
    "BlockDanceHandle",
    "BlockDanceReport",
    "BlockLayout",
    "Decider",
    "ForwardCost",
    "Plan",
    "PolicyState",
    "Reuse",
    "ReuseExecutor",
    "ReuseSchedule",
    "ReuseState",
    "ScheduleError",
    "StepUnknownError",
    "UnsupportedModelError",
    "apply_blockdance",
    "blockdance_n",
    "count_macs",
    "find_layout",
    "full_compute",
    "random_schedule",
    "register_layout",
    "remove_blockdance",
]
