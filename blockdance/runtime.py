"""The controller: which step, which branch, which rows; the cache's lifetime; the report."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blockdance.cache import BoundaryCache, take_rows
from blockdance.cost import ForwardCost, count_macs
from blockdance.errors import ScheduleError
from blockdance.layout import BlockLayout
from blockdance.schedule import COMPUTE, BlockDanceConfig, Reuse, ReuseSchedule
from blockdance.steps import StepTracker
from blockdance.views import BlockViews


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
        legend = [f"{action} = after block {kind.boundary}, order {kind.order}" for action, kind in enumerate(self.kinds, 1)]
        return "\n".join([*lines, "  █ computes; " + "; ".join(legend)])


@dataclass
class _Generation:
    """State of one pass through the denoising loop."""

    num_rows: int
    num_images: int
    schedule: ReuseSchedule | None
    taken: list[list[int]]
    caches: dict[str, dict[int, BoundaryCache]] = field(default_factory=dict)
    observed: dict[str, Any] | None = None
    shapes: Any = None
    peak_cache_bytes: int = 0

    @property
    def cache_bytes(self) -> int:
        return sum(cache.num_bytes for branch in self.caches.values() for cache in branch.values())


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
        self.kinds = _kinds(plan, num_blocks)
        self._num_blocks = num_blocks
        self.views = BlockViews(transformer, layout, sorted({kind.boundary for kind in self.kinds}))
        self._generation: _Generation | None = None
        self._costs: dict[Any, ForwardCost] = {}
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
        self.views.clear()

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = self._signature.bind(self._transformer, *args, **kwargs).arguments
        hidden_states = inputs["hidden_states"]
        branch = self.context.name if self.context is not None else "all"
        step = self._steps.locate(branch, inputs.get("timestep"), self.context)
        generation = self._generation
        if generation is None or self._steps.is_new_generation or len(hidden_states) != generation.num_rows:
            generation = self._begin(hidden_states)
        if branch not in generation.caches:
            boundaries = self.views.captured
            generation.caches[branch] = {boundary: BoundaryCache(generation.num_rows) for boundary in boundaries}
        self._decide(generation, step)
        output = self._route(forward, args, kwargs, generation, branch, step)
        self._observe(generation, branch, step, inputs)
        generation.peak_cache_bytes = max(generation.peak_cache_bytes, generation.cache_bytes)
        generation.shapes = (generation.num_rows, _shapes((args, kwargs)))
        if step == self._steps.num_steps - 1:
            del generation.caches[branch]
            self.views.clear()
        return output

    def _begin(self, hidden_states: Tensor) -> _Generation:
        self.views.clear()
        num_rows, num_steps = len(hidden_states), self._steps.num_steps
        num_images = num_rows // self._count_branches(hidden_states)
        schedule = None
        if isinstance(self._plan, BlockDanceConfig):
            schedule = self._plan.schedule(num_steps, self._num_blocks).expand(num_images)
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
        generation.schedule = schedule.expand(generation.num_images)
        generation.observed = None

    def _observe(self, generation: _Generation, branch: str, step: int, inputs: dict[str, Any]) -> None:
        """Keeps at step ρ what a decider will see, from the conditional rows."""
        if not isinstance(self._plan, Decider) or generation.schedule is not None:
            return
        if branch.startswith("uncond") or step != self._plan.decision_step(self._steps.num_steps):
            return
        cache = generation.caches[branch][self._plan.kinds[0].boundary]
        first = generation.num_rows - generation.num_images if self._layout.cond_last else 0
        rows = list(range(first, first + generation.num_images))
        if not cache.serves(Reuse(boundary=0, order=1), rows[0]):
            return  # started later than ρ: nothing to compare with, so everything computes
        features, change = cache.newest_and_change(self._layout.hidden_states_index, rows)

        def select(tensor: Tensor) -> Tensor:
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

    def _route(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        generation: _Generation,
        branch: str,
        step: int,
    ) -> Any:
        """Groups the rows by action, runs each group and puts the outputs together again."""
        actions = self._actions(generation, branch, step)
        groups: dict[int, list[int]] = {}
        for row in range(generation.num_rows):
            groups.setdefault(actions[row % generation.num_images], []).append(row)
        caches, sigma = generation.caches[branch], self._steps.sigmas[step]
        if len(groups) == 1:
            action, rows = groups.popitem()
            return self._run(forward, args, kwargs, caches, action, rows, sigma)
        outputs = []
        for action, rows in groups.items():
            group_args, group_kwargs = self._select(args, kwargs, rows, generation.num_rows)
            outputs.append(self._run(forward, group_args, group_kwargs, caches, action, rows, sigma))
        order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
        return tree_map(lambda *parts: _restore_order(parts, order), *outputs)

    def _actions(self, generation: _Generation, branch: str, step: int) -> list[int]:
        """This step's action per image; computes where the cache cannot serve yet, as after a late start (img2img)."""
        planned = [COMPUTE] * generation.num_images
        if generation.schedule is not None:
            planned = generation.schedule.actions[:, step].tolist()
        caches = generation.caches[branch]
        for image, action in enumerate(planned):
            if action and not caches[self.kinds[action - 1].boundary].serves(self.kinds[action - 1], image):
                planned[image] = COMPUTE
            generation.taken[image][step] = planned[image]
        return planned

    def _run(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caches: dict[int, BoundaryCache],
        action: int,
        rows: list[int],
        sigma: float,
    ) -> Any:
        if action == COMPUTE:
            with self.views.computing():
                output = forward(*args, **kwargs)
            self.views.learn_shapes(len(rows))
            for boundary, slot in self.views.captured.items():
                caches[boundary].store(slot.value, sigma, rows)
                slot.value = None
            return output
        kind = self.kinds[action - 1]
        self.views.injected[kind.boundary].value = caches[kind.boundary].read(kind, sigma, rows)
        self.views.place_shapes(len(rows))
        with self.views.reusing(kind.boundary):
            output = forward(*args, **kwargs)
        self.views.injected[kind.boundary].value = None
        return output

    def _select(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: list[int], num_rows: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Splits every input that has a batch dimension."""

        def select(value: Any) -> Any:
            return tree_map(
                lambda leaf: take_rows(leaf, rows, num_rows)
                if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == num_rows
                else leaf,
                value,
            )

        names = list(self._signature.parameters)[1:]
        shared = self._layout.shared_arguments
        return (
            tuple(value if name in shared else select(value) for name, value in zip(names, args, strict=False)),
            {name: value if name in shared else select(value) for name, value in kwargs.items()},
        )

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
        key = str(shapes)
        if key not in self._costs:
            device = next(self._transformer.parameters()).device
            args, kwargs = tree_map(
                lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, _Shape) else leaf,
                shapes,
            )
            self._costs[key] = count_macs(self._transformer, self._layout, args, kwargs)
        return self._costs[key]


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: torch.dtype


def _shapes(tree: Any) -> Any:
    """The tree with its tensors replaced by their shapes, so that a report can count MACs later and holds no memory."""
    return tree_map(lambda leaf: _Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf, tree)


def _restore_order(parts: Sequence[Any], order: Tensor) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return torch.cat(list(parts)).index_select(0, order.to(parts[0].device))


def _kinds(plan: Plan, num_blocks: int) -> tuple[Reuse, ...]:
    """The kinds of reuse that a plan may take, checked against the model."""
    if isinstance(plan, BlockDanceConfig):
        kinds = (plan.kind(num_blocks),)
    elif isinstance(plan, ReuseSchedule | Decider):
        kinds = plan.kinds
    else:
        raise ScheduleError(
            f"The plan must be a BlockDanceConfig, a ReuseSchedule, or have `kinds`, `decision_step` and `decide` (such as an "
            f"AdaPolicy); got {type(plan).__name__}."
        )
    for kind in kinds:
        if kind.boundary >= num_blocks:
            raise ScheduleError(
                f"Boundary {kind.boundary} does not exist: the model has {num_blocks} blocks, 0 to {num_blocks - 1}."
            )
    return kinds


