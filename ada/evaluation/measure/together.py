"""Many methods in one call of the pipeline, which computes once what they share.

Methods that follow a BlockDance plan run the same prompts and noise under the same controller, and until their actions differ they
do the same: the runtime computes equal rows once. So static schedules, rules and policies run together, each deciding about its own
rows; those that end up with equal schedules cost one image, made, decoded and measured once. Every image equals the one that its
method makes alone, up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.measure.counting import Count, counted_operations
from ada.evaluation.methods import Method, Planned, num_blocks_of
from ada.evaluation.methods.base import names_of
from ada.evaluation.subject import Cases, Generated, Subject, generate
from ada.rollouts.sharing import shared_components
from blockdance import BlockDanceConfig, Plan, PolicyState, Reuse, ReuseSchedule, apply_blockdance, find_layout

FIRST_DECISION = 2
"""A decider is asked after the third step at the earliest; schedules that reuse before run alone."""


@dataclass(frozen=True)
class Shared:
    """What one method of a shared call did.

    Args:
        images: for each image of the batch, its place among the distinct ones.
        actions: int64 `(images, num_steps)`.
        action_names: what the actions mean, action 0 first.
        macs: float64 `(images,)`.
        own_macs: of the method's decider, the whole batch together; 0 where they were not counted.
        failure: why it could not decide; None where it could.
    """

    images: list[int]
    actions: Tensor
    action_names: tuple[str, ...]
    macs: Tensor
    own_macs: float
    failure: str | None


@dataclass
class Together:
    """The decider of a batch that holds the same images once per plan.

    Args:
        plans: schedules of one row or one per image, and deciders that see the same block.
        num_images: images per plan.
        counted: whether to count the MACs of the deciders.
    """

    plans: Sequence[ReuseSchedule | Any]
    num_images: int
    counted: bool = False
    failures: dict[int, str] = field(default_factory=dict)
    counts: dict[int, Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        deciders = [plan for plan in self.plans if not isinstance(plan, ReuseSchedule)]
        kinds = [kind for plan in (*deciders, *self.plans) for kind in plan.kinds]
        self.kinds: tuple[Reuse, ...] = tuple(dict.fromkeys(kinds))
        self._numbers = [torch.tensor([0, *(1 + self.kinds.index(kind) for kind in plan.kinds)]) for plan in self.plans]
        self._decided: dict[int, Tensor] = {}

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        """Whenever any of the deciders is asked, and first of all for the schedules."""
        asked = {FIRST_DECISION}
        for plan in self.plans:
            asked |= set() if isinstance(plan, ReuseSchedule) else set(plan.decision_steps(num_steps))
        return tuple(sorted(asked))

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Asks each decider about its own rows."""
        actions = torch.cat([self._rows(place, plan, state) for place, plan in enumerate(self.plans)])
        return ReuseSchedule(actions, self.kinds)

    def check(self, transformer: nn.Module) -> None:
        for plan in self.plans:
            if not isinstance(plan, ReuseSchedule):
                plan.check(transformer)

    def own_actions(self, place: int, actions: Tensor) -> Tensor:
        """A plan's rows in its own numbering; steps that are open stay −1."""
        numbers = self._numbers[place]
        back = torch.zeros(len(self.kinds) + 1, dtype=torch.int64)
        back[numbers] = torch.arange(len(numbers))
        own = actions[self._slice(place)].cpu()
        return torch.where(own < 0, own, back[own.clamp(min=0)])

    def _slice(self, place: int) -> slice:
        return slice(place * self.num_images, (place + 1) * self.num_images)

    def _rows(self, place: int, plan: Any, state: PolicyState) -> Tensor:
        nothing = torch.zeros(self.num_images, state.num_steps, dtype=torch.int64)
        if isinstance(plan, ReuseSchedule):
            return self._numbers[place][plan.actions.cpu()].expand(self.num_images, -1)
        if place not in self.failures and state.step - 1 in plan.decision_steps(state.num_steps):
            rows = self._slice(place)
            own = state.take(range(rows.start, rows.stop))
            own = replace(own, actions=self.own_actions(place, state.actions).to(state.actions.device))
            try:
                with counted_operations(self.counts.setdefault(place, Count()), self.counted):
                    decided = plan.decide(own)
            except ValueError as error:  # a wish that the policy cannot meet, which its row says
                self.failures[place] = str(error)
                return nothing
            self._decided[place] = self._numbers[place][decided.actions.cpu()].expand(self.num_images, -1)
        return nothing if place in self.failures else self._decided.get(place, nothing)


def shared_plan(subject: Subject, method: Method) -> ReuseSchedule | Any | None:
    """The plan by which a method can share a call with others; None where it has to run alone."""
    plan: Plan | None = method.accelerate.plan if isinstance(method.accelerate, Planned) else None
    layout = find_layout(subject.pipeline.transformer)
    if plan is None or not layout.splits_rows({}):
        return None
    if isinstance(plan, BlockDanceConfig):
        plan = plan.schedule(method.num_inference_steps, num_blocks_of(subject))
    if not plan.kinds or not all(isinstance(kind, Reuse) for kind in plan.kinds):
        return None
    if isinstance(plan, ReuseSchedule) and bool((plan.actions[:, : FIRST_DECISION + 1] > 0).any()):
        return None
    return plan


def run_together(
    subject: Subject,
    methods: Sequence[Method],
    plans: Sequence[Any],
    cases: Cases,
    batch: slice,
    most_rows: int,
    *,
    counted: bool,
) -> tuple[Generated, list[int], list[Shared]]:
    """Runs methods of the same number of steps on one batch.

    Args:
        subject: the pipeline.
        methods: the methods.
        plans: of each, as `shared_plan` gives it.
        cases: prompts and seeds.
        batch: places of the batch's cases.
        most_rows: most prompts that are encoded, and images that are denoised and decoded at once.
        counted: whether to count the MACs of the deciders.

    Returns:
        The distinct images, the place in the batch that each of them has, and what every method did.
    """
    count = batch.stop - batch.start
    fitted = [
        ReuseSchedule(plan.actions[batch], plan.kinds) if isinstance(plan, ReuseSchedule) and plan.batch_size > 1 else plan
        for plan in plans
    ]
    decider = Together(fitted, count, counted)
    every = len(methods)
    prompts, seeds = list(cases.prompts[batch]) * every, list(cases.seeds[batch]) * every
    groups = list(range(count)) * every
    with (
        shared_components(subject.pipeline, most_rows),
        apply_blockdance(subject.pipeline, decider, groups=groups, max_rows=2 * most_rows) as handle,
    ):
        generated = generate(subject, prompts, seeds, methods[0].num_inference_steps)
        report = handle.report()
    first: dict[Any, int] = {}
    keys = [(row % count, *actions) for row, actions in enumerate(report.actions.tolist())]
    rows = [first.setdefault(key, row) for row, key in enumerate(keys)]
    kept = sorted(set(rows))
    place_of = {row: place for place, row in enumerate(kept)}
    shared = []
    for place, plan in enumerate(fitted):
        own = range(place * count, (place + 1) * count)
        macs = decider.counts[place].macs if place in decider.counts else 0.0
        shared.append(
            Shared(
                [place_of[rows[row]] for row in own], decider.own_actions(place, report.actions), names_of(plan.kinds),
                report.macs_computed[own.start : own.stop], macs, decider.failures.get(place),
            )
        )  # fmt: skip
    distinct = Generated(generated.images[kept], generated.latents[kept])
    return distinct, [row % count for row in kept], shared
