"""Which training-free schedules save most at which damage to the final latents? Found by trying them on a few prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from blockdance.api import apply_blockdance
from blockdance.attachment import refuse_steered
from blockdance.errors import ScheduleError
from blockdance.layouts import block_stack, find_layout
from blockdance.schedule import PAPER_BOUNDARY, BlockDanceConfig, ReuseSchedule
from blockdance.schedulers import steps_of
from blockdance.targets import transformers_of

DEFAULT_DAMAGE = 0.1
_KINDS: tuple[dict[str, Any], ...] = ({"order": 0}, {"order": 1, "weight": 0.5}, {"order": 1})
_INTERVALS = (2, 3, 4)


@dataclass(frozen=True)
class Outcome:
    """What a schedule saved and did.

    Args:
        config: the schedule.
        saved: share of the denoising MACs of the transformers that follow it.
        damage: relative distance ‖z − z*‖₂ / ‖z*‖₂ of the final latents to those with every step computed: float32 `(images,)`.
    """

    config: BlockDanceConfig
    saved: float
    damage: Tensor

    @property
    def mean_damage(self) -> float:
        return float(self.damage.mean())

    def __str__(self) -> str:
        start, end = self.config.reuse_range
        weight = f" with weight {self.config.weight:g}" if self.config.order else ""
        return (
            f"{self.saved:6.1%} saved   damage {self.mean_damage:.4f}, at most {float(self.damage.max()):.4f}   N = {self.config.interval} "
            f"after block {self.config.boundary}, {start:.0%} to {end:.0%}, order {self.config.order}{weight}"
        )


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of which none saves more at no more damage, from little saved to much."""
    found: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda one: (-one.saved, one.mean_damage)):
        if not found or outcome.mean_damage < found[-1].mean_damage:
            found.append(outcome)
    return found[::-1]


def best_within(outcomes: Sequence[Outcome], tolerance: float) -> Outcome:
    """The one that saves most while the mean damage stays within a tolerance.

    Raises:
        ScheduleError: none does.
    """
    within = [outcome for outcome in frontier(outcomes) if outcome.mean_damage <= tolerance]
    if not within:
        least = min((outcome.mean_damage for outcome in outcomes), default=math.nan)
        raise ScheduleError(
            f"No schedule that was tried keeps the damage within a tolerance of {tolerance:g}: the least was {least:.3g}. Allow more, "
            "try more schedules, or take more denoising steps."
        )
    return within[-1]


