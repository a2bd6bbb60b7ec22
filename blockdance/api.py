"""One call turns BlockDance on, one turns it off."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import ref

from diffusers import DiffusionPipeline
from torch import nn

from blockdance.attachment import attach, attachment_of, between_calls, detach, is_on
from blockdance.cost import ForwardCost
from blockdance.drivers import unwrapped
from blockdance.errors import BlockDanceError, UnsupportedModelError
from blockdance.plan import Plan
from blockdance.plan_source import resolve_plan
from blockdance.recording import Recording
from blockdance.report import BlockDanceReport, joined
from blockdance.runtime import Controller
from blockdance.schedule import BlockDanceConfig
from blockdance.session import Loop, Options, Session
from blockdance.targets import components_of, refuse_replaced, transformers_of


class BlockDanceHandle:
    """Steers what `apply_blockdance` turned on; a context manager that turns it off when it ends.

    Args:
        session: the plan that is on.
        pipeline: whose generations it tells of; None for those of any.
    """

    def __init__(self, session: Session, pipeline: Any) -> None:
        self._session = session
        self._pipeline = ref(pipeline) if isinstance(pipeline, DiffusionPipeline) else lambda: pipeline
        self._components = components_of(pipeline, session.transformers)
        with self._between_calls():
            self._own = session.loop_of(pipeline) if pipeline is not None else None

    @property
    def plan(self) -> Plan:
        """What is carried out. It can be set while BlockDance is on, to whatever `apply_blockdance` takes. What is set holds, also where
        `using` is under way; generations under way begin anew with nothing to reuse.

        Raises:
            BlockDanceError: it is off, or the pipeline's transformer is no longer the one that it is on for.
        """
        return self._session.plan

    @plan.setter
    def plan(self, plan: Plan | str | Path) -> None:
        resolved = resolve_plan(plan, self._session.transformers)
        with self._while_on():
            self._session.plan = resolved

    @contextmanager
    def using(
        self,
        plan: Plan | str | Path | None = None,
        *,
        quality: float | None = None,
        compute: float | None = None,
        mean_compute: float | None = None,
        batch_compute: float | None = None,
    ) -> Iterator[None]:
        """Another plan, or the policy that is on with another wish, for the calls made inside; then the plan is what it was.

        It is for all calls of the pipeline and of those that follow its plan, whichever thread makes them, and begins their generations
        anew. Where several of these contexts overlap, the one entered last holds; as each ends, the newest of those that are left.

        Args:
            plan: as `apply_blockdance` takes it; by default the one that is on.
            quality, compute, mean_compute, batch_compute: as there.

        Raises:
            BlockDanceError: BlockDance is off, or the pipeline's transformer is no longer the one that it is on for.
        """
        wishes = {"quality": quality, "compute": compute, "mean_compute": mean_compute, "batch_compute": batch_compute}
        resolved = resolve_plan(self.plan if plan is None else plan, self._session.transformers, wishes)
        with self._while_on():
            override = self._session.override(resolved)
        try:
            yield
        finally:
            if is_on(self._session):
                with self._between_calls():
                    self._session.take_back(override)

    def invalidate(self) -> None:
        """Drops what is cached; the next step computes. For callbacks that rewrite latents or prompts in the middle of a generation."""
        with self._between_calls():
            for controller in self._loop.controllers.values():
                controller.invalidate()

    def report(self, component: str | None = None) -> BlockDanceReport:
        """What the last generation did: actions per image, MACs, cache bytes. `print` shows it as text.

        It can still be asked for after BlockDance is off.

        Args:
            component: name of one of the pipeline's transformers; by default all that ran, together.

        Raises:
            BlockDanceError: the pipeline's transformer is no longer the one that BlockDance is on for.
            ScheduleError: before the first generation.
        """
        self._refuse_others()
        with self._between_calls():
            if component is not None:
                return self._controller(component).report()
            loop = self._loop
            ran = loop.ran or list(loop.reported.values())[:1]
            return joined([controller.report() for controller in ran])

    @property
    def has_run(self) -> bool:
        """Whether the plan has steered anything yet, so that there is something to report."""
        return any(controller.generation is not None for controller in self._loop.reported.values())

    def cost(self, component: str | None = None) -> ForwardCost:
        """MACs of one forward call of the last generation, all its rows together.

        Args:
            component: name of one of the pipeline's transformers; by default the one that ran last.

        Raises:
            BlockDanceError, ScheduleError: as `report`.
        """
        self._refuse_others()
        with self._between_calls():
            loop = self._loop
            if component is None and loop.last is not None:
                return loop.last.cost()
            return self._controller(component or next(iter(loop.reported))).cost()

    def remove(self) -> None:
        """Turns this plan off; does nothing where it is off already. Without another plan, the model is again what it was."""
        detach(self._session)

    def __enter__(self) -> "BlockDanceHandle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    @contextmanager
    def _while_on(self) -> Iterator[None]:
        if not is_on(self._session):
            raise BlockDanceError(
                "BlockDance was turned off here, so another plan would change nothing. Turn it on with that plan: "
                "`apply_blockdance(pipe, plan)`."
            )
        self._refuse_others()
        with self._between_calls():
            yield

    def _refuse_others(self) -> None:
        if is_on(self._session):
            refuse_replaced(self._pipeline(), self._components)

    def _between_calls(self) -> AbstractContextManager[None]:
        return between_calls(self._session.transformers.values())

    @property
    def _loop(self) -> Loop:
        """The pipeline's own generations if it had any, else the last of any pipeline that follows the plan."""
        return self._own if self._own is not None and self._own.last is not None else self._session.last

    def _controller(self, component: str) -> Controller:
        controllers = self._loop.reported
        if component not in controllers:
            raise UnsupportedModelError(f"BlockDance is on for {', '.join(controllers)}, not for `{component}`.")
        return controllers[component]


