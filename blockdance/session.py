"""One `apply_blockdance`: a plan on the transformers of a pipeline, carried out for everyone who drives them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, proxy, ref

from diffusers import DiffusionPipeline
from torch import nn

from blockdance.drivers import Driver, PipelineCall
from blockdance.errors import ScheduleError
from blockdance.layouts import find_layout
from blockdance.plan import Plan
from blockdance.recording import Recording
from blockdance.runtime import Controller
from blockdance.savings import warn_of_nothing_saved


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `apply_blockdance` takes beside plan and transformers; see there.

    Raises:
        ScheduleError: a number that is not positive.
    """

    num_inference_steps: int | None = None
    guidance_branches: int | None = None
    groups: Sequence[int] | None = None
    max_rows: int | None = None
    recording: Recording | None = None

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "guidance_branches", "max_rows"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ScheduleError(f"`{name}` must be 1 or more, or None; got {number}.")


class Loop:
    """The generations of one driver: a controller for each transformer.

    Args:
        transformers: by component name.
        plan: what to do.
        options: see `Options`.
        pipeline: whose scheduler counts the steps, or None.
    """

    def __init__(self, transformers: Mapping[str, nn.Module], plan: Plan, options: Options, pipeline: Any) -> None:
        # a pipeline that nobody else keeps may go: servers make one for every request
        kept = proxy(pipeline) if isinstance(pipeline, DiffusionPipeline) else pipeline
        arguments = vars(options) | ({"recording": None} if len(transformers) > 1 else {})
        self._transformers, self._pipeline, self._arguments = transformers, kept, arguments
        self.controllers = self.reported = self._controllers(plan)
        self.last: Controller | None = None
        self._ran: list[Controller] = []
        self._pipeline_call: Callable[[], PipelineCall | None] = lambda: None
        self._has_warned = False

    def _controllers(self, plan: Plan) -> dict[str, Controller]:
        return {
            name: Controller(transformer, find_layout(transformer), plan, self._pipeline, **self._arguments)
            for name, transformer in self._transformers.items()
        }

    def follow(self, plan: Plan) -> None:
        """Ends the generations and begins anew with another plan. `reported` are the controllers of what ran last until something runs.

        Raises:
            ScheduleError: it is no plan, or names a block that a transformer does not have; the plan before goes on.
        """
        controllers = self._controllers(plan)
        self.reset()
        self.controllers, self._has_warned = controllers, False

    def call(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any, context: Any, driver: Driver) -> Any:
        """Runs one forward call of a transformer."""
        if driver.call is not None and driver.call is not self._pipeline_call():
            self._ran, self._pipeline_call = [], ref(driver.call)
        if self.reported is not self.controllers:
            self._ran, self.reported = [], self.controllers
        controller = self.last = self.controllers[name]
        if controller not in self._ran:
            self._ran.append(controller)
        output = controller.call(forward, args, kwargs, context, driver)
        for other in self.controllers.values():
            # Wan 2.2 hands over to its second transformer for good; others call both at every step
            if other is not controller and 0 <= other.step < controller.step - 1:
                other.invalidate()
        if controller.is_done and not self._has_warned:
            self._has_warned = warn_of_nothing_saved(self.ran)
        return output

    @property
    def ran(self) -> list[Controller]:
        """Those of the transformers that had a part in the last generation: in the pipeline's newest call, where it is one."""
        return [controller for controller in self._ran if controller.generation is not None]

    def reset(self) -> None:
        """Ends the generations."""
        for controller in self.controllers.values():
            controller.reset()


class _OfThread(threading.local):
    """The generations of a loop that is no pipeline's."""

    loop: Loop | None = None


