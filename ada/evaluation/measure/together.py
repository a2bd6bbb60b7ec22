"""Many methods in one call of the pipeline, which computes once what they share.

Methods that follow a BlockDance plan run the same prompts and noise under the same controller, and until their actions differ they
do the same: the runtime computes equal rows once. So static schedules, rules and policies run together, each deciding about its own
rows; those that end up with equal schedules cost one image, made, decoded and measured once. Every image equals the one that its
method makes alone, up to rounding.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.measure.counting import MacCounter
from ada.evaluation.methods.base import BatchReport, Cases, Generated, Method, generate, names_of, rows_of
from ada.rollouts import FrozenPipeline
from ada.rollouts.sharing import shared_components
from blockdance import BlockDanceConfig, BlockDanceError, PolicyState, Reuse, ReuseSchedule, apply_blockdance

FIRST_DECISION = 2
"""A decider is asked after the third step at the earliest; schedules that reuse before run alone."""


Outcome = tuple[Sequence[int], BatchReport | str]
"""Of a method, the number among distinct images of each of its images, one per case of the batch; what it did, or why it could not."""


@dataclass(frozen=True)
class Call:
    """One call of the pipeline.

    Args:
        batch: places of the cases that it runs on.
        methods: the methods that run in it.
        plans: of each; None for a single method that runs by itself.
    """

    batch: slice
    methods: Sequence[Method]
    plans: Sequence[ReuseSchedule | Any] | None = None


class Together:
    """The decider of a batch that holds the same images once per plan: schedules of one row or one per image, and deciders that see the
    same block, whose MACs are `counted` or not."""

    def __init__(self, plans: Sequence[ReuseSchedule | Any], num_images: int, *, counted: bool = False) -> None:
        self._deciders = [plan for plan in plans if not isinstance(plan, ReuseSchedule)]
        # the first kind's block is where deciders see features
        self.kinds: tuple[Reuse, ...] = tuple(dict.fromkeys(kind for plan in (*self._deciders, *plans) for kind in plan.kinds))
        self.failures: dict[int, str] = {}
        self.counters = [MacCounter() for _ in plans]
        self._plans, self._num_images, self._counted = plans, num_images, counted
        self._numbers = [torch.tensor([0, *(1 + self.kinds.index(kind) for kind in plan.kinds)]) for plan in plans]
        self._decided: dict[int, Tensor] = {}

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        """Whenever any of the deciders is asked, and first of all for the schedules."""
        return tuple(sorted({FIRST_DECISION}.union(*(decider.decision_steps(num_steps) for decider in self._deciders))))

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Asks each decider about its own rows."""
        return ReuseSchedule(torch.cat([self._rows(place, plan, state) for place, plan in enumerate(self._plans)]), self.kinds)

    def check(self, transformer: nn.Module) -> None:
        for decider in self._deciders:
            decider.check(transformer)

    def own_actions(self, place: int, actions: Tensor) -> Tensor:
        """A plan's rows in its own numbering; steps that are open stay −1."""
        numbers = self._numbers[place]
        back = torch.zeros(len(self.kinds) + 1, dtype=torch.int64)
        back[numbers] = torch.arange(len(numbers))
        own = actions[self.rows(place)].cpu()
        return torch.where(own < 0, own, back[own.clamp(min=0)])

    def rows(self, place: int) -> slice:
        """Where a plan's images lie in the batch."""
        return slice(place * self._num_images, (place + 1) * self._num_images)

    def _rows(self, place: int, plan: Any, state: PolicyState) -> Tensor:
        if isinstance(plan, ReuseSchedule):
            return self._numbers[place][plan.actions.cpu()].expand(self._num_images, -1)
        if place not in self.failures and state.step - 1 in plan.decision_steps(state.num_steps):
            rows = self.rows(place)
            own = state.take(range(rows.start, rows.stop))
            own = replace(own, actions=self.own_actions(place, state.actions).to(state.actions.device))
            try:
                with self.counters[place] if self._counted else nullcontext():
                    decided = plan.decide(own)
                self._decided[place] = self._numbers[place][decided.actions.cpu()].expand(self._num_images, -1)
            except BlockDanceError as error:  # a wish that the policy cannot meet, which its row says
                self.failures[place] = str(error)
                self._decided.pop(place, None)
        return self._decided.get(place, torch.zeros(self._num_images, state.num_steps, dtype=torch.int64))


