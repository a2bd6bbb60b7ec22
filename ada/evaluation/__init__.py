"""Measures policies against every alternative, on the same prompts, noise, sampler and machine."""

from ada.evaluation.compare import EvaluationError, evaluate, evaluate_methods, run_options
from ada.evaluation.measure.metrics import Column, Embedding, Metric, default_metrics
from ada.evaluation.measure.results import Results
from ada.evaluation.measure.statistics import Estimate
from ada.evaluation.methods.base import BatchReport, Method, NotApplicableError, Run
from ada.evaluation.methods.peers import one_by_one, peer_methods
from ada.evaluation.methods.static import full_method, training_free
from ada.evaluation.request import EvaluationOptions, Request

__all__ = [
    "BatchReport", "Column", "Embedding", "Estimate", "EvaluationError", "EvaluationOptions", "Method", "Metric",
    "NotApplicableError", "Request", "Results", "Run", "default_metrics", "evaluate", "evaluate_methods", "full_method",
    "one_by_one", "peer_methods", "run_options", "training_free",
]  # fmt: skip
