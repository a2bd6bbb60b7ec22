"""Runs methods through the stock pipeline, so that what is measured is what users run: every image once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from ada.evaluation.measure.counting import Ran, run_batch
from ada.evaluation.measure.metrics import Measured, Metric, edge_density, measure_images
from ada.evaluation.measure.store import Store
from ada.evaluation.measure.together import Call, calls_of, run_together
from ada.evaluation.methods import BatchReport, Cases, Generated, Method, NotApplicableError
from ada.processes import work_off
from ada.progress import progress
from ada.rollouts import FrozenPipeline

LEAST_SAVED = 0.001
MOST_IMAGES = 256
SKIPPED_NOTHING = "It attached without an error and skipped nothing: as many MACs as full compute."


@dataclass(frozen=True)
class Plan:
    """An evaluation's ingredients.

    Args:
        frozen: the pipeline.
        methods: the first is the reference.
        cases: prompts and seeds.
        metrics: by name.
        embed: features `(images, width)` of images, for the Fréchet distance.
        store: where measurements are kept.
        kept: places of the cases whose images are kept.
        most_images: most images of one call of the pipeline that methods share; up to the batch size, each has calls of its own.
        processes: how many measure, each with one thread; see `work_off`.
    """

    frozen: FrozenPipeline
    methods: Sequence[Method]
    cases: Cases
    metrics: Mapping[str, Metric]
    embed: Callable[[Tensor], Tensor]
    store: Store
    kept: frozenset[int] = frozenset()
    most_images: int = MOST_IMAGES
    processes: int = 1


def measure_methods(plan: Plan, console: Console | None = None) -> dict[str, str | None]:
    """Runs every method on every case and stores what it measures; what is stored already is not run again.

    Every image is made once: MACs are counted in the same run, of the methods whose work depends on the images at every batch, of
    the others at the first. The reference alone is made again for a batch in which the run was killed, and by every process that
    works on a batch.

    Args:
        plan: what to run.
        console: where to show progress.

    Returns:
        By method, why it does not apply; None where it does.
    """
    store, batches = plan.store, [_tasks(plan, batch) for batch in plan.cases.batches()]
    total, left = len(plan.methods) * len(batches), sum(len(task.methods) for tasks in batches for task in tasks)
    with progress("Measuring", total, console) as advance:
        advance(total - left)
        for names in work_off(batches, Measurer(plan), plan.processes):
            for name in names:
                advance(1, name)
    return {method.name: store.reason(method) for method in plan.methods}


@dataclass(frozen=True)
class Task:
    """Calls of the pipeline on one batch, in their order."""

    batch: slice
    calls: Sequence[Call]

    @property
    def methods(self) -> list[Method]:
        return [method for call in self.calls for method in call.methods]


def _tasks(plan: Plan, batch: slice) -> list[Task]:
    """What is left to do of a batch: first the reference, then the methods that share their calls, then the others one by one."""
    todo = [method for method in plan.methods if plan.store.reason(method) is None and plan.store.batch(method, batch) is None]
    first, others = [each for each in todo if each is plan.methods[0]], [each for each in todo if each is not plan.methods[0]]
    names = {method.name for method in others}
    images = min(plan.cases.batch_size, len(plan.cases.prompts))
    calls = calls_of(plan.frozen, [each for each in others if each.after not in names], max(1, plan.most_images // images))
    followers = [method for method in others if method.after in names]
    return [
        *(Task(batch, [Call([reference])]) for reference in first),
        *(Task(batch, [call, *(Call([each]) for each in followers if each.after in {one.name for one in call.methods})])
          for call in calls),
    ]  # fmt: skip


class Measurer:
    """Does tasks, one batch after the other, of each of which it makes the reference once.

    Args:
        plan: the evaluation.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._batch = plan, slice(0, 0)

    def __call__(self, task: Task) -> list[str]:
        """Measures and stores what the methods of a task make; gives their names."""
        plan = self._plan
        if task.batch != self._batch:
            self._batch = task.batch
            self._reference = run_batch(plan.frozen, plan.methods[0], plan.cases, self._batch, count=self._is_first)
        for call in task.calls:
            if call.methods[0] is plan.methods[0]:
                self._keep_alone(call.methods[0], self._reference)
            elif call.plans is not None:
                self._share(call)
            elif plan.store.reason(call.methods[0]) is None:
                self._run_alone(call.methods[0])
        return [method.name for method in task.methods]

    @property
    def _is_first(self) -> bool:
        return self._batch.start == 0

    def _share(self, call: Call) -> None:
        plan = self._plan
        generated, places, outcomes = run_together(plan.frozen, call, plan.cases, self._batch, counted=self._is_first)
        measured = self._measured(generated, places)
        for method, outcome in zip(call.methods, outcomes, strict=True):
            if outcome.failure is None:
                self._keep(method, measured.take(outcome.images), outcome.report)
            else:
                plan.store.refuse(method, outcome.failure)

    def _run_alone(self, method: Method) -> None:
        plan = self._plan
        try:
            # counting slows a run down
            count = self._is_first or method.data_dependent
            ran = run_batch(plan.frozen, method, plan.cases, self._batch, count=count)
            if method.must_save and self._is_first and ran.macs > (1 - LEAST_SAVED) * self._reference.macs:
                raise NotApplicableError(SKIPPED_NOTHING)
            self._keep_alone(method, ran)
        except NotApplicableError as error:
            plan.store.refuse(method, str(error))

    def _keep_alone(self, method: Method, ran: Ran) -> None:
        self._keep(method, self._measured(ran.generated, range(len(ran.generated.images))), ran.report)

    def _measured(self, generated: Generated, places: Sequence[int]) -> Measured:
        """Measures images that have these places in the batch."""
        cases = self._plan.cases
        prompts, beside = [cases.prompts[self._batch.start + place] for place in places], self._reference.generated.take(places)
        return measure_images(self._plan.metrics, self._plan.embed, generated, prompts, beside, cases.batch_size)

    def _keep(self, method: Method, measured: Measured, report: BatchReport) -> None:
        """Stores what a method did to the batch."""
        plan, batch, is_reference = self._plan, self._batch, method is self._plan.methods[0]
        measurements = {
            "values": measured.values,
            "edge_density": edge_density(measured.images).tolist() if is_reference else None,
            "macs": None if report.macs is None else report.macs.tolist(),
            "own_macs": report.own_macs,
            "actions": None if report.actions is None else report.actions.tolist(),
            "action_names": list(report.action_names),
            "cache_bytes": report.cache_bytes,
        }
        if is_reference:
            plan.store.write("frames", measured.images.shape[1] if measured.images.ndim == 5 else None)
        # thumbnails of any prompt's reference may be asked for
        kept = [place for place in range(batch.start, batch.stop) if is_reference or place in plan.kept]
        plan.store.add_images(method, kept, measured.images[[place - batch.start for place in kept]])
        plan.store.add_batch(method, batch, measurements, measured.features)
