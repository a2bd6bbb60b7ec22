"""Measures policies against every alternative, on the same prompts, noise, sampler and machine."""

from ada.evaluation.compare import EvaluationError, evaluate, evaluate_methods
from ada.evaluation.measure import Column, Embedding, Estimate, Metric, Results, default_metrics
from ada.evaluation.methods import (
    BatchReport,
    Method,
    NotApplicableError,
    Run,
    full_method,
    one_by_one,
    peer_methods,
    planned_method,
    training_free,
    unchanged,
)
from ada.evaluation.options import EvaluationOptions, run_options
from ada.evaluation.request import Request

__all__ = [
    "BatchReport",
    "Column",
    "Embedding",
    "Estimate",
    "EvaluationError",
    "EvaluationOptions",
    "Method",
    "Metric",
    "NotApplicableError",
    "Request",
    "Results",
    "Run",
    "default_metrics",
    "evaluate",
    "evaluate_methods",
    "full_method",
    "one_by_one",
    "peer_methods",
    "planned_method",
    "run_options",
    "training_free",
    "unchanged",
]
