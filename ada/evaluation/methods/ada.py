"""The policy's rows, at several quality weights and budgets, its rivals, and its controls: random and shuffled decisions."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.methods.base import ADA, ADA_BATCH, ADA_BUDGET, RANDOM, SHUFFLED, Cases, Group, Method, Run, planned
from ada.policy import AdaPolicy, IncompatiblePolicyError, LadderPolicy
from blockdance import BlockDanceError, Decider, PolicyState, Reuse, ReuseSchedule, full_compute, random_schedule


def ada_methods(
    policy: AdaPolicy,
    weights: Sequence[float],
    budgets: Sequence[float],
    mean_budgets: Sequence[float],
    batch_budgets: Sequence[float],
    num_inference_steps: int,
) -> list[Method]:
    """The policy at several quality weights λ, and at several shares of the denoising compute: on every image, on average (a policy without
    a measured curve has none), and on average in every batch (one without a ladder has none).

    Latency is measured of the means, without them of the middle λ.
    """
    greedy, near = "The policy's greedy decisions at quality weight", "Every image spends as near to"
    means = mean_budgets if policy.config.get("curve") is not None else ()
    shared = batch_budgets if isinstance(policy, LadderPolicy) else ()
    rows: list[tuple[str, str, str, float, str, bool]] = [
        *((ADA, f"λ={weight:.3g}", "quality_weight", weight, f"{greedy} {weight:.3g}.", not means and place == len(weights) // 2)
          for place, weight in enumerate(weights)),
        *((ADA_BUDGET, f"budget {budget:.0%}", "compute", budget, f"{near} {budget:.0%} as the policy can.", False)
          for budget in budgets),
        *((ADA, f"mean {budget:.0%}", "mean_compute", budget, f"Images spend {budget:.0%} on average over held-out prompts.", True)
          for budget in means),
        *((ADA_BATCH, f"batch {budget:.0%}", "batch_compute", budget, f"The images of every batch spend {budget:.0%} on average.", False)
          for budget in shared),
    ]  # fmt: skip
    return [
        _policy_row(policy, f"{ADA} {label}", family, "ada", num_inference_steps, {option: value}, note, timed=timed)
        for family, label, option, value, note, timed in rows
    ]


def rival_methods(
    name: str, policy: AdaPolicy, transformer: nn.Module, mean_budgets: Sequence[float], num_inference_steps: int
) -> list[Method]:
    """Another policy at the same mean budgets; without a measured curve, at the weight λ that it was saved with. Of one that was made for
    another architecture a single row, with that as the reason."""
    try:
        policy.check(transformer)
    except IncompatiblePolicyError as error:
        return [
            Method(
                name=name, family=name, group="peers", num_inference_steps=num_inference_steps, reason=str(error), timed=False
            )
        ]
    wishes, note = dict[str, dict[str, float]]({name: {}}), f"The policy {name} as it was saved."
    if policy.config.get("curve"):
        wishes = {f"{name} mean {budget:.0%}": {"mean_compute": budget} for budget in mean_budgets}
        note = f"The policy {name} at the budgets of Ada."
    return [
        _policy_row(policy, row, name, "peers", num_inference_steps, wish, note, timed=place == 0)
        for place, (row, wish) in enumerate(wishes.items())
    ]


def _policy_row(
    policy: AdaPolicy, name: str, family: str, group: Group, num_inference_steps: int, wish: dict[str, float], note: str,
    *, timed: bool,
) -> Method:  # fmt: skip
    """The policy with a wish, or why it cannot be met."""
    plan, reason = None, None
    try:
        plan = policy.with_options(**wish)
    except BlockDanceError as error:
        reason = str(error)
    return Method(
        name=name, family=family, group=group, num_inference_steps=num_inference_steps, plan=plan, reason=reason, settings=wish,
        note=f"{note} Its MACs and its latency contain the policy network.", timed=timed, joint="batch_compute" in wish,
    )  # fmt: skip


@dataclass(frozen=True)
class Shuffled:
    """A decider that sees of every image another one of the batch: what it gains without looking at the right image."""

    decider: Decider

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return self.decider.kinds

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self.decider.decision_steps(num_steps)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Every image is decided by its neighbour's state; the steps that are done stay its own."""
        others = state.take([*range(1, state.num_images), 0])
        return self.decider.decide(replace(others, actions=state.actions))

    def check(self, transformer: nn.Module) -> None:
        self.decider.check(transformer)


def random_as_often(actions: Tensor, kinds: Sequence[Reuse], open_steps: range, seed: int) -> ReuseSchedule:
    """Random steps reuse, as many on average as another method took, with the kind that it used most; none where it reused nothing.

    Args:
        actions: `(images, num_steps)`, what the other method took.
        kinds: what its actions mean.
        open_steps: the steps that it may reuse at.
        seed: of the drawing.
    """
    count, num_steps = actions.shape
    taken = actions[actions > 0].bincount()
    if not len(taken):
        return ReuseSchedule(full_compute(count, num_steps).actions, tuple(kinds))
    mean = min(float((actions > 0).sum(1).double().mean()), len(open_steps))
    # the range's first step always computes there, which is the last one before those that are open
    reuse_range = ((open_steps.start - 1) / num_steps, open_steps.stop / num_steps)
    favourite, generator = int(taken.argmax()), torch.Generator().manual_seed(seed)
    drawn = random_schedule(count, num_steps, mean, kinds[favourite - 1], generator, reuse_range)
    return ReuseSchedule(drawn.actions * favourite, tuple(kinds))


def control_methods(
    like: Method, policy: AdaPolicy, actions_of: Callable[[slice], Tensor], seed: int, cases: Cases, *, main: bool
) -> list[Method]:
    """What a row of the policy is held against: random schedules at its rate, and its own decisions with shuffled states.

    Args:
        like: the row, which has to be measured first.
        policy: the policy.
        actions_of: of the cases at these places, the actions `(images, num_steps)` that the row took.
        seed: of the random schedules.
        cases: that it runs on; in batches of one, an image has no other by whose state it could be decided.
        main: as in `Method`.
    """
    steps = like.num_inference_steps
    open_steps = range(policy.decision_steps(steps)[0] + 1, steps - 1)
    fewest = min(batch.stop - batch.start for batch in cases.batches())

    def attach(pipeline: Any, images: slice) -> AbstractContextManager[Run]:
        return planned(pipeline, random_as_often(actions_of(images), policy.kinds, open_steps, seed + images.start))

    alone = "In a batch of one image there is no other one by whose state it could be decided." if fewest == 1 else None
    common: dict[str, Any] = {
        "group": "static", "num_inference_steps": steps, "settings": {"like": like.name, **like.described}, "main": main, "timed": False,
    }  # fmt: skip
    return [
        Method(
            name=f"Random, rate of {like.name.removeprefix(f'{ADA} ')}", family=RANDOM,
            attach=attach, after=like.name, quick=False, reason=like.reason,
            note=f"Per image, uniformly drawn steps reuse, on average over each batch as many as in {like.name}.", **common,
        ),
        Method(
            name=f"Shuffled {like.name}", family=SHUFFLED,
            plan=Shuffled(like.plan) if isinstance(like.plan, Decider) else None, reason=like.reason or alone,
            note=f"{like.name}, but every image is decided by what the policy sees of the next one of its batch.", **common,
        ),
    ]  # fmt: skip
