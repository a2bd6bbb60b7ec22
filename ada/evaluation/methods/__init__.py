"""What is compared: the plain pipeline, BlockDance, other people's caches, and the policy."""

from ada.evaluation.methods.ada import ada_methods, control_methods, rival_methods
from ada.evaluation.methods.base import (
    ADA,
    ADA_BUDGET,
    CONTROLS,
    FEWER_STEPS,
    FULL_COMPUTE,
    RANDOM,
    STATIC,
    STATIC_GROUPS,
    BatchReport,
    Cases,
    Generated,
    Method,
    NotApplicableError,
    Run,
    generate,
    names_of,
    policy_digest,
    rows_of,
)
from ada.evaluation.methods.peers import one_by_one, peer_methods
from ada.evaluation.methods.static import (
    blockdance,
    calibrated_methods,
    deep_cache,
    fewer_steps,
    full_method,
    ladder_methods,
    training_free,
)
from ada.evaluation.methods.threshold import threshold_methods

__all__ = [
    "ADA", "ADA_BUDGET", "CONTROLS", "FEWER_STEPS", "FULL_COMPUTE", "RANDOM", "STATIC", "STATIC_GROUPS",
    "BatchReport", "Cases", "Generated", "Method", "NotApplicableError", "Run",
    "ada_methods", "blockdance", "calibrated_methods", "control_methods", "deep_cache", "fewer_steps", "full_method", "generate",
    "ladder_methods", "names_of", "one_by_one", "peer_methods", "policy_digest", "rival_methods", "rows_of", "threshold_methods",
    "training_free",
]  # fmt: skip
