"""The controller: which step, which branch, which rows; the caches' lifetime."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from blockdance.companions import refuse_companions
from blockdance.consultation import Consultation
from blockdance.cost import ForwardCost, cost_of, costs_of
from blockdance.drivers import UNKNOWN, Driver, PipelineCall
from blockdance.errors import ScheduleError
from blockdance.executor import ReuseExecutor
from blockdance.generation import Branch, Call, Generation
from blockdance.gradients import inference_only
from blockdance.groups import Groups
from blockdance.layouts import BlockLayout, block_stack, blocks_of, parameter_names
from blockdance.offloading import offloaded_groups
from blockdance.overrides import is_compiled
from blockdance.plan import Decider, Plan, plan_kinds
from blockdance.recording import Recorded, Recording
from blockdance.report import BlockDanceReport, report_of
from blockdance.schedule import COMPUTE, BlockDanceConfig, ReuseSchedule
from blockdance.state import ReuseState
from blockdance.steps import FUSED_GUIDANCE, Location, StepTracker

_ENOUGH: AbstractContextManager[None] = nullcontext()


class Controller:
    """Carries out a plan on one transformer.

    Args:
        transformer: the model.
        layout: where its blocks are.
        plan: a training-free config, a schedule, or a decider.
        pipeline: the pipeline whose scheduler drives the loop, or None when the transformer is used alone.
        num_inference_steps: number of denoising steps, where there is no pipeline.
        guidance_branches: copies of each image in one call; by default seen from the latents, which the copies share.
        groups: a number for each image of the batch; images of one number have the same prompt and noise, so what they share, as
            long as their actions are equal, is computed once. None where all images differ.
        max_rows: most rows that the model is given at once.
        recording: replays some steps of every generation.
    """

    def __init__(
        self,
        transformer: nn.Module,
        layout: BlockLayout,
        plan: Plan,
        pipeline: Any = None,
        num_inference_steps: int | None = None,
        guidance_branches: int | None = None,
        groups: Sequence[int] | None = None,
        max_rows: int | None = None,
        recording: Recording | None = None,
    ) -> None:
        self._transformer = transformer
        self._layout = layout
        self._plan = plan
        self._guidance_branches = guidance_branches
        self._recording = recording
        self._pipeline = pipeline
        self._steps = StepTracker(pipeline, num_inference_steps, layout.timestep_rises)
        self._parameters = parameter_names(transformer)
        # asked once: looking at a protocol's methods takes longer than all else that a call needs
        self._consultation = Consultation(plan, layout, self._steps, pipeline) if isinstance(plan, Decider) else None
        if isinstance(plan, Decider):
            plan.check(transformer)
        self.kinds = plan_kinds(plan, len(block_stack(transformer, layout)))
        observed = [] if self._consultation is None else [self._consultation.boundary]
        self._make_executor = partial(ReuseExecutor, transformer, layout, self.kinds, observed, max_rows)
        self._executor, self._blocks = self._make_executor(), blocks_of(transformer, layout)
        self._schedules: dict[int, ReuseSchedule] = {}
        self._has_compiled_blocks = False
        self._groups = None if groups is None else Groups(groups)
        self._generation: Generation | None = None
        self._pipeline_call: Callable[[], PipelineCall | None] = lambda: None
        self.context: Any = None

    def call(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any = None,
        driver: Driver = UNKNOWN,
    ) -> Any:
        """Runs one forward call as the plan says; any exception ends the generation.

        Args:
            forward: the transformer's own `forward`.
            args, kwargs: its inputs.
            context: the `CacheContext` that the pipeline has set, or None.
            driver: who makes the call.
        """
        self.context = context
        try:
            if not torch.is_grad_enabled():  # the usual case, without a look at the inputs
                return self._call(forward, args, kwargs, driver)
            return inference_only(self._transformer, args, kwargs, partial(self._call, forward, args, kwargs, driver))
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Ends the generation: caches and position are dropped. What it did can still be reported."""
        if self._generation is not None:
            self._generation.end()
        self._steps.forget()
        self._executor.clear()

    def invalidate(self) -> None:
        """Drops the caches, and the latents with which a decider's next are compared; the generation goes on at the same step, and the
        next call computes."""
        if self._generation is not None:
            self._generation.free()
            self._generation.observer.restart()

    @property
    def plan(self) -> Plan:
        """What it carries out."""
        return self._plan

    @property
    def layout(self) -> BlockLayout:
        """Where the transformer's blocks are."""
        return self._layout

    @property
    def generation(self) -> Generation | None:
        """The last generation."""
        return self._generation

    @property
    def step(self) -> int:
        """The last step that ran."""
        return -1 if self._generation is None else self._generation.last_step

    @property
    def is_done(self) -> bool:
        """Whether the last call was one of the loop's last step."""
        return self._generation is not None and self._generation.last_step == self._steps.num_steps - 1

    def _room_for_graphs(self) -> AbstractContextManager[Any]:
        """Compiled code needs up to four graphs for each action (one row, two, any number, all), and torch stops at eight."""
        needed = 4 * (1 + len(self.kinds))
        limit: AbstractContextManager[Any] = torch._dynamo.config.patch(
            recompile_limit=max(torch._dynamo.config.recompile_limit, needed)
        )
        return limit

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], driver: Driver) -> Any:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        if not self._layout.is_step(inputs):
            return forward(*args, **kwargs)
        if driver.call is not None and driver.call is not self._pipeline_call():
            self.reset()
        place = self._steps.locate(inputs.get(self._layout.timestep), self.context, inputs[self._layout.latents])
        num_rows = self._layout.num_rows(inputs)
        generation = self._generation
        if generation is None or generation.is_over or place.is_new_generation or num_rows % generation.num_images:
            generation = self._begin(inputs[self._layout.latents], num_rows, driver)
        if self._groups is not None and generation.is_beginning(place.step):
            sampler = type(getattr(self._pipeline, "scheduler", None)).__name__
            self._groups.check(inputs, self._layout, generation, place.step, num_rows, sampler)
        branch = generation.branches.get(place.branch)
        if branch is None:
            branch = generation.branches[place.branch] = Branch()
        elif branch.last_step < place.step - 1:  # it paused, as guidance does that is off for some steps: what it kept is old
            generation.keep(branch, None)
        state = self._state(generation, branch, inputs, num_rows)
        if self._consultation is not None:
            self._consultation.look(generation, state, place, inputs)
            self._consultation.decide(generation, place.step)
        splits_rows = self._layout.splits_rows(inputs)
        actions = self._actions(generation, state, place.step, splits_rows)
        # before the call: some models take the items off a list that they are given
        shape = branch.look(inputs, self._layout.timestep)
        recorded = None if self._recording is None else self._recording.replay(place.step, place.branch)
        if recorded is not None:
            output = recorded.output
            if recorded.kept is not None:
                state.put(recorded.kept, self._steps.sigmas[place.step])
        else:
            twins = None if self._groups is None else self._groups.twins(generation, place.step)
            with self._room_for_graphs() if is_compiled() or self._has_compiled_blocks else _ENOUGH:
                output = self._executor.run(
                    forward, args, kwargs, state, actions, self._steps.sigmas[place.step], twins, splits_rows
                )
            if self._recording is not None:
                self._recording.record(place.step, place.branch, Recorded(output, state.newest()))
        if self._consultation is not None:
            self._consultation.observe(generation, state, place, inputs)
        generation.calls.append(Call(shape, actions))
        branch.last_step = place.step
        generation.last_step = max(generation.last_step, place.step)
        if place.step == self._steps.num_steps - 1:
            self._finish(generation, place)
        return output

    def _begin(self, latents: Any, num_rows: int, driver: Driver) -> Generation:
        if self._generation is not None:
            self._generation.end()
        refuse_companions(self._transformer, self._plan)
        self._executor.clear()
        blocks = blocks_of(self._transformer, self._layout)
        if any(one is not other for one, other in zip(blocks, self._blocks, strict=False)) or len(blocks) != len(self._blocks):
            self._executor, self._blocks = self._make_executor(), blocks
        self._has_compiled_blocks = any(
            isinstance(block, OptimizedModule) or block._compiled_call_impl is not None for block in blocks
        )
        self._executor.joins_rows = not self._has_compiled_blocks
        self._executor.offloaded = offloaded_groups(blocks)
        num_steps = self._steps.num_steps
        num_images = num_rows // self._count_branches(latents, num_rows, driver.call)
        schedule = self._schedule(num_steps)
        if schedule is not None and schedule.batch_size > 1:
            schedule = schedule.expand(num_images)
        generation = self._generation = Generation(num_images, num_steps, schedule)
        if driver.call is not None:
            # the call may end before the last step: interrupted, or by an exception of a callback
            self._pipeline_call = ref(driver.call, lambda _: generation.end())
        return generation

    def _schedule(self, num_steps: int) -> ReuseSchedule | None:
        """The plan's actions where it has them before a generation."""
        plan = self._plan
        if isinstance(plan, BlockDanceConfig):
            if num_steps not in self._schedules:
                self._schedules[num_steps] = plan.schedule(num_steps, self._executor.num_blocks)
            return self._schedules[num_steps]
        if not isinstance(plan, ReuseSchedule):
            return None
        if plan.num_steps != num_steps:
            raise ScheduleError(
                f"The schedule has {plan.num_steps} steps, but this generation takes {num_steps}. Make a schedule for {num_steps} steps, "
                "or use a `BlockDanceConfig`, which fits any number."
            )
        return plan

    def _count_branches(self, latents: Any, num_rows: int, call: PipelineCall | None) -> int:
        """Fused guidance repeats the latents: for the unconditional branch, and for one with perturbed attention. So equal parts are
        branches of the same images, unless the pipeline calls the model for each branch or does without guidance."""
        if self._guidance_branches is not None:
            if num_rows % self._guidance_branches:
                raise ScheduleError(
                    f"`guidance_branches={self._guidance_branches}` was given, but this call has {num_rows} rows, which are not as many "
                    "copies of each image. With guidance off there is one: `guidance_branches=1`; without the option it is seen from "
                    "the latents."
                )
            return self._guidance_branches
        is_one_branch = self.context is not None and self.context.name != FUSED_GUIDANCE
        noted = None if call is None else call.is_guided
        guided = getattr(self._pipeline, "do_classifier_free_guidance", True) is not False and noted is not False
        perturbed = getattr(self._pipeline, "do_perturbed_attention_guidance", False) is True
        if is_one_branch or self._layout.separate_guidance:
            return 1
        # some pipelines do not tell whether they guide: with perturbed rows alone there are two
        for branches in range(1 + guided + perturbed, 1, -1):
            part, rest = divmod(num_rows, branches)
            if rest or (self._groups is not None and self._groups.repeat_after(part, num_rows)):
                continue
            if _are_equal(latents[:-part], latents[part:]):
                return branches
        return 1

    def _state(self, generation: Generation, branch: Branch, inputs: dict[str, Any], num_rows: int) -> ReuseState:
        """The state of a branch; where guidance starts or stops half-way, the conditional rows keep theirs."""
        num_branches = num_rows // generation.num_images
        size = _size(inputs[self._layout.latents], generation.num_images)
        state = branch.state
        if state is None or branch.size != size:
            state = self._executor.new_state(generation.num_images, num_branches)
        elif state.num_branches != num_branches:
            state = state.with_branches(num_branches, self._layout.cond_last)
        if state is not branch.state:
            generation.keep(branch, state)
            branch.size = size
        return state

    def _actions(self, generation: Generation, state: ReuseState, step: int, splits_rows: bool) -> tuple[int, ...]:
        """This step's action per image; computes where the cache cannot serve yet, as after a late start (img2img), and where
        actions differ in a batch that cannot be split."""
        planned = self._executor.possible(state, generation.planned(step))
        if not splits_rows and len(set(planned)) > 1:
            generation.is_unsplit = True
            planned = (COMPUTE,) * generation.num_images
        generation.take(step, planned)
        return planned

    def _finish(self, generation: Generation, place: Location) -> None:
        """Frees the caches of branches that have no step left to run."""
        for name, branch in generation.branches.items():
            if name == place.branch or branch.last_step < place.step - 1:
                generation.keep(branch, None)
        self._executor.clear()

    def report(self) -> BlockDanceReport:
        """What the last generation did.

        Raises:
            ScheduleError: before the first generation.
        """
        return report_of(self._last_generation(), self.kinds, partial(costs_of, self._transformer, self._layout))

    def cost(self) -> ForwardCost:
        """MACs of the last forward call.

        Raises:
            ScheduleError: before the first generation.
        """
        return cost_of(self._transformer, self._layout, self._last_generation().calls[-1].shape)

    def _last_generation(self) -> Generation:
        if self._generation is None or not self._generation.calls:
            raise ScheduleError(
                "There is nothing to report yet: run the pipeline first. If it has run, its transformer is another object than the one "
                "that BlockDance was turned on for; turn it on again."
            )
        return self._generation


def _are_equal(one: Any, other: Any) -> bool:
    """Whether rows are equal; those of a tensor at once, since the host waits for the device at every comparison."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(torch.equal(row, other_row) for row, other_row in zip(one, other, strict=True))


def _size(latents: Any, num_images: int) -> Any:
    """Shape of the latents without batch and guidance branches."""
    return latents.shape[1:] if isinstance(latents, Tensor) else [image.shape for image in latents[:num_images]]
