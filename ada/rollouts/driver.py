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
        actions: int64 `(images, num_steps)`.
        kinds: the kinds of reuse that the actions refer to; it sees features at the first one's boundary.
        decision_steps: when it wants to be shown.
    """

    def __init__(self, actions: Tensor, kinds: Sequence[Reuse], decision_steps: Sequence[int]) -> None:
        self.kinds = tuple(kinds)
        self._schedule = ReuseSchedule(actions, self.kinds)
        self._decision_steps = tuple(decision_steps)
        self.states: dict[int, PolicyState] = {}

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self._decision_steps

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.states[state.step - 1] = state
        return self._schedule

    def check(self, transformer: nn.Module) -> None:
        """It was made for whatever it is used on."""


def roll_out(
    pipeline: FrozenPipeline,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    actions: Tensor,
    kinds: Sequence[Reuse],
    decision_steps: Sequence[int],
) -> Rollout:
    """Runs schedules of each prompt.

    Args:
        pipeline: the frozen pipeline.
        prompts: the prompts, as the pipeline takes them.
        seeds: of each prompt's noise.
        actions: int64 `(prompts, schedules, num_steps)`; every one computes up to the first decision step.
        kinds: the kinds of reuse that the actions refer to.
        decision_steps: the steps after which a policy looks.
    """
    count, group, _ = actions.shape
    plan = GivenSchedules(actions.flatten(0, 1), kinds, decision_steps)
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
    plan = GivenSchedules(torch.zeros(1, steps, dtype=torch.int64), kinds, [steps - 2])
    generated = pipeline.generate([prompt], [0], plan)
    return Probe(plan.states[steps - 2], generated.reuse_costs(kinds))
