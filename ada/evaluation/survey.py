"""What a policy decides at several quality weights, before anything is measured."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ada.evaluation.methods import Planned
from ada.evaluation.run import Cases
from ada.evaluation.subject import Subject, generate
from ada.policy import AdaPolicy
from ada.types import PolicyState
from blockdance import Reuse, ReuseSchedule


class Survey:
    """A decider that asks the policy at several quality weights at once, and goes on with the decision of the first.

    What the policy sees does not depend on λ, so one pass over the cases tells what it decides at each.
    """

    def __init__(self, policy: AdaPolicy, quality_weights: Sequence[float]) -> None:
        self._policies = {weight: policy.with_options(quality_weight=weight) for weight in quality_weights}
        self._policy = policy
        self._decided: dict[float, list[Tensor]] = {weight: [] for weight in quality_weights}

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return self._policy.kinds

    def decision_step(self, num_steps: int) -> int:
        return self._policy.decision_step(num_steps)

    def check(self, transformer: nn.Module) -> None:
        self._policy.check(transformer)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        schedules = {weight: policy.decide(state) for weight, policy in self._policies.items()}
        for weight, schedule in schedules.items():
            self._decided[weight].append(schedule.actions.cpu())
        return next(iter(schedules.values()))

    def run(self, subject: Subject, cases: Cases) -> Iterator[int]:
        """Passes over all cases; yields the number of batches done."""
        for done, batch in enumerate(cases.batches(), 1):
            with Planned(self)(subject.pipeline, batch):
                generate(subject, cases.prompts[batch], cases.seeds[batch], subject.num_inference_steps)
            yield done

    def decisions(self) -> dict[float, ReuseSchedule]:
        """By quality weight, one row of actions per case."""
        return {weight: ReuseSchedule(torch.cat(parts), self.kinds) for weight, parts in self._decided.items()}