class OutcomeSearch:
    """Local search over `BlockDanceConfig`s: start and end of the range, N, boundary, order and weight.

    Schedules that are tried together run in one call of the pipeline, where images with equal actions so far are computed once. What
    they are compared with, every prompt with every step computed, is made at once.

    Args:
        pipeline: a diffusers pipeline.
        prompts: a handful, of the kind that users send.
        component: name of one of its transformers; by default all follow the schedule.
        num_inference_steps: denoising steps.
        seeds: noises of every prompt.
        batch_size: most images (prompts × seeds × schedules) of one call.
        report: called with a line now and then.
        options: passed to the pipeline, such as `guidance_scale`.

    Raises:
        ScheduleError: there is no prompt or no seed, or fewer than three steps.
        UnsupportedModelError: no block layout is known, or there is no such transformer.
        BlockDanceError: BlockDance is on for one of the transformers.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        component: str | None = None,
        num_inference_steps: int = 20,
        seeds: int = 1,
        batch_size: int = 16,
        report: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self._pipeline, self._component, self._report = pipeline, component, report
        self._options = options | {"num_inference_steps": num_inference_steps}
        self._cases = list(product(prompts, range(seeds)))
        if not self._cases:
            raise ScheduleError("There is nothing to try schedules on: give one prompt and one seed at least.")
        transformers = list(transformers_of(pipeline, component).values())
        for transformer in transformers:
            refuse_steered(transformer, pipeline)
        layouts = [find_layout(transformer) for transformer in transformers]
        self._num_blocks = min(len(block_stack(one, layout)) for one, layout in zip(transformers, layouts, strict=True))
        self._cases_at_once = 1 if any(layout.one_image for layout in layouts) else min(len(self._cases), batch_size)
        apart = all(not layout.one_image and layout.splits_rows({}) for layout in layouts)
        self._schedules_at_once = max(1, batch_size // self._cases_at_once) if apart else 1
        # a second transformer, which takes over half-way, is given what the first one's differing actions made
        self._shares = len(transformers) == 1
        self._reference = torch.cat([self._generate(cases) for cases in self._parts()])
        self.num_steps = len(steps_of(pipeline.scheduler)[0])
        if self.num_steps < 3:
            raise ScheduleError(
                f"Of {self.num_steps} denoising steps BlockDance-N reuses none: the first, and the first of every group, compute. Take "
                "three or more."
            )
        depths = (0.5, PAPER_BOUNDARY, 6 / 7, 1.0)
        self._boundaries = sorted({max(0, min(self._num_blocks, round(depth * self._num_blocks)) - 1) for depth in depths})
        self._known: dict[Any, Outcome] = {}

    @property
    def outcomes(self) -> list[Outcome]:
        """Everything that was tried."""
        return list(self._known.values())

    def run(self, tolerance: float, most: int = 100) -> Outcome:
        """Tries schedules, going on from the best ones whose damage is nearest to the tolerance.

        Args:
            tolerance: largest mean damage.
            most: number of schedules to try.

        Raises:
            ScheduleError: nothing stays within the tolerance, or it is not positive and finite.
        """
        if not 0 < tolerance < math.inf:
            raise ScheduleError(
                f"`tolerance` must be positive and finite: every reuse moves the latents a little; got {tolerance}."
            )
        self._measure([*self._beginnings()][:most])
        expanded: set[BlockDanceConfig] = set()
        while len(self._known) < most:
            open_ = [outcome for outcome in frontier(self.outcomes) if outcome.config not in expanded]
            if not open_:
                break
            nearest = min(open_, key=lambda outcome: abs(math.log(max(outcome.mean_damage, 1e-9) / tolerance)))
            expanded.add(nearest.config)
            self._measure(self._neighbours(nearest.config), most - len(self._known))
            best = max((one.saved for one in self.outcomes if one.mean_damage <= tolerance), default=0.0)
            self._report(f"{len(self._known):4d} of at most {most} schedules tried; {best:.1%} saved within the tolerance")
        return best_within(self.outcomes, tolerance)

    def _beginnings(self) -> list[BlockDanceConfig]:
        """The paper's settings, and every N from early, middle and late steps on."""
        deepest = BlockDanceConfig(boundary=self._boundaries[-1], order=1, weight=0.5)
        paper = BlockDanceConfig(boundary=BlockDanceConfig().kind(self._num_blocks).boundary)
        spread = product((0.2, 0.4, 0.6), _INTERVALS)
        return [paper, *(replace(deepest, interval=interval, reuse_range=(start, 0.95)) for start, interval in spread)]

    def _neighbours(self, config: BlockDanceConfig) -> list[BlockDanceConfig]:
        """Those that differ in one setting."""
        first, last = (round(share * self.num_steps) for share in config.reuse_range)
        ranges = [(first + move, last) for move in (-3, -1, 1, 3)]
        ranges += [(first, end) for end in range(self.num_steps - 2, self.num_steps + 1)]
        found = [
            replace(config, reuse_range=(start / self.num_steps, end / self.num_steps))
            for start, end in ranges
            if 1 < start < end - 1
        ]
        found += [replace(config, interval=interval) for interval in _INTERVALS]
        found += [replace(config, boundary=boundary) for boundary in self._boundaries]
        return found + [replace(config, **{"weight": 1.0} | kind) for kind in _KINDS]

    def _measure(self, configs: Sequence[BlockDanceConfig], most: int | None = None) -> None:
        """Runs those that are new and reuse something."""
        new: dict[Any, BlockDanceConfig] = {}
        for config in configs:
            schedule = config.schedule(self.num_steps, self._num_blocks)
            key = (tuple(schedule.actions[0].tolist()), schedule.kinds)
            if key not in self._known and schedule.actions.any():
                new.setdefault(key, config)
        todo = list(new.items())[:most]
        for at in range(0, len(todo), self._schedules_at_once):
            part = todo[at : at + self._schedules_at_once]
            for (key, _), outcome in zip(part, self._outcomes_of([config for _, config in part]), strict=True):
                self._known[key] = outcome

    def _outcomes_of(self, configs: list[BlockDanceConfig]) -> list[Outcome]:
        """Runs schedules on all cases."""
        kinds = tuple(dict.fromkeys(config.kind(self._num_blocks) for config in configs))
        rows = torch.cat([
            config.schedule(self.num_steps, self._num_blocks).actions * (1 + kinds.index(config.kind(self._num_blocks)))
            for config in configs
        ])  # fmt: skip
        latents, saved = [], []
        for cases in self._parts():
            plan = ReuseSchedule(rows.repeat(len(cases), 1), kinds)
            groups = [case for case in range(len(cases)) for _ in configs] if self._shares else None
            with apply_blockdance(self._pipeline, plan, component=self._component, groups=groups) as handle:
                made = self._generate([case for case in cases for _ in configs])
                saved.append(handle.report().compute_saved.view(len(cases), len(configs)))
            latents.append(made.unflatten(0, (len(cases), len(configs))))
        reference = self._reference[:, None].flatten(2)
        distance = (torch.cat(latents).flatten(2) - reference).norm(dim=2) / reference.norm(dim=2)
        shares = torch.cat(saved).mean(0).tolist()
        return [Outcome(config, shares[place], distance[:, place]) for place, config in enumerate(configs)]

    def _parts(self) -> list[list[tuple[str, int]]]:
        """The cases as they run together: all, or one by one where the model takes one image a call."""
        return [self._cases[at : at + self._cases_at_once] for at in range(0, len(self._cases), self._cases_at_once)]

    def _generate(self, cases: Sequence[tuple[str, int]]) -> Tensor:
        """The final latents of cases, one row each, in one call of the pipeline."""
        generators = [torch.Generator().manual_seed(seed) for _, seed in cases]
        given = self._options | {"generator": generators, "output_type": "latent", "return_dict": False}
        return torch.as_tensor(self._pipeline([prompt for prompt, _ in cases], **given)[0]).float().cpu()
