"""What decides: a training-free config, a schedule, or a policy that is asked while the image is being made."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from blockdance.errors import ScheduleError
from blockdance.kinds import Kind, Reuse
from blockdance.observation import PolicyState
from blockdance.schedule import BlockDanceConfig, ReuseSchedule


@runtime_checkable
class Decider(Protocol):
    """Anything that decides a schedule while a generation runs, such as a trained `ada.AdaPolicy`: it has all four of these members."""

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        """The kinds of reuse that it chooses from; the first one's boundary is where it sees features."""

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps after which it is asked, ascending: the first is ρ, 2 or more; steps up to ρ compute.

        A generation that starts late (img2img) asks after those that it runs, from its second step on; where none is left, once, after
        its second step."""

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Decides the actions of the steps from `state.step` on, for every image; what it says of the steps before is not read.

        A row for each image that `state` shows, or one for all, of its own `kinds`: `ReuseSchedule(actions, self.kinds)`.

        They hold until it is asked again."""

    def check(self, transformer: nn.Module) -> None:
        """Raises an error that lists what differs where it was not made for this transformer; does nothing where it serves any."""


@runtime_checkable
class Movable(Protocol):
    """A decider with weights."""

    def on(self, device: torch.device) -> "Decider":
        """The same on a device: itself where it is there, else a copy."""


Plan = BlockDanceConfig | ReuseSchedule | Decider


def plan_kinds(plan: Plan, num_blocks: int) -> tuple[Kind, ...]:
    """The kinds of reuse that a plan may take.

    Raises:
        ScheduleError: it is no plan.
    """
    if isinstance(plan, BlockDanceConfig):
        return (plan.kind(num_blocks),)
    if not isinstance(plan, ReuseSchedule | Decider):
        raise ScheduleError(
            f"The plan must be a BlockDanceConfig, a ReuseSchedule, or have `kinds`, `decision_steps`, `decide` and `check`, as "
            f"`blockdance.Decider` has (such as an AdaPolicy); got {type(plan).__name__}."
        )
    return plan.kinds
