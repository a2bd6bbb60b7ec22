"""Schedules that are drawn while the image is being made, and what they led to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ada.policy import StepPolicy
from blockdance import PolicyState, ReuseSchedule


class SampledSchedules:
    """A decider that draws a group of schedules per prompt.

    Args:
        policy: decides.
        quality_weights: λ, `(prompts,)`.
        draw: decisions `(prompts, group, decisions)` for logits `(prompts, decisions, actions)`.
    """

    def __init__(self, policy: StepPolicy, quality_weights: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
        self._policy, self._quality_weights, self._draw = policy, quality_weights, draw
        self.kinds = policy.kinds
        self.state: PolicyState | None = None

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self._policy.decision_steps(num_steps)

    @torch.no_grad()
    def decide(self, state: PolicyState) -> ReuseSchedule:
        group = state.num_images // len(self._quality_weights)
        self.state = state.take(range(0, state.num_images, group))
        self.logits = self._policy(self.state, self._quality_weights)
        self.decisions = self._draw(self.logits)
        return self._policy.schedule(self.decisions.flatten(0, 1), state.num_steps)

    def check(self, transformer: nn.Module) -> None:
        """It was made for the model that is trained over."""


@dataclass(frozen=True)
class SampledRollout:
    """What sampled schedules led to.

    Args:
        state: what the policy saw of each prompt.
        logits: `(prompts, decisions, actions)`.
        decisions: int64 `(prompts, group, decisions)`.
        reference: `(prompts, …)` images with every step computed.
        images: `(prompts, group, …)`.
        quality: Q, `(prompts, group)`.
        compute_saved: C, `(prompts, group)`: share of the MACs of the steps that decide.
        parts: the named parts of the quality, each `(prompts, group)`.
        kept: bool `(prompts, group)`, False for images that the reward dropped.
    """

    state: PolicyState
    logits: Tensor
    decisions: Tensor
    reference: Tensor
    images: Tensor
    quality: Tensor
    compute_saved: Tensor
    parts: dict[str, Tensor]
    kept: Tensor
