"""What an evaluation found: per prompt and per batch, with estimates and intervals; to JSON and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ada.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_mean_difference, bootstrap_median

COMPUTE_SAVED = "compute_saved"
SECONDS = "seconds_per_image"
SPEED_UP = "speed_up"


@dataclass(frozen=True)
class Column:
    """How a measured quantity is shown: multiplied by `scale`, with `decimals` places and its unit."""

    heading: str
    higher_is_better: bool = True
    decimals: int = 2
    scale: float = 1.0
    unit: str = ""
    in_table: bool = True

    @property
    def heading_with_arrow(self) -> str:
        """Heading and unit with an arrow that points to better."""
        return f"{self.heading_with_unit} {'↑' if self.higher_is_better else '↓'}"

    @property
    def heading_with_unit(self) -> str:
        """Heading and unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method's measurements.

    Args:
        name, family, label, note, num_inference_steps: as in `Method`.
        estimates: by column, the estimate with its interval.
        per_prompt: by metric, and for the compute saved, one value per prompt.
        seconds_per_image: one per timed batch: duration of the pipeline's call over its images.
        actions: per prompt, the action of every step; None where the method takes none.
    """

    name: str
    family: str
    label: str
    note: str
    num_inference_steps: int
    estimates: dict[str, Estimate]
    per_prompt: dict[str, list[float]]
    seconds_per_image: list[float]
    actions: list[list[int]] | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """All methods on the same prompts, noise, sampler and machine; the first method is the reference.

    Args:
        settings: what was asked for.
        environment: versions and processor.
        columns: how every estimate is shown.
        prompts: the prompts.
        methods: one per method.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    columns: dict[str, Column]
    prompts: list[str]
    methods: list[MethodResult]

    def save(self, path: Path) -> None:
        """Writes JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads what `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["columns"] = {name: Column(**column) for name, column in fields["columns"].items()}
        for method in fields["methods"]:
            method["estimates"] = {name: Estimate(**estimate) for name, estimate in method["estimates"].items()}
        fields["methods"] = [MethodResult(**method) for method in fields["methods"]]
        return cls(**fields)


def all_columns(metrics: Mapping[str, Column]) -> dict[str, Column]:
    """The metrics' columns, the first one's difference to the reference, compute saved, latency and speed-up."""
    first, column = next(iter(metrics.items()))
    difference = Column(f"Δ {column.heading.lower()}", column.higher_is_better, column.decimals, column.scale, column.unit)
    return {
        first: column,
        difference_of(first): difference,
        **{name: column for name, column in metrics.items() if name != first},
        COMPUTE_SAVED: Column("Compute saved", decimals=1, scale=100.0, unit="%"),
        SECONDS: Column("Latency", higher_is_better=False, decimals=3, unit="s/image"),
        SPEED_UP: Column("Speed-up", decimals=2, unit="×"),
    }


def difference_of(metric: str) -> str:
    """Name of a metric's difference to the reference."""
    return f"{metric}_difference"


def estimate_all(
    per_prompt: Mapping[str, Sequence[float]],
    reference: Mapping[str, Sequence[float]],
    seconds: Sequence[float],
    reference_seconds: Sequence[float],
) -> dict[str, Estimate]:
    """Estimates of one method: means over prompts, paired differences to the reference, medians over batches.

    The speed-up is the median over batches of the reference's duration over the method's: each pair ran one after the other, so
    a machine whose pace drifts slows both.
    """
    estimates = {name: bootstrap_mean(values) for name, values in per_prompt.items()}
    for name, values in per_prompt.items():
        if name != COMPUTE_SAVED:
            estimates[difference_of(name)] = bootstrap_mean_difference(values, reference[name])
    ratios = [theirs / ours for ours, theirs in zip(seconds, reference_seconds, strict=True)]
    return estimates | {SECONDS: bootstrap_median(seconds), SPEED_UP: bootstrap_median(ratios)}
