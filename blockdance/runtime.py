"""The controller: which step, which branch, which rows; the cache's lifetime; the report."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.cache import take_rows
from blockdance.cost import ForwardCost, count_macs
from blockdance.errors import ScheduleError
from blockdance.executor import ReuseExecutor, ReuseState
from blockdance.layout import BlockLayout
from blockdance.schedule import COMPUTE, BlockDanceConfig, Reuse, ReuseSchedule
from blockdance.steps import StepTracker


@dataclass(frozen=True)
class PolicyState:
    """What a policy sees when it decides, after step ρ (0-based) has been computed. `images` is the batch without branches.

    Args:
        latents: `(images, channels, …)`, the model's input at step ρ.
        prompt_embeds: `(images, tokens, width)` of the conditional branch.
        prompt_mask: `(images, tokens)`, 1 for real tokens; all ones where the model takes no mask.
        features: `(images, positions, channels)`, the conditional branch's output of the boundary block at step ρ.
        feature_change: the same minus its value one step earlier.
        sigmas: `(num_steps,)`, the noise level of every step.
        decision_step: ρ.
        num_steps: number of denoising steps.
    """

    latents: Tensor
    prompt_embeds: Tensor
    prompt_mask: Tensor
    features: Tensor
    feature_change: Tensor
    sigmas: Tensor
    decision_step: int
    num_steps: int


@runtime_checkable
class Decider(Protocol):
    """Anything that decides a schedule once per generation, such as a trained `ada.AdaPolicy`."""

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        """The kinds of reuse that it chooses from; the first one's boundary is where it sees features."""

    def decision_step(self, num_steps: int) -> int:
        """The step ρ, 1 or more, after which `decide` is called."""

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Decides every image's actions; steps up to ρ must compute."""

    def check(self, transformer: nn.Module) -> None:
        """Raises an error that lists what differs where it was not made for this transformer."""


Plan = BlockDanceConfig | ReuseSchedule | Decider


@dataclass(frozen=True)
class BlockDanceReport:
    """What the last generation did.

    Args:
        actions: int64 `(images, num_steps)`, the actions really taken; −1 for steps that did not run.
        kinds: the kinds of reuse that the actions refer to.
        macs_computed: float64 `(images,)`, MACs of the denoising steps that ran, all guidance branches together.
        macs_full: float64 `(images,)`, MACs of the same steps with every block computed.
        cache_bytes: bytes that the cache holds now.
        peak_cache_bytes: most bytes that it held.
    """

    actions: Tensor
    kinds: tuple[Reuse, ...]
    macs_computed: Tensor
    macs_full: Tensor
    cache_bytes: int
    peak_cache_bytes: int

    @property
    def compute_saved(self) -> Tensor:
        """Share of the denoising MACs saved per image: float64 `(images,)`."""
        return 1.0 - self.macs_computed / self.macs_full

    def __str__(self) -> str:
        lines = [
            f"BlockDance: {float(self.compute_saved.mean()):.1%} of the denoising MACs saved, "
            f"cache at most {self.peak_cache_bytes / 2**20:.2f} MiB"
        ]
        symbols = {-1: " ", COMPUTE: "█", **{action: str(action) for action in range(1, len(self.kinds) + 1)}}
        for image, (actions, saved) in enumerate(zip(self.actions.tolist(), self.compute_saved.tolist(), strict=True)):
            lines.append(f"  image {image}: {''.join(symbols[action] for action in actions)}  {saved:.1%} saved")
        legend = [f"{action} = {kind}" for action, kind in enumerate(self.kinds, 1)]
        return "\n".join([*lines, "  █ computes; " + "; ".join(legend)])


@dataclass
class _Generation:
    """State of one pass through the denoising loop; separate guidance branches have a state each."""

    num_rows: int
    num_images: int
    schedule: ReuseSchedule | None
    taken: list[list[int]]
    states: dict[str, ReuseState] = field(default_factory=dict)
    observed: dict[str, Any] | None = None
    shapes: Any = None
    peak_cache_bytes: int = 0

    @property
    def cache_bytes(self) -> int:
        return sum(state.num_bytes for state in self.states.values())


