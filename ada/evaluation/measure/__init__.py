"""How methods are measured: run, counted, timed, stored, and summed up with intervals that hold."""

from ada.evaluation.measure.collect import collect_results, mixed, mixture_at, read_complexity
from ada.evaluation.measure.metrics import Column, Embedding, Metric, all_columns, default_metrics, too_few_images
from ada.evaluation.measure.results import PUBLISHED, Match, MethodResult, Results
from ada.evaluation.measure.run import MOST_IMAGES, Plan, TimingPlan, measure_methods, time_methods
from ada.evaluation.measure.store import Store, describe_environment

__all__ = [
    "MOST_IMAGES", "PUBLISHED", "Column", "Embedding", "Match", "MethodResult", "Metric", "Plan", "Results", "Store", "TimingPlan",
    "all_columns", "collect_results", "default_metrics", "describe_environment", "measure_methods", "mixed", "mixture_at",
    "read_complexity", "time_methods", "too_few_images",
]  # fmt: skip
