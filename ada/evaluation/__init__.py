"""Measures policies against every alternative, on the same prompts, noise, sampler and machine."""

from ada.evaluation.compare import EvaluationError, evaluate, evaluate_methods, run_options
from ada.evaluation.measure import Column, Embedding, Metric, Results, default_metrics
from ada.evaluation.methods import (
    BatchReport,
    Method,
    NotApplicableError,
    Run,
    full_method,
    one_by_one,
    peer_methods,
    training_free,
)
from ada.evaluation.request import EvaluationOptions, Request
from ada.statistics import Estimate

__all__ = [
    "BatchReport", "Column", "Embedding", "Estimate", "EvaluationError", "EvaluationOptions", "Method", "Metric",
    "NotApplicableError", "Request", "Results", "Run", "default_metrics", "evaluate", "evaluate_methods", "full_method",
    "one_by_one", "peer_methods", "run_options", "training_free",
]  # fmt: skip
