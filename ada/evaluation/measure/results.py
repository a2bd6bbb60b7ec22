"""What an evaluation found: per prompt and per round, with estimates and intervals; to JSON and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ada.evaluation.measure.metrics import COMPUTE_SAVED, COSTS, DISTANCE, RAW, VISIBLE, Column, difference_of
from ada.evaluation.methods.base import CONTROLS, STATIC_GROUPS
from ada.statistics import LEAST_DISTANCE, Estimate, by_groups, difference, share, share_difference

PUBLISHED = 128
"""Fewer prompts than these are a quick look."""


@dataclass(frozen=True)
class Match:
    """One row, or a mixture of several, and paired differences to it.

    Args:
        rows: names, and the share of the images that each takes.
        expected: by metric, what this side has on average.
        differences: by metric, the method minus this side.
        better: the share of cases on which the method is nearer to the reference; ties count half.
        ratio: the method's distance over this side's: the geometric mean over the cases; None where the reference takes part, whose
            distance is 0.
    """

    rows: list[tuple[str, float]]
    expected: dict[str, float]
    differences: dict[str, Estimate]
    better: Estimate
    ratio: Estimate | None = None

    @property
    def name(self) -> str:
        """For a table."""
        return " + ".join(name if part > 0.995 else f"{part:.0%} {name}" for name, part in self.rows if part > 0.005)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Match":
        """Of what `dataclasses.asdict` made."""
        differences = {name: Estimate(**estimate) for name, estimate in fields["differences"].items()}
        better, ratio = Estimate(**fields["better"]), fields["ratio"] and Estimate(**fields["ratio"])
        return cls([(name, part) for name, part in fields["rows"]], fields["expected"], differences, better, ratio)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method's measurements.

    Args:
        name, family, group, note, num_inference_steps: as in `Method`.
        settings: what the method does, for programs.
        reason: why it does not apply, and then nothing else is there; None where it does.
        together: prompts for which it decides as a whole, so that they count as one: the batch size, or 1.
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
    num_inference_steps: int
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    together: int = 1
    estimates: dict[str, Estimate] = field(default_factory=dict)
    per_prompt: dict[str, list[float]] = field(default_factory=dict)
    distances: list[float] = field(default_factory=list)
    seconds_per_image: dict[str, list[float]] = field(default_factory=dict)
    actions: list[list[int]] | None = None
    action_names: list[str] = field(default_factory=list)
    matches: dict[str, Match] = field(default_factory=dict)

    @property
    def saved(self) -> float:
        """Mean share of the compute that it saves."""
        return fmean(self.per_prompt[COMPUTE_SAVED])

    @property
    def is_static(self) -> bool:
        """Whether anyone may pick it who does not look at the image: plain, BlockDance or searched, and no control of a policy."""
        return self.group in STATIC_GROUPS and self.family not in CONTROLS


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
        baseline = self.method(name)
        methods = [replace(method, estimates=method.estimates | differences_of(method, baseline)) for method in self.methods]
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


def differences_of(method: MethodResult, baseline: MethodResult) -> dict[str, Estimate]:
    """Paired differences of all metrics but the raw distances."""
    own, others, together = method.per_prompt, baseline.per_prompt, max(method.together, baseline.together)
    names = [name for name in own if name not in (*COSTS, *RAW)]
    if own == others:  # the row itself, which no prompt can tell apart
        return {difference_of(name): Estimate(0.0, 0.0, 0.0) for name in names}
    found = {difference_of(name): paired_difference(name, own[name], others[name], together) for name in names}
    if VISIBLE in names and max(others[DISTANCE]) <= LEAST_DISTANCE:  # of the reference no image is changed, by definition
        found[difference_of(VISIBLE)] = by_groups(share, together, own[VISIBLE])
    return found


def paired_difference(metric: str, values: Sequence[float], others: Sequence[float], together: int) -> Estimate:
    """The mean of `values - others`, one per prompt, with the interval that holds for this metric where so many prompts count as one."""
    return by_groups(share_difference if metric == VISIBLE else difference, together, values, others)
