"""Measures policies against every alternative, on the same prompts, noise, sampler and machine."""

from ada.evaluation.compare import EvaluationError, evaluate
from ada.evaluation.methods import BatchReport, Method, Planned
from ada.evaluation.metrics import Metric, default_metrics
from ada.evaluation.results import Column, MethodResult, Results
from ada.evaluation.sources import load_policy
from ada.evaluation.statistics import Estimate

__all__ = [
    "BatchReport",
    "Column",
    "Estimate",
    "EvaluationError",
    "Method",
    "MethodResult",
    "Metric",
    "Planned",
    "Results",
    "default_metrics",
    "evaluate",
    "load_policy",
]