class Session:
    """A plan that is on.

    Args:
        transformers: the models that it steers, by component name.
        plan: what to do.
        options: see `Options`.
        owner: the pipeline that it was turned on for, or None for transformers alone.
    """

    def __init__(self, transformers: Mapping[str, nn.Module], plan: Plan, options: Options, owner: Any) -> None:
        self.transformers = dict(transformers)
        self._names = {id(transformer): name for name, transformer in reversed(self.transformers.items())}
        self._options = options
        self._has_owner = owner is not None
        self._owner = ref(owner) if isinstance(owner, DiffusionPipeline) else lambda: owner
        self._guard = threading.Lock()
        self._left: WeakSet[DiffusionPipeline] = WeakSet()
        self._overrides: dict[object, Plan] = {}
        self._base = self._plan = plan
        self._own = self.last = Loop(self.transformers, plan, options, owner)
        self._followers: WeakKeyDictionary[Any, Loop] = WeakKeyDictionary()
        self._threads = _OfThread()

    @property
    def plan(self) -> Plan:
        """What to do. Setting it ends the generations that run, whose next call begins with nothing to reuse, and every override.

        Raises:
            ScheduleError: it is no plan, or names a block that the model does not have.
        """
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._switch(plan)
        self._base, self._overrides = plan, {}

    def override(self, plan: Plan) -> object:
        """Another plan until it is taken back, or another one is set; returns what `take_back` wants.

        Raises:
            ScheduleError: as `plan`.
        """
        self._switch(plan)
        override = object()
        self._overrides[override] = plan
        return override

    def take_back(self, override: object) -> None:
        """Ends an override: the newest that is left holds, else the plan that was set. One that does not hold goes unnoticed."""
        self._overrides.pop(override, None)
        plan = next(reversed(self._overrides.values()), self._base)
        if plan is not self._plan:
            self._switch(plan)

    def _switch(self, plan: Plan) -> None:
        with self._guard:
            for loop in (self._own, *self._followers.values()):  # the first refuses what is no plan for them
                loop.follow(plan)
            self._plan, self._threads = plan, _OfThread()
        self.last.reset()  # a thread's; what it did can be reported until something else has run

    @property
    def owner(self) -> Any:
        """The pipeline that it was turned on for; None for transformers alone."""
        return self._owner()

    @property
    def is_general(self) -> bool:
        """Whether it was turned on for transformers, whoever drives them."""
        return not self._has_owner

    @property
    def is_orphan(self) -> bool:
        """Whether its pipeline is gone."""
        return self._has_owner and self.owner is None

    def leave(self, pipeline: DiffusionPipeline) -> None:
        """Lets a pipeline that follows the plan go its own way."""
        self._left.add(pipeline)
        loop = self._followers.pop(pipeline, None)
        if loop is not None:
            loop.reset()

    def is_left_by(self, pipeline: Any) -> bool:
        """Whether a pipeline no longer follows the plan."""
        return isinstance(pipeline, DiffusionPipeline) and pipeline in self._left

    def name_of(self, transformer: nn.Module) -> str:
        """The component name of one of its transformers."""
        return self._names[id(transformer)]

    def loop_of(self, pipeline: Any) -> Loop:
        """The generations of a driver. Pipelines that share the transformer without a plan of their own follow this one, each with its
        own steps and caches; so does, for a transformer alone, each thread."""
        if pipeline is not None and pipeline is self.owner:
            return self._own
        if pipeline is None and self.is_general:
            if self._threads.loop is None:
                self._threads.loop = Loop(self.transformers, self._plan, self._options, None)
            return self._threads.loop
        if pipeline is None:
            return self._own
        with self._guard:
            if pipeline not in self._followers:
                self._followers[pipeline] = Loop(self.transformers, self._plan, self._options, pipeline)
            return self._followers[pipeline]

    def call(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any, context: Any, driver: Driver) -> Any:
        """Runs one forward call of a transformer for a driver."""
        loop = self.last = self.loop_of(driver.pipeline)
        return loop.call(name, forward, args, kwargs, context, driver)

    def reset(self) -> None:
        """Ends all generations; what they did can still be reported."""
        for loop in (self._own, self.last, *self._followers.values()):
            loop.reset()
