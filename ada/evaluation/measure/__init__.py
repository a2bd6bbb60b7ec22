"""How methods are measured: run, counted, timed, stored, and summed up with intervals that hold."""

from ada.evaluation.measure.collect import EDGE_DENSITY, PROMPT_LENGTH, SENSITIVITY, collect_results, read_complexity
from ada.evaluation.measure.matches import Match
from ada.evaluation.measure.metrics import VIDEO_COLUMNS, Column, Embedding, Metric, default_metrics
from ada.evaluation.measure.progress import Bar, default_console
from ada.evaluation.measure.results import MethodResult, Results, all_columns, describe_environment, public_name
from ada.evaluation.measure.run import MOST_IMAGES, Plan, measure
from ada.evaluation.measure.statistics import Estimate, too_few_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.timing import TimingPlan, time_methods

__all__ = [
    "EDGE_DENSITY",
    "MOST_IMAGES",
    "PROMPT_LENGTH",
    "SENSITIVITY",
    "VIDEO_COLUMNS",
    "Bar",
    "Column",
    "Embedding",
    "Estimate",
    "Match",
    "MethodResult",
    "Metric",
    "Plan",
    "Results",
    "Store",
    "TimingPlan",
    "all_columns",
    "collect_results",
    "default_console",
    "default_metrics",
    "describe_environment",
    "measure",
    "public_name",
    "read_complexity",
    "time_methods",
    "too_few_images",
]
