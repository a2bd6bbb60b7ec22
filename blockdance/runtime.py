"""The controller: which step, which branch, which rows; the cache's lifetime; the report."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blockdance.cost import CallShape, ForwardCost, count_macs
from blockdance.errors import ScheduleError
from blockdance.executor import ReuseExecutor
from blockdance.generation import Call, Generation
from blockdance.layouts import BlockLayout, block_stack, parameter_names
from blockdance.observation import NoiseScale, PolicyState
from blockdance.pieces import RowSet
from blockdance.plan import Decider, Plan, plan_kinds
from blockdance.report import BlockDanceReport
from blockdance.schedule import COMPUTE, BlockDanceConfig, ReuseSchedule
from blockdance.state import ReuseState
from blockdance.steps import Location, StepTracker

FUSED_GUIDANCE = "cond_uncond"
"""The `cache_context` in which diffusers' pipelines call the model for both guidance branches at once."""


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
    ) -> None:
        self._transformer = transformer
        self._layout = layout
        self._plan = plan
        self._guidance_branches = guidance_branches
        self._pipeline = pipeline
        self._steps = StepTracker(pipeline, num_inference_steps, layout.timestep_rises)
        self._parameters = parameter_names(transformer)
        if isinstance(plan, Decider):
            plan.check(transformer)
        self.kinds = plan_kinds(plan, len(block_stack(transformer, layout)))
        observed = [plan.kinds[0].boundary] if isinstance(plan, Decider) else []
        self._executor = ReuseExecutor(transformer, layout, self.kinds, observed, max_rows)
        self._groups = None if groups is None else list(groups)
        self._generation: Generation | None = None
        self._device = torch.device("cpu")
        self.context: Any = None

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one forward call as the plan says; any exception drops the state."""
        try:
            with self._room_for_graphs():
                return self._call(forward, args, kwargs)
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Drops cache and position."""
        self._generation = None
        self._steps.forget()
        self._executor.clear()

    def _room_for_graphs(self) -> AbstractContextManager[Any]:
        """Compiled code needs up to four graphs for each action (one row, two, any number, all), and torch stops at eight."""
        if len(self.kinds) < 2:
            return nullcontext()
        needed = 4 * (1 + len(self.kinds))
        limit: AbstractContextManager[Any] = torch._dynamo.config.patch(
            recompile_limit=max(torch._dynamo.config.recompile_limit, needed)
        )
        return limit

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        if not self._layout.is_step(inputs):
            return forward(*args, **kwargs)
        place = self._steps.locate(inputs.get(self._layout.timestep), self.context)
        num_rows = self._layout.num_rows(inputs)
        generation = self._generation
        if generation is None or place.is_new_generation or num_rows % generation.num_images:
            generation = self._begin(inputs[self._layout.latents], num_rows)
            self._device = next(leaf.device for leaf in tree_leaves(inputs[self._layout.latents]))
        state = self._state(generation, place.branch, inputs, num_rows)
        self._look(generation, state, place, inputs)
        self._decide(generation, place.step)
        actions = self._actions(generation, state, place.step, self._layout.splits_rows(inputs))
        # before the call: some models take the items off a list that they are given
        shape = self._shape(generation, place.branch, inputs, args, kwargs)
        twins = self._twins(generation, place.step)
        output = self._executor.run(forward, args, kwargs, state, actions, self._steps.sigmas[place.step], twins)
        self._observe(generation, state, place, inputs)
        generation.calls.append(Call(shape, actions))
        generation.peak_cache_bytes = max(generation.peak_cache_bytes, generation.cache_bytes)
        generation.last_step[place.branch] = place.step
        if place.step == self._steps.num_steps - 1:
            self._finish(generation, place)
        return output

    def _begin(self, latents: Any, num_rows: int) -> Generation:
        self._executor.clear()
        num_steps = self._steps.num_steps
        num_images = num_rows // self._count_branches(latents, num_rows)
        schedule = None
        if isinstance(self._plan, BlockDanceConfig):
            schedule = self._plan.schedule(num_steps, self._executor.num_blocks).expand(num_images)
        elif isinstance(self._plan, ReuseSchedule):
            if self._plan.num_steps != num_steps:
                raise ScheduleError(
                    f"The schedule has {self._plan.num_steps} steps, but this generation takes {num_steps}. Make a schedule for "
                    f"{num_steps} steps, or use a `BlockDanceConfig`, which fits any number."
                )
            schedule = self._plan.expand(num_images)
        taken = [[-1] * num_steps for _ in range(num_images)]
        self._generation = Generation(num_images, schedule, taken)
        return self._generation

    def _count_branches(self, latents: Any, num_rows: int) -> int:
        """Fused classifier-free guidance repeats the latents, so equal halves are branches of the same images, unless the pipeline
        calls the model for each branch or does without guidance."""
        if self._guidance_branches is not None:
            return self._guidance_branches
        is_one_branch = self.context is not None and self.context.name != FUSED_GUIDANCE
        without_guidance = getattr(self._pipeline, "do_classifier_free_guidance", True) is False
        if num_rows % 2 or is_one_branch or without_guidance or self._layout.separate_guidance:
            return 1
        half = num_rows // 2
        return 2 if all(torch.equal(one, other) for one, other in zip(latents[:half], latents[half:], strict=True)) else 1

    def _state(self, generation: Generation, branch: str, inputs: dict[str, Any], num_rows: int) -> ReuseState:
        """The state of a branch; where guidance starts or stops half-way, the conditional rows keep theirs."""
        num_branches = num_rows // generation.num_images
        size = _size(inputs[self._layout.latents], generation.num_images)
        state = generation.states.get(branch)
        if state is None or generation.sizes[branch] != size:
            state = self._executor.new_state(generation.num_images, num_branches)
        elif state.num_branches != num_branches:
            state = state.with_branches(num_branches, self._layout.cond_last)
        generation.states[branch], generation.sizes[branch] = state, size
        return state

    def _look(self, generation: Generation, state: ReuseState, place: Location, inputs: dict[str, Any]) -> None:
        """Shows the observer of a decider the latents of every step, those of the conditional rows."""
        if not isinstance(self._plan, Decider) or place.step in generation.seen_steps:
            return
        generation.seen_steps.add(place.step)
        rows = self._conditional_rows(state)
        latents = inputs[self._layout.latents]
        chosen = RowSet(rows, state.num_rows).copy(latents) if isinstance(latents, Tensor) else _stack(latents, rows)
        generation.observer.see(chosen, place.step, self._steps.sigmas, self._noise_scale())

    def _decide(self, generation: Generation, step: int) -> None:
        """Asks a decider before the first step after each of its decision steps."""
        if not isinstance(self._plan, Decider) or generation.observed is None or step <= generation.observed["step"]:
            return
        seen = generation.observed | {"step": step}
        generation.observed = None
        clean = generation.observer.clean
        if clean is None:
            return  # started later than ρ: nothing to compare with, so everything computes
        latents = generation.observer.latents
        done = torch.tensor(generation.taken)
        scale = self._noise_scale()
        levels = torch.tensor([scale.share(level) for level in self._steps.sigmas])
        decided = self._plan.decide(
            PolicyState(latents=latents, clean=clean, sigmas=levels.to(latents.device), actions=done.to(latents.device), **seen)
        )
        if decided.num_steps != self._steps.num_steps:
            raise ScheduleError(
                f"{type(self._plan).__name__}.decide returned {decided.num_steps} steps of actions; this generation has "
                f"{self._steps.num_steps}."
            )
        actions = decided.actions.cpu().expand(generation.num_images, -1)
        is_done = torch.arange(self._steps.num_steps) < step
        generation.schedule = ReuseSchedule(torch.where(is_done, done.clamp(min=COMPUTE), actions), decided.kinds)

    def _observe(self, generation: Generation, state: ReuseState, place: Location, inputs: dict[str, Any]) -> None:
        """Keeps after a decision step what a decider will see, from the conditional rows."""
        if not isinstance(self._plan, Decider) or not place.is_first or place.branch.startswith("uncond"):
            return
        if place.step not in self._plan.decision_steps(self._steps.num_steps):
            return
        rows = self._conditional_rows(state)

        def select(name: str) -> Any:
            value = inputs.get(name)
            return value if value is None else RowSet(rows, state.num_rows).copy(value)

        embeds, mask = select("encoder_hidden_states"), select("encoder_attention_mask")
        if embeds is not None and mask is None:
            mask = embeds.new_ones(embeds.shape[:2])
        cache = state.output_of(self._plan.kinds[0].boundary)
        features, change = cache.newest_and_rate(self._layout.image_index, rows)
        generation.observed = {
            "prompt_embeds": embeds,
            "prompt_mask": mask,
            "class_labels": select("class_labels"),
            "features": features,
            "feature_change": change,
            "step": place.step,
        }

    def _conditional_rows(self, state: ReuseState) -> list[int]:
        first = state.num_rows - state.num_images if self._layout.cond_last else 0
        return list(range(first, first + state.num_images))

    def _noise_scale(self) -> NoiseScale:
        return NoiseScale.of(getattr(self._pipeline, "scheduler", None), self._steps.sigmas)

    def _twins(self, generation: Generation, step: int) -> list[int] | None:
        """For each image the first of its group that has taken the same actions up to this step."""
        if self._groups is None:
            return None
        if len(self._groups) != generation.num_images:
            raise ScheduleError(f"`groups` names {len(self._groups)} images, but the batch has {generation.num_images}.")
        first: dict[Any, int] = {}
        keys = [(group, tuple(taken[: step + 1])) for group, taken in zip(self._groups, generation.taken, strict=True)]
        return [first.setdefault(key, image) for image, key in enumerate(keys)]

    def _actions(self, generation: Generation, state: ReuseState, step: int, splits_rows: bool) -> list[int]:
        """This step's action per image; computes where the cache cannot serve yet, as after a late start (img2img), and where
        actions differ in a batch that cannot be split."""
        planned = [COMPUTE] * generation.num_images
        if generation.schedule is not None:
            planned = generation.schedule.actions[:, step].tolist()
        planned = self._executor.possible(state, planned)
        if not splits_rows and len(set(planned)) > 1:
            planned = [COMPUTE] * generation.num_images
        for image, action in enumerate(planned):
            # where a step has several calls, one that reuses makes it a step that reuses
            generation.taken[image][step] = max(generation.taken[image][step], action)
        return planned

    def _shape(
        self, generation: Generation, branch: str, inputs: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> CallShape:
        """The call's shapes, looked at again only where those of its tensors are not its branch's last ones."""
        sizes = [value.shape for value in inputs.values() if isinstance(value, Tensor)]
        known = generation.shapes.get(branch)
        if known is None or known[0] != sizes:
            known = generation.shapes[branch] = (sizes, CallShape.of(args, kwargs))
        return known[1]

    def _finish(self, generation: Generation, place: Location) -> None:
        """Frees the caches of branches that have no step left to run."""
        done = [branch for branch, step in generation.last_step.items() if branch == place.branch or step < place.step - 1]
        for branch in done:
            generation.states.pop(branch, None)
            generation.sizes.pop(branch, None)
        self._executor.clear()

    def report(self) -> BlockDanceReport:
        """What the last generation did.

        Raises:
            ScheduleError: before the first generation.
        """
        generation = self._last_generation()
        computed = torch.zeros(generation.num_images, dtype=torch.float64)
        full = torch.zeros_like(computed)
        for call in generation.calls:
            per_image = self._cost(call.shape).per_action(self.kinds) / generation.num_images
            computed += per_image[call.actions]
            full += per_image[COMPUTE]
        return BlockDanceReport(
            torch.tensor(generation.taken), self.kinds, computed, full, generation.cache_bytes, generation.peak_cache_bytes
        )

    def cost(self) -> ForwardCost:
        """MACs of the last forward call.

        Raises:
            ScheduleError: before the first generation.
        """
        return self._cost(self._last_generation().calls[-1].shape)

    def _last_generation(self) -> Generation:
        if self._generation is None or not self._generation.calls:
            raise ScheduleError("There is nothing to report yet: run the pipeline first.")
        return self._generation

    def _cost(self, shape: CallShape) -> ForwardCost:
        costs = _COSTS.setdefault(self._transformer, {})
        if shape not in costs:
            inputs = shape.inputs(self._device)
            costs[shape] = count_macs(self._transformer, self._layout, *inputs, shared=(self,))
        return costs[shape]


def _stack(latents: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """A list with one tensor per image as one tensor."""
    chosen = [latents[row] for row in rows]
    if len({image.shape for image in chosen}) > 1:
        raise ScheduleError(
            "A policy decides about images of one size; this batch mixes sizes. Run them in batches of their own."
        )
    return torch.stack(chosen)


def _size(latents: Any, num_images: int) -> Any:
    """Shape of the latents without batch and guidance branches."""
    return tuple(latents.shape[1:]) if isinstance(latents, Tensor) else [image.shape for image in latents[:num_images]]


# MACs depend on the model and the shapes of its inputs alone, so they outlive the controllers of one model
_COSTS: WeakKeyDictionary[nn.Module, dict[CallShape, ForwardCost]] = WeakKeyDictionary()
