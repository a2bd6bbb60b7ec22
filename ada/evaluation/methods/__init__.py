"""What is compared: the plain pipeline, BlockDance, other people's caches, and the policy."""

from ada.evaluation.methods.ada import ada_methods, ladder_methods, random_method, rival_methods, shuffled_method
from ada.evaluation.methods.base import (
    ADA,
    ADA_BUDGET,
    FEWER_STEPS,
    FULL_COMPUTE,
    STATIC,
    BatchReport,
    Group,
    Method,
    NotApplicableError,
    Planned,
    Run,
    full_method,
    one_by_one,
    planned_method,
    unchanged,
    whole_batch,
)
from ada.evaluation.methods.calibrated import calibrated_methods
from ada.evaluation.methods.peers import peer_methods
from ada.evaluation.methods.plain import blockdance, deep_cache, fewer_steps, num_blocks_of, training_free
from ada.evaluation.methods.threshold import threshold_methods

__all__ = [
    "ADA",
    "ADA_BUDGET",
    "FEWER_STEPS",
    "FULL_COMPUTE",
    "STATIC",
    "BatchReport",
    "Group",
    "Method",
    "NotApplicableError",
    "Planned",
    "Run",
    "ada_methods",
    "blockdance",
    "calibrated_methods",
    "deep_cache",
    "fewer_steps",
    "full_method",
    "ladder_methods",
    "num_blocks_of",
    "one_by_one",
    "peer_methods",
    "planned_method",
    "random_method",
    "rival_methods",
    "shuffled_method",
    "threshold_methods",
    "training_free",
    "unchanged",
    "whole_batch",
]
