"""Runs methods through the stock pipeline, so that what is measured is what users run."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ada.backbone import Backbone
from ada.evaluation.methods import BatchReport, Method, Planned
from ada.evaluation.metrics import Metric, score
from ada.evaluation.results import COMPUTE_SAVED, MethodResult, estimate_all
from ada.policy import AdaPolicy
from ada.types import PolicyState
from blockdance import Reuse, ReuseSchedule


@dataclass(frozen=True)
class Cases:
    """What every method is run on, `batch_size` at a time.

    Args:
        prompts: the prompts.
        seeds: seed of each prompt's noise.
        batch_size: images per call of the pipeline.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_size: int

    def batches(self) -> list[slice]:
        """Places of the batches among the prompts; the last may be smaller."""
        count = len(self.prompts)
        return [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]


@dataclass
class Record:
    """Measurements of one method, batch by batch.

    Args:
        method: the method.
        per_prompt: by metric, and for the compute saved relative to the reference, one value per prompt.
        actions: per prompt, the action of every step.
        seconds_per_image: one per timed batch.
        images: by place among the prompts, `(3, height, width)` in [0, 1], of those that are kept.
    """

    method: Method
    per_prompt: dict[str, list[float]] = field(default_factory=dict)
    actions: list[list[int]] = field(default_factory=list)
    seconds_per_image: list[float] = field(default_factory=list)
    images: dict[int, Tensor] = field(default_factory=dict)

    def add(self, values: Mapping[str, list[float]], report: BatchReport, reference_steps: int) -> None:
        """Adds a batch; compute saved becomes relative to `reference_steps` full steps."""
        share = self.method.num_inference_steps / reference_steps
        saved = (1 - share * (1 - report.compute_saved)).tolist()
        for name, part in {**values, COMPUTE_SAVED: saved}.items():
            self.per_prompt.setdefault(name, []).extend(part)
        if report.actions is not None:
            self.actions.extend(report.actions.tolist())

    def result(self, reference: "Record") -> MethodResult:
        """The measurements with their estimates, beside the reference's."""
        return MethodResult(
            name=self.method.name,
            family=self.method.family,
            label=self.method.label,
            note=self.method.note,
            num_inference_steps=self.method.num_inference_steps,
            estimates=estimate_all(self.per_prompt, reference.per_prompt, self.seconds_per_image, reference.seconds_per_image),
            per_prompt=self.per_prompt,
            seconds_per_image=self.seconds_per_image,
            actions=self.actions or None,
        )


def generate(backbone: Backbone, cases: Cases, batch: slice, num_inference_steps: int) -> Tensor:
    """Images `(images, 3, height, width)` in [0, 1] of a batch, from the stock pipeline as it is now."""
    output = backbone.pipeline(
        list(cases.prompts[batch]),
        num_inference_steps=num_inference_steps,
        guidance_scale=backbone.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in cases.seeds[batch]],
        max_sequence_length=backbone.max_sequence_length,
        output_type="pt",
        use_resolution_binning=False,
        clean_caption=False,
    )
    images: Tensor = output.images
    return images.float()


def measure(
    backbone: Backbone,
    methods: Sequence[Method],
    cases: Cases,
    metrics: Mapping[str, Metric],
    *,
    kept: Sequence[int] = (),
    advance: Callable[[str], None] = lambda name: None,
) -> list[Record]:
    """Runs every method on every prompt.

    Each method runs the first batch once to warm up. Then the methods take turns batch by batch, so that a change of the
    machine's pace meets all alike. Batches smaller than the first are not timed.

    Args:
        backbone: the pipeline and its settings.
        methods: the first is the reference.
        cases: prompts and seeds.
        metrics: by name.
        kept: places of the prompts whose images are kept.
        advance: called with a method's name before each of its `len(cases.batches()) + 1` batches.
    """
    records = [Record(method) for method in methods]
    batches = cases.batches()
    for method in methods:
        advance(method.name)
        _run(backbone, method, cases, batches[0])
    for batch in batches:
        prompts = cases.prompts[batch]
        reference: Tensor | None = None
        for record in records:
            advance(record.method.name)
            images, report, seconds = _run(backbone, record.method, cases, batch)
            reference = images if reference is None else reference
            record.add(score(metrics, images, prompts, reference), report, methods[0].num_inference_steps)
            if len(prompts) == len(cases.prompts[batches[0]]):
                record.seconds_per_image.append(seconds / len(prompts))
            here = [place for place in kept if batch.start <= place < batch.stop]
            record.images.update({place: images[place - batch.start].cpu() for place in here})
    return records


def _run(backbone: Backbone, method: Method, cases: Cases, batch: slice) -> tuple[Tensor, BatchReport, float]:
    """Images, report and seconds of one call of the pipeline."""
    with method.accelerate(backbone.pipeline, batch) as report:
        _synchronize(backbone.device)
        start = time.perf_counter()
        images = generate(backbone, cases, batch, method.num_inference_steps)
        _synchronize(backbone.device)
        seconds = time.perf_counter() - start
        return images, report(), seconds


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Survey:
    """A decider that asks the policy at several quality weights at once, and goes on with the decision of the first.

    What the policy sees does not depend on λ, so one pass over the prompts tells what it decides at each.
    """

    def __init__(self, policy: AdaPolicy, quality_weights: Sequence[float]) -> None:
        self._policies = {weight: policy.with_options(quality_weight=weight) for weight in quality_weights}
        self._policy = policy
        self._decided: dict[float, list[Tensor]] = {weight: [] for weight in quality_weights}

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return self._policy.kinds

    def decision_step(self, num_steps: int) -> int:
        return self._policy.decision_step(num_steps)

    def check(self, transformer: nn.Module) -> None:
        self._policy.check(transformer)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        schedules = {weight: policy.decide(state) for weight, policy in self._policies.items()}
        for weight, schedule in schedules.items():
            self._decided[weight].append(schedule.actions.cpu())
        return next(iter(schedules.values()))

    def run(self, backbone: Backbone, cases: Cases) -> Iterator[int]:
        """Passes over all prompts; yields the number of batches done."""
        for done, batch in enumerate(cases.batches(), 1):
            with Planned(self)(backbone.pipeline, batch):
                generate(backbone, cases, batch, backbone.num_inference_steps)
            yield done

    def decisions(self) -> dict[float, ReuseSchedule]:
        """By quality weight, one row of actions per prompt."""
        return {weight: ReuseSchedule(torch.cat(parts), self.kinds) for weight, parts in self._decided.items()}
