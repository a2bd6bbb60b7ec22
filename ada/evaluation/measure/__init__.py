"""How methods are measured: run, counted, timed, stored, and summed up with intervals that hold."""

from ada.evaluation.measure.collect import collect_results, mixed, mixture_at, read_complexity
from ada.evaluation.measure.metrics import Column, Embedding, Metric, all_columns, default_metrics
from ada.evaluation.measure.results import PUBLISHED, Match, MethodResult, Results
from ada.evaluation.measure.run import MOST_IMAGES, Plan, TimingPlan, measure_methods, time_methods
from ada.evaluation.measure.statistics import Estimate, mean, rank_correlation, share, share_difference, too_few_images
from ada.evaluation.measure.store import Store, describe_environment

__all__ = [
    "MOST_IMAGES", "PUBLISHED", "Column", "Embedding", "Estimate", "Match", "MethodResult", "Metric", "Plan", "Results", "Store",
    "TimingPlan", "all_columns", "collect_results", "default_metrics", "describe_environment", "mean", "measure_methods", "mixed",
    "mixture_at", "rank_correlation", "read_complexity", "share", "share_difference", "time_methods", "too_few_images",
]  # fmt: skip
