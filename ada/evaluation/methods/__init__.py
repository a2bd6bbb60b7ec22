"""What is compared: the plain pipeline, BlockDance, other people's caches, and the policy."""

from ada.evaluation.methods.ada import ada_methods, control_methods, rival_methods
from ada.evaluation.methods.base import BatchReport, Cases, Method, NotApplicableError, Run, policy_digest
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
    "BatchReport", "Cases", "Method", "NotApplicableError", "Run", "ada_methods", "blockdance", "calibrated_methods",
    "control_methods", "deep_cache", "fewer_steps", "full_method", "ladder_methods", "one_by_one", "peer_methods",
    "policy_digest", "rival_methods", "threshold_methods", "training_free",
]  # fmt: skip