class Controller:
    """Carries out a plan on one transformer.

    Args:
        transformer: the model.
        layout: where its blocks are.
        plan: a training-free config, a schedule, or a decider.
        scheduler: returns the pipeline's scheduler, or None when the transformer is used alone.
        num_inference_steps: number of denoising steps, where there is no pipeline.
        guidance_branches: copies of each image in one call; by default seen from the latents, which the copies share.
    """

    def __init__(
        self,
        transformer: nn.Module,
        layout: BlockLayout,
        plan: Plan,
        scheduler: Callable[[], Any] | None = None,
        num_inference_steps: int | None = None,
        guidance_branches: int | None = None,
    ) -> None:
        self._transformer = transformer
        self._layout = layout
        self._plan = plan
        self._guidance_branches = guidance_branches
        self._steps = StepTracker(scheduler, num_inference_steps)
        self._signature = inspect.signature(type(transformer).forward)
        num_blocks = sum(len(getattr(transformer, name)) for name in layout.lists)
        if isinstance(plan, Decider):
            plan.check(transformer)
        self.kinds = _kinds(plan, num_blocks)
        self._executor = ReuseExecutor(transformer, layout, self.kinds)
        self._generation: _Generation | None = None
        self.context: Any = None

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one forward call as the plan says; any exception drops the state."""
        try:
            return self._call(forward, args, kwargs)
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Drops cache and position."""
        self._generation = None
        self._steps.forget()
        self._executor.clear()

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = self._signature.bind(self._transformer, *args, **kwargs).arguments
        hidden_states = inputs["hidden_states"]
        branch = self.context.name if self.context is not None else "all"
        step = self._steps.locate(branch, inputs.get("timestep"), self.context)
        generation = self._generation
        if generation is None or self._steps.is_new_generation or len(hidden_states) != generation.num_rows:
            generation = self._begin(hidden_states)
        if branch not in generation.states:
            branches = generation.num_rows // generation.num_images
            generation.states[branch] = self._executor.new_state(generation.num_images, branches)
        state = generation.states[branch]
        self._decide(generation, step)
        actions = self._actions(generation, state, step)
        output = self._executor.run(forward, args, kwargs, state, actions, self._steps.sigmas[step])
        self._observe(generation, state, branch, step, inputs)
        generation.peak_cache_bytes = max(generation.peak_cache_bytes, generation.cache_bytes)
        generation.shapes = (generation.num_rows, _shapes((args, kwargs)))
        if step == self._steps.num_steps - 1:
            del generation.states[branch]
            self._executor.clear()
        return output

    def _begin(self, hidden_states: Tensor) -> _Generation:
        self._executor.clear()
        num_rows, num_steps = len(hidden_states), self._steps.num_steps
        num_images = num_rows // self._count_branches(hidden_states)
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
        self._generation = _Generation(num_rows, num_images, schedule, taken)
        return self._generation

    def _count_branches(self, hidden_states: Tensor) -> int:
        """Fused classifier-free guidance repeats the latents, so equal halves are branches of the same images."""
        if self._guidance_branches is not None:
            return self._guidance_branches
        if len(hidden_states) % 2:
            return 1
        conditional, unconditional = hidden_states.chunk(2)
        return 2 if torch.equal(conditional, unconditional) else 1

    def _decide(self, generation: _Generation, step: int) -> None:
        """Asks a decider once, before the first step after ρ."""
        if generation.schedule is not None or not isinstance(self._plan, Decider) or generation.observed is None:
            return
        if step <= generation.observed["decision_step"]:
            return
        schedule = self._plan.decide(PolicyState(**generation.observed))
        if schedule.num_steps != self._steps.num_steps:
            raise ScheduleError(
                f"{type(self._plan).__name__}.decide returned {schedule.num_steps} steps of actions; this generation has "
                f"{self._steps.num_steps}."
            )
        generation.schedule = ReuseSchedule(schedule.actions.cpu(), schedule.kinds).expand(generation.num_images)
        generation.observed = None

    def _observe(self, generation: _Generation, state: ReuseState, branch: str, step: int, inputs: dict[str, Any]) -> None:
        """Keeps at step ρ what a decider will see, from the conditional rows."""
        if not isinstance(self._plan, Decider) or generation.schedule is not None:
            return
        if branch.startswith("uncond") or step != self._plan.decision_step(self._steps.num_steps):
            return
        cache = state.caches[self._plan.kinds[0].boundary]
        first = generation.num_rows - generation.num_images if self._layout.cond_last else 0
        rows = list(range(first, first + generation.num_images))
        if not cache.serves(Reuse(boundary=0, order=1), rows[0]):
            return  # started later than ρ: nothing to compare with, so everything computes
        features, change = cache.newest_and_change(self._layout.hidden_states_index, rows)

        def select(tensor: Tensor) -> Any:
            return take_rows(tensor, rows, generation.num_rows)

        embeds = select(inputs["encoder_hidden_states"])
        mask = inputs.get("encoder_attention_mask")
        generation.observed = {
            "latents": select(inputs["hidden_states"]),
            "prompt_embeds": embeds,
            "prompt_mask": embeds.new_ones(embeds.shape[:2]) if mask is None else select(mask),
            "features": features,
            "feature_change": change,
            "sigmas": torch.tensor(self._steps.sigmas, device=embeds.device),
            "decision_step": step,
            "num_steps": self._steps.num_steps,
        }

    def _actions(self, generation: _Generation, state: ReuseState, step: int) -> list[int]:
        """This step's action per image; computes where the cache cannot serve yet, as after a late start (img2img)."""
        planned = [COMPUTE] * generation.num_images
        if generation.schedule is not None:
            planned = generation.schedule.actions[:, step].tolist()
        for image, action in enumerate(planned):
            if not self._executor.serves(state, action, image):
                planned[image] = COMPUTE
            generation.taken[image][step] = planned[image]
        return planned

    def report(self) -> BlockDanceReport:
        """What the last generation did.

        Raises:
            ScheduleError: before the first generation.
        """
        generation = self._generation
        if generation is None or generation.shapes is None:
            raise ScheduleError("There is nothing to report yet: run the pipeline first.")
        num_rows, shapes = generation.shapes
        actions = torch.tensor(generation.taken)
        per_row = self._cost(shapes).per_action(self.kinds) / num_rows
        ran = actions >= 0
        branches = generation.num_rows // generation.num_images * self._steps.num_branches
        computed = torch.where(ran, per_row[actions.clamp(min=0)], 0.0).sum(1) * branches
        full = ran.sum(1) * per_row[COMPUTE] * branches
        return BlockDanceReport(actions, self.kinds, computed, full, generation.cache_bytes, generation.peak_cache_bytes)

    def _cost(self, shapes: Any) -> ForwardCost:
        costs = _COSTS.setdefault(self._transformer, {})
        key = str(shapes)
        if key not in costs:
            device = next(self._transformer.parameters()).device
            args, kwargs = tree_map(
                lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, _Shape) else leaf,
                shapes,
            )
            costs[key] = count_macs(self._transformer, self._layout, args, kwargs)
        return costs[key]


# MACs depend on the model and the shapes of its inputs alone, so they outlive the controllers of one model
_COSTS: WeakKeyDictionary[nn.Module, dict[str, ForwardCost]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: torch.dtype


def _shapes(tree: Any) -> Any:
    """The tree with its tensors replaced by their shapes, so that a report can count MACs later and holds no memory."""
    return tree_map(lambda leaf: _Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf, tree)


def _kinds(plan: Plan, num_blocks: int) -> tuple[Reuse, ...]:
    """The kinds of reuse that a plan may take."""
    if isinstance(plan, BlockDanceConfig):
        return (plan.kind(num_blocks),)
    if not isinstance(plan, ReuseSchedule | Decider):
        raise ScheduleError(
            f"The plan must be a BlockDanceConfig, a ReuseSchedule, or have `kinds`, `decision_step` and `decide` (such as an "
            f"AdaPolicy); got {type(plan).__name__}."
        )
    return plan.kinds
