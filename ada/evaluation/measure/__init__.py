"""How methods are measured: run, counted, timed, stored, and summed up with intervals that hold."""

from ada.evaluation.measure import columns
from ada.evaluation.measure.collect import collect_results, mixed, mixture_at, read_complexity
from ada.evaluation.measure.columns import Column
from ada.evaluation.measure.metrics import Embedding, Metric, default_metrics
from ada.evaluation.measure.results import PUBLISHED, Match, MethodResult, Results, describe_environment, public_name
from ada.evaluation.measure.run import MOST_IMAGES, Plan, measure_methods
from ada.evaluation.measure.statistics import Estimate, mean, rank_correlation, share, too_few_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.timing import TimingPlan, time_methods

__all__ = [
    "MOST_IMAGES", "PUBLISHED", "Column", "Embedding", "Estimate", "Match", "MethodResult", "Metric", "Plan", "Results", "Store",
    "TimingPlan", "collect_results", "columns", "default_metrics", "describe_environment", "mean",
    "measure_methods", "mixed", "mixture_at", "public_name", "rank_correlation", "read_complexity", "share", "time_methods",
    "too_few_images",
]  # fmt: skip
