"""Measures policies against every alternative, on the same prompts, noise, sampler and machine."""

from ada.evaluation.compare import EvaluationError, evaluate, evaluate_methods
from ada.evaluation.measure import Column, Embedding, Estimate, Match, MethodResult, Metric, Results, default_metrics
from ada.evaluation.methods import (
    BatchReport,
    Method,
    NotApplicableError,
    Planned,
    Run,
    full_method,
    peer_methods,
    planned_method,
    training_free,
    unchanged,
)
from ada.evaluation.options import PROMPT_SETS, EvaluationOptions, find_prompts, run_options
from ada.evaluation.request import Request
from ada.evaluation.subject import Subject

__all__ = [
    "PROMPT_SETS",
    "BatchReport",
    "Column",
    "Embedding",
    "Estimate",
    "EvaluationError",
    "EvaluationOptions",
    "Match",
    "Method",
    "MethodResult",
    "Metric",
    "NotApplicableError",
    "Planned",
    "Request",
    "Results",
    "Run",
    "Subject",
    "default_metrics",
    "evaluate",
    "evaluate_methods",
    "find_prompts",
    "full_method",
    "peer_methods",
    "planned_method",
    "run_options",
    "training_free",
    "unchanged",
]
