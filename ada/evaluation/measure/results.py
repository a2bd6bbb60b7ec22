"""What an evaluation found, and where it ran: per prompt and per round, with estimates and intervals; to JSON and back."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ada.evaluation.measure.matches import Match
from ada.evaluation.measure.metrics import BOUNDED, DISTANCE, LATENT, VISIBLE, Column
from ada.evaluation.measure.statistics import Estimate, difference

FRECHET = "frechet_distance"
MEDIAN = "median_distance"
TAIL = "tail_distance"
COMPUTE_SAVED = "compute_saved"
MACS = "macs_per_image"
OWN_MACS = "own_macs_per_image"
SECONDS = "seconds_per_image"
SECONDS_ALONE = "seconds_alone"
SPEED_UP = "speed_up"
SPEED_UP_ALONE = "speed_up_alone"
CACHE = "cache_bytes"
MEMORY = "peak_bytes"
SCHEDULES = "num_schedules"
COSTS = (COMPUTE_SAVED, MACS, OWN_MACS, SECONDS, SECONDS_ALONE, SPEED_UP, SPEED_UP_ALONE, CACHE, MEMORY, SCHEDULES)
SAME_LATENCY, SAME_COMPUTE, STATIC_MIXTURE = "same_latency", "same_compute", "static_mixture"
PUBLISHED = 128
"""Fewer prompts than these are a quick look."""


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method's measurements.

    Args:
        name, family, group, label, note, settings, num_inference_steps: as in `Method`.
        reason: why it does not apply, and then nothing else is there; None where it does.
        estimates: by column, the estimate with its interval.
        per_prompt: by metric, and for MACs and the compute saved, one value per prompt: the mean over the noise seeds.
        distances: perceptual distance per case: all prompts of the first noise seed, then of the next.
        seconds_per_image: by batch size, one value per round; empty for methods that were not timed.
        actions: per case, the action of every step; None where the method takes none.
        action_names: what the actions mean, action 0 first.
        matches: by kind (`SAME_LATENCY`, `SAME_COMPUTE`, `STATIC_MIXTURE`), what it is set beside, and paired differences.
    """

    name: str
    family: str
    group: str
    label: str
    note: str
    num_inference_steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    per_prompt: dict[str, list[float]] = field(default_factory=dict)
    distances: list[float] = field(default_factory=list)
    seconds_per_image: dict[str, list[float]] = field(default_factory=dict)
    actions: list[list[int]] | None = None
    action_names: list[str] = field(default_factory=list)
    matches: dict[str, Match] = field(default_factory=dict)


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

    @property
    def is_quick_look(self) -> bool:
        """Whether there are too few prompts to publish."""
        return len(self.prompts) < PUBLISHED

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
            method["matches"] = {kind: Match.from_json(match) for kind, match in method["matches"].items()}
        fields["methods"] = [MethodResult(**method) for method in fields["methods"]]
        return cls(**fields)


def all_columns(metrics: Mapping[str, Column]) -> dict[str, Column]:
    """The headline metrics, the others, their differences to the chosen row, and what every method is measured by besides."""
    first, column = next(iter(metrics.items()))
    delta = Column(f"Δ {column.heading.lower()}", column.higher_is_better, column.decimals, column.scale, column.unit)
    headlines = {
        BOUNDED: Column("Bounded damage", higher_is_better=False, decimals=3),
        VISIBLE: Column("Visibly changed", higher_is_better=False, decimals=1, scale=100.0, unit="%"),
        MEDIAN: Column("Median distance", higher_is_better=False, decimals=4),
        TAIL: Column("Distance, 0.9 quantile", higher_is_better=False, decimals=4, in_terminal=False),
    }
    return {
        **(headlines if DISTANCE in metrics else {}),
        **{name: column for name, column in metrics.items() if name == first},
        difference_of(first): delta,
        **{name: column for name, column in metrics.items() if name != first},
        LATENT: Column("Latent distance", higher_is_better=False, decimals=4, in_terminal=False),
        FRECHET: Column("Fréchet distance", higher_is_better=False, decimals=4, in_terminal=False),
        COMPUTE_SAVED: Column("Compute saved", decimals=1, scale=100.0, unit="%"),
        MACS: Column("Compute", higher_is_better=False, decimals=2, scale=1e-9, unit="GMACs/image", in_terminal=False),
        OWN_MACS: Column("Decider", higher_is_better=False, decimals=3, scale=1e-9, unit="GMACs/image", in_terminal=False),
        SECONDS: Column("Latency", higher_is_better=False, decimals=3, unit="s/image"),
        SPEED_UP: Column("Speed-up", decimals=2, unit="×"),
        SECONDS_ALONE: Column("Latency, batch 1", higher_is_better=False, decimals=3, unit="s", in_terminal=False),
        SPEED_UP_ALONE: Column("Speed-up, batch 1", decimals=2, unit="×"),
        SCHEDULES: Column("Schedules", decimals=0, unit="distinct", in_terminal=False),
        CACHE: Column("Cached", higher_is_better=False, decimals=2, scale=2**-20, unit="MiB/batch", in_terminal=False),
        MEMORY: Column("Peak memory", higher_is_better=False, decimals=1, scale=2**-20, unit="MiB/batch", in_terminal=False),
    }


def difference_of(metric: str) -> str:
    """Name of a metric's difference to the chosen row."""
    return f"{metric}_difference"


def differences_of(per_prompt: Mapping[str, list[float]], baseline: Mapping[str, list[float]]) -> dict[str, Estimate]:
    """Paired differences of all metrics but the raw distance, for whose mean no interval holds."""
    return {
        difference_of(name): difference(values, baseline[name])
        for name, values in per_prompt.items()
        if name not in (*COSTS, DISTANCE)
    }


PACKAGES = ("torch", "diffusers", "transformers")
PEERS = ("cache-dit", "tgate", "tomesd")


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Versions of the packages that matter and of all peers, the processor that ran the model, and how many threads it had."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{package: _version(package) for package in PEERS},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model where the system tells it (Linux), else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def public_name(source: str) -> str:
    """What a source is called in published results: a Hub id as it is, a folder by its last part, for paths are private."""
    path = Path(source)
    return path.resolve().name if path.exists() else source
