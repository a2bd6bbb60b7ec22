"""What decides: a training-free config, a schedule, or a policy that is asked once per generation."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from blockdance.errors import ScheduleError
from blockdance.schedule import BlockDanceConfig, Kind, Reuse, ReuseSchedule


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

    def check(self, transformer: nn.Module) -> None:
        """Raises an error that lists what differs where it was not made for this transformer."""


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
            f"The plan must be a BlockDanceConfig, a ReuseSchedule, or have `kinds`, `decision_step` and `decide` (such as an "
            f"AdaPolicy); got {type(plan).__name__}."
        )
    return plan.kinds