def apply_blockdance(
    target: Any,
    plan: Plan | str | Path | None = None,
    *,
    quality: float | None = None,
    compute: float | None = None,
    mean_compute: float | None = None,
    batch_compute: float | None = None,
    component: str | None = None,
    num_inference_steps: int | None = None,
    guidance_branches: int | None = None,
    groups: Sequence[int] | None = None,
    max_rows: int | None = None,
    recording: Recording | None = None,
) -> BlockDanceHandle:
    """Turns BlockDance on, on a diffusers pipeline or a transformer alone.

    Pipelines that share the transformer (`from_pipe`, one per request in a server) follow the same plan, each with its own steps and
    caches, also in several threads; or they are given plans of their own.

    Args:
        target: a pipeline with one or more transformers, or a transformer.
        plan: a `BlockDanceConfig` (training-free, the default), a `ReuseSchedule`, a file that `save_plan` wrote, the folder or Hub id of
            a policy, or a `Decider` of any kind, such as an `ada.AdaPolicy`.
        quality: of a policy, share of the images that may change visibly, on average.
        compute: of a policy, share of the denoising compute that every image spends.
        mean_compute: of a policy, share that images spend on average, each as it needs.
        batch_compute: of a policy, share that the images of every batch spend on average, each as it needs beside the others.
        component: name of one of the pipeline's transformers; by default all of them (`transformer` and `transformer_2` of Wan 2.2).
        num_inference_steps: number of denoising steps; needed for a transformer alone.
        guidance_branches: copies of each image in one forward call. By default it is seen from the latents, which the branches
            of fused classifier-free guidance share.
        groups: a number for each image of the batch; images of one number have the same prompt and noise, so what they share, as
            long as their actions are equal, is computed once. For trying many schedules on one image.
        max_rows: most rows that the transformer is given at once; a larger batch runs in parts.
        recording: replays the transformer's outputs of some steps instead of computing them, see `Recording`. It is of one
            transformer: where there are several, all is computed.

    Raises:
        UnsupportedModelError: no block layout is known, the pipeline has no (such) transformer, or it is neither.
        ScheduleError: a boundary that the model does not have, something that is no plan, a wish for a plan that takes none, or an
            option below its least.
        ValueError: more than one wish, or one that cannot be met; it says which can.
        BlockDanceError: BlockDance is on already.
    """
    transformers = transformers_of(target, component)
    options = Options(
        num_inference_steps=num_inference_steps,
        guidance_branches=guidance_branches,
        groups=groups,
        max_rows=max_rows,
        recording=recording,
    )
    pipeline = _pipeline(target)
    wishes = {"quality": quality, "compute": compute, "mean_compute": mean_compute, "batch_compute": batch_compute}
    loaded = resolve_plan(BlockDanceConfig() if plan is None else plan, transformers, wishes)
    with between_calls(transformers.values()):
        session = Session(transformers, loaded, options, pipeline)
    attach(session)
    return BlockDanceHandle(session, pipeline)


def get_blockdance(target: Any, component: str | None = None) -> BlockDanceHandle | None:
    """The handle of the plan that steers a pipeline's or transformer's calls; None where there is none."""
    for transformer in transformers_of(target, component).values():
        attachment = attachment_of(transformer)
        session = None if attachment is None else attachment.steering(_pipeline(target))
        if session is not None:
            return BlockDanceHandle(session, _pipeline(target))
    return None


def remove_blockdance(target: Any, component: str | None = None) -> None:
    """Turns BlockDance off on a pipeline, or on a transformer for all pipelines that share it; does nothing where it is off.

    A plan that was turned on for another pipeline, which this one follows, stays on for that one. A plan that was turned on for the
    transformer goes. One that steers several transformers goes from all of them, also where `component` names one.
    """
    pipeline = _pipeline(target)
    for transformer in transformers_of(target, component).values():
        attachment = attachment_of(transformer)
        if attachment is None:
            continue
        if pipeline is None:
            for session in attachment.sessions:
                detach(session)
            continue
        steering = attachment.steering(pipeline)
        if steering is None:
            continue
        if steering.is_general or steering.owner is pipeline:
            detach(steering)
        elif isinstance(pipeline, DiffusionPipeline):
            with attachment.lock:
                steering.leave(pipeline)


def _pipeline(target: Any) -> Any:
    return None if isinstance(unwrapped(target), nn.Module) else target