def shared_plan(frozen: FrozenPipeline, method: Method) -> ReuseSchedule | Any | None:
    """The plan by which a method can share a call with others; None where it has to run alone."""
    plan = method.plan
    if plan is None or not frozen.layout.splits_rows({}):
        return None
    if isinstance(plan, BlockDanceConfig):
        plan = plan.schedule(method.num_inference_steps, frozen.num_blocks)
    if not plan.kinds or not all(isinstance(kind, Reuse) for kind in plan.kinds):
        return None
    if isinstance(plan, ReuseSchedule) and bool((plan.actions[:, : FIRST_DECISION + 1] > 0).any()):
        return None
    return plan


def calls_of(frozen: FrozenPipeline, methods: Sequence[Method], batch: slice, most: int) -> list[Call]:
    """How to run methods on a batch in few calls of the pipeline, the long ones first.

    Methods of the same number of steps whose plans can share, their deciders seeing the same block, take one call, `most` of them at most.
    """
    alone, waiting, boundaries = list[Call](), dict[int, list[tuple[Method, Any]]](), dict[int, int]()
    for method in methods:
        plan, steps = shared_plan(frozen, method), method.num_inference_steps
        sees = None if plan is None or isinstance(plan, ReuseSchedule) else plan.kinds[0].boundary
        if plan is None or (sees is not None and boundaries.setdefault(steps, sees) != sees):
            alone.append(Call(batch, [method]))
        else:
            waiting.setdefault(steps, []).append((method, plan))
    shared = [pairs[start : start + most] for pairs in waiting.values() for start in range(0, len(pairs), most)]
    return [Call(batch, *zip(*pairs, strict=True)) for pairs in shared] + alone


def run_together(
    frozen: FrozenPipeline, shared: Call, cases: Cases, *, counted: bool
) -> tuple[Generated, list[int], list[Outcome]]:
    """Runs methods that share a call, with `counted` counting the MACs of the deciders: the distinct images; the place in the batch of each
    of them; and what came of every method. The cases' batch size is the most prompts that are encoded, and images decoded, at once."""
    batch, every = shared.batch, len(shared.methods)
    count = batch.stop - batch.start
    fitted = [rows_of(plan, batch) for plan in shared.plans or ()]
    decider = Together(fitted, count, counted=counted)
    with (
        shared_components(frozen.pipeline, cases.batch_size),
        apply_blockdance(frozen.pipeline, decider, groups=[*range(count)] * every, max_rows=2 * cases.batch_size) as handle,
    ):
        steps = shared.methods[0].num_inference_steps
        generated = generate(frozen, list(cases.prompts[batch]) * every, list(cases.seeds[batch]) * every, steps)
        report = handle.report()
    # rows of the same image with the same actions are the same: the first one stands for them
    numbers: dict[tuple[int, ...], int] = {}
    images = [numbers.setdefault((row % count, *actions), len(numbers)) for row, actions in enumerate(report.actions.tolist())]
    first = [images.index(number) for number in range(len(numbers))]
    outcomes: list[Outcome] = []
    for place, plan in enumerate(fitted):
        own = decider.rows(place)
        actions, own_macs = decider.own_actions(place, report.actions), decider.counters[place].macs / count
        done = BatchReport(actions, names_of(plan.kinds), report.macs_computed[own], own_macs=own_macs)
        outcomes.append((images[own], decider.failures.get(place, done)))
    return generated.take(first), [row % count for row in first], outcomes
