"""Images of one batch with wishes of their own: a policy for each, one decider for all."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from ada.policy.base import AdaPolicy
from blockdance import PolicyState, Reuse, ReuseSchedule, ScheduleError


class PerImage:
    """Decides for every image of a batch by a policy of its own: requests of different users, each with its own budget.

    The policies are options of one network, as `AdaPolicy.with_options` gives them. Each decides about its images as it would if
    they were the whole batch.

    Args:
        policies: one per image; the same object for images of the same wish is asked once.

    Raises:
        ScheduleError: no policies, or policies of different networks.
    """

    def __init__(self, policies: Sequence[AdaPolicy]) -> None:
        if not policies:
            raise ScheduleError("`policies` must have one policy per image; got none.")
        if len({next(policy.parameters()).data_ptr() for policy in policies}) > 1:
            raise ScheduleError(
                "The policies of one batch must be options of one network, `policy.with_options(…)` for each image; these are others."
            )
        self.policies = tuple(policies)

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return self.policies[0].kinds

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self.policies[0].decision_steps(num_steps)

    def check(self, transformer: nn.Module) -> None:
        for policy, _ in self._shares:
            policy.check(transformer)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Decides about every image by its own policy.

        Raises:
            ScheduleError: the batch has another number of images than there are policies.
        """
        if state.num_images != len(self.policies):
            raise ScheduleError(f"There are policies for {len(self.policies)} images, but the batch has {state.num_images}.")
        actions = torch.zeros_like(state.actions)
        expected = state.latents.new_full((state.num_images,), torch.nan, dtype=torch.float32)
        for policy, images in self._shares:
            decided = policy.decide(state.take(images))
            actions[images] = decided.actions.to(actions)
            if decided.predicted_damage is not None:
                expected[images] = decided.predicted_damage
        return ReuseSchedule(actions, self.kinds, None if bool(expected.isnan().all()) else expected)

    def on(self, device: torch.device) -> "PerImage":
        """The same on a device: itself where all policies are there, else with copies of them."""
        moved = {id(policy): policy.on(device) for policy, _ in self._shares}
        policies = tuple(moved[id(policy)] for policy in self.policies)
        if all(one is other for one, other in zip(policies, self.policies, strict=True)):
            return self
        other = copy.copy(self)
        vars(other).pop("_shares", None)
        other.policies = policies
        return other

    @cached_property
    def _shares(self) -> list[tuple[AdaPolicy, list[int]]]:
        """Every different policy with its images."""
        shares: dict[int, tuple[AdaPolicy, list[int]]] = {}
        for image, policy in enumerate(self.policies):
            shares.setdefault(id(policy), (policy, []))[1].append(image)
        return list(shares.values())
