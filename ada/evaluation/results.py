"""What an evaluation found: per prompt and per batch, with estimates and intervals; to JSON and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ada.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_mean_difference, bootstrap_median

LATENT = "latent_distance"
FRECHET = "frechet_distance"
COMPUTE_SAVED = "compute_saved"
MACS = "macs_per_image"
SECONDS = "seconds_per_image"
SPEED_UP = "speed_up"
CACHE = "cache_bytes"
MEMORY = "peak_bytes"


@dataclass(frozen=True)
class Column:
    """How a measured quantity is shown: multiplied by `scale`, with `decimals` places and its unit."""

    heading: str
    higher_is_better: bool = True
    decimals: int = 2
    scale: float = 1.0
    unit: str = ""
    in_table: bool = True
    in_terminal: bool = True

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
        reason: why it does not apply, and then nothing else is there; None where it does.
        estimates: by column, the estimate with its interval.
        per_prompt: by metric, and for MACs and the compute saved, one value per prompt: the mean over the sampler seeds.
        seconds_per_image: one per timed batch: duration of the pipeline's call over its images.
        actions: per case, the action of every step; None where the method takes none.
        same_latency: the "fewer steps" row whose latency is nearest, and paired differences to it; None for such rows themselves.
    """

    name: str
    family: str
    label: str
    note: str
    num_inference_steps: int
    reason: str | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    per_prompt: dict[str, list[float]] = field(default_factory=dict)
    seconds_per_image: list[float] = field(default_factory=list)
    actions: list[list[int]] | None = None
    same_latency: "Match | None" = None


@dataclass(frozen=True)
class Match:
    """A row to compare with, and the paired differences to it by metric."""

    name: str
    differences: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All methods on the same prompts, noise, sampler and machine; the first method is the reference.

    Args:
        settings: what was asked for.
        environment: versions and processor.
        columns: how every estimate is shown.
        prompts: the prompts.
        complexity: per prompt and by measure, how complex the reference image or its prompt is.
        methods: one per method.
        warnings: what a reader should know of these figures.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    columns: dict[str, Column]
    prompts: list[str]
    methods: list[MethodResult]
    complexity: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def measured(self) -> list[MethodResult]:
        """The methods that apply."""
        return [method for method in self.methods if method.reason is None]

    def method(self, name: str) -> MethodResult:
        """The measured method of this name.

        Raises:
            KeyError: there is none.
        """
        for method in self.measured:
            if method.name == name:
                return method
        raise KeyError(f"No method named {name!r} was measured; there are: {', '.join(m.name for m in self.measured)}.")

    def compared_with(self, name: str) -> "Results":
        """The same results with every paired difference taken to the row `name`.

        Raises:
            KeyError: there is no such row.
        """
        baseline = self.method(name).per_prompt
        methods = [
            method
            if method.reason
            else replace(method, estimates=method.estimates | differences_of(method.per_prompt, baseline))
            for method in self.methods
        ]
        return replace(self, methods=methods, settings=self.settings | {"compared_with": name})

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
            if method["same_latency"] is not None:
                differences = method["same_latency"]["differences"]
                loaded = {name: Estimate(**estimate) for name, estimate in differences.items()}
                method["same_latency"] = Match(method["same_latency"]["name"], loaded)
        fields["methods"] = [MethodResult(**method) for method in fields["methods"]]
        return cls(**fields)


def all_columns(metrics: Mapping[str, Column]) -> dict[str, Column]:
    """The metrics' columns, the first one's difference to the chosen row, and what every method is measured by besides."""
    first, column = next(iter(metrics.items()))
    difference = Column(f"Δ {column.heading.lower()}", column.higher_is_better, column.decimals, column.scale, column.unit)
    return {
        first: column,
        difference_of(first): difference,
        **{name: column for name, column in metrics.items() if name != first},
        LATENT: Column("Latent distance", higher_is_better=False, decimals=4, in_terminal=False),
        FRECHET: Column("Fréchet distance", higher_is_better=False, decimals=4, in_terminal=False),
        COMPUTE_SAVED: Column("Compute saved", decimals=1, scale=100.0, unit="%"),
        MACS: Column("Compute", higher_is_better=False, decimals=2, scale=1e-9, unit="GMACs/image", in_terminal=False),
        SECONDS: Column("Latency", higher_is_better=False, decimals=3, unit="s/image"),
        SPEED_UP: Column("Speed-up", decimals=2, unit="×"),
        CACHE: Column("Cached", higher_is_better=False, decimals=2, scale=2**-20, unit="MiB/batch", in_terminal=False),
        MEMORY: Column("Peak memory", higher_is_better=False, decimals=1, scale=2**-20, unit="MiB/batch", in_terminal=False),
    }


def difference_of(metric: str) -> str:
    """Name of a metric's difference to the chosen row."""
    return f"{metric}_difference"


def differences_of(per_prompt: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Paired differences of all metrics."""
    return {
        difference_of(name): bootstrap_mean_difference(values, baseline[name])
        for name, values in per_prompt.items()
        if name not in (COMPUTE_SAVED, MACS)
    }


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
    ratios = [theirs / ours for ours, theirs in zip(seconds, reference_seconds, strict=True)]
    return (
        estimates
        | differences_of(per_prompt, reference)
        | {SECONDS: bootstrap_median(seconds), SPEED_UP: bootstrap_median(ratios)}
    )


def match_latency(methods: Sequence[MethodResult], family: str, metrics: Sequence[str]) -> list[MethodResult]:
    """Sets beside every method outside `family` the row of `family` whose median latency is nearest to its own.

    Args:
        methods: all, measured or not.
        family: the rows to match with: plain pipelines with fewer steps, and full compute.
        metrics: whose paired differences to take.
    """
    rows = [method for method in methods if method.reason is None and (method.family == family or method is methods[0])]

    def matched(method: MethodResult) -> MethodResult:
        if method.reason is not None or method in rows:
            return method
        latency = method.estimates[SECONDS].value
        row = min(rows, key=lambda row: abs(row.estimates[SECONDS].value - latency))
        differences = {name: bootstrap_mean_difference(method.per_prompt[name], row.per_prompt[name]) for name in metrics}
        return replace(method, same_latency=Match(row.name, differences))

    return [matched(method) for method in methods]
