"""Rollouts: many schedules of each prompt in one call of the stock pipeline, which computes once what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ada.rollouts.pipeline import FrozenPipeline
from blockdance import PolicyState, Reuse, ReuseSchedule


@dataclass(frozen=True)
class Rollout:
    """What schedules of a batch of prompts led to.

    Args:
        images: `(prompts, schedules, …)`.
        states: by decision step, what a policy sees after it, one row per prompt and schedule; schedules that are the same until
            then have the same state.
    """

    images: Tensor
    states: dict[int, PolicyState]


class GivenSchedules:
    """A decider that does as it is told and keeps what it was shown: so training sees what inference sees, made by the same code.

    Args:
        schedule: one row per image.
        decision_steps: when it wants to be shown.
        boundary: where it sees features.
    """

    def __init__(self, schedule: ReuseSchedule, decision_steps: Sequence[int], boundary: int) -> None:
        self._schedule = schedule
        self._decision_steps = tuple(decision_steps)
        given = tuple(kind for kind in schedule.kinds if isinstance(kind, Reuse))
        self.kinds = given if given and given[0].boundary == boundary else (Reuse(boundary=boundary), *given)
        self._shift = len(self.kinds) - len(given)
        self.states: dict[int, PolicyState] = {}

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self._decision_steps

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.states[state.step - 1] = state
        actions = self._schedule.actions
        return ReuseSchedule(torch.where(actions > 0, actions + self._shift, 0), self.kinds)

    def check(self, transformer: nn.Module) -> None:
        """It was made for whatever it is used on."""


def roll_out(
    pipeline: FrozenPipeline,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    actions: Tensor,
    kinds: Sequence[Reuse],
    decision_steps: Sequence[int],
    boundary: int | None = None,
) -> Rollout:
    """Runs schedules of each prompt.

    Args:
        pipeline: the frozen pipeline.
        prompts: the prompts, as the pipeline takes them.
        seeds: of each prompt's noise.
        actions: int64 `(prompts, schedules, num_steps)`; every one computes up to the first decision step.
        kinds: the kinds of reuse that the actions refer to.
        decision_steps: the steps after which a policy looks.
        boundary: the block whose output it sees; by default that of the first kind.
    """
    count, group, _ = actions.shape
    plan = GivenSchedules(
        ReuseSchedule(actions.flatten(0, 1), tuple(kinds)), decision_steps, kinds[0].boundary if boundary is None else boundary
    )
    generated = pipeline.generate(
        [prompt for prompt in prompts for _ in range(group)],
        [seed for seed in seeds for _ in range(group)],
        plan,
        groups=[place for place in range(count) for _ in range(group)],
    )
    return Rollout(generated.images.unflatten(0, (count, group)), plan.states)


@dataclass(frozen=True)
class Probe:
    """What a generation tells that needs to be known before a policy is made.

    Args:
        state: what a policy would see before the last step: the shapes of all that it is given.
        reuse_costs: cost of a step under each kind of reuse, relative to a computed one.
    """

    state: PolicyState
    reuse_costs: list[float]


def probe(pipeline: FrozenPipeline, kinds: Sequence[Reuse], prompt: Any) -> Probe:
    """One generation of any prompt, to see what the first kind's boundary shows and what the kinds cost."""
    steps = pipeline.num_inference_steps
    schedule = ReuseSchedule(torch.zeros(1, steps, dtype=torch.int64), tuple(kinds))
    plan = GivenSchedules(schedule, [steps - 2], kinds[0].boundary)
    generated = pipeline.generate([prompt], [0], plan)
    return Probe(plan.states[steps - 2], generated.reuse_costs(kinds))
