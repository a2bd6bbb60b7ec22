"""The policy's rows, at several quality weights and budgets, and its controls: the ladder, random and shuffled decisions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.methods.base import (
    ADA,
    ADA_BUDGET,
    RANDOM,
    STATIC,
    Accelerate,
    Method,
    Planned,
    Run,
    Unavailable,
    planned_method,
)  # fmt: skip
from ada.policy import AdaPolicy
from ada.schedules import Ladder
from blockdance import Decider, PolicyState, Reuse, ReuseSchedule, full_compute, random_schedule

MAIN_LEVELS = (0.15, 0.25, 0.35, 0.45)


SHUFFLED = "Ada, shuffled states"


def ada_methods(
    policy: AdaPolicy,
    weights: Sequence[float],
    budgets: Sequence[float],
    mean_budgets: Sequence[float],
    num_inference_steps: int,
) -> list[Method]:
    """The policy at several quality weights λ, and within several compute budgets.

    Args:
        policy: the policy.
        weights: values of λ.
        budgets: shares of the denoising compute to spend on every image.
        mean_budgets: shares to spend on average.
        num_inference_steps: denoising steps.
    """
    rows: list[tuple[str, str, dict[str, float], str]] = [
        (f"λ={weight:.3g}", ADA, {"quality_weight": weight}, f"The policy's greedy decisions at quality weight {weight:.3g}.")
        for weight in weights
    ]
    rows += [
        (
            f"budget {budget:.0%}",
            ADA_BUDGET,
            {"compute": budget},
            f"Every image spends as near to {budget:.0%} as the policy can.",
        )
        for budget in budgets
    ]
    rows += [
        (f"mean {budget:.0%}", ADA, {"mean_compute": budget}, f"Images spend {budget:.0%} on average over held-out prompts.")
        for budget in mean_budgets
        if policy.config.get("curve") is not None
    ]
    return [
        Method(
            name=f"{ADA} {label}", family=family, group="ada", label=label.removeprefix("budget "),
            num_inference_steps=num_inference_steps, accelerate=_wished(policy, options),
            note=f"{note} Its MACs and its latency contain the policy network.", settings=options,
            timed=family == ADA and (place == len(weights) // 2 or place >= len(weights)),
        )
        for place, (label, family, options, note) in enumerate(rows)
    ]  # fmt: skip


def rival_methods(name: str, policy: AdaPolicy, mean_budgets: Sequence[float], num_inference_steps: int) -> list[Method]:
    """Another policy at the same mean budgets; without a measured curve, at the weight λ that it was saved with.

    Args:
        name: what to call it.
        policy: the policy.
        mean_budgets: shares of the compute to spend on average.
        num_inference_steps: denoising steps.
    """
    wishes = {f"mean {budget:.0%}": {"mean_compute": budget} for budget in mean_budgets} if policy.config.get("curve") else {}
    return [
        Method(
            name=f"{name} {label}".strip(), family=name, group="peers", label=label or name,
            num_inference_steps=num_inference_steps, accelerate=_wished(policy, options),
            note=f"The policy {name} at the budgets of Ada. Its MACs and its latency contain its network.", settings=options,
            timed=place == 0,
        )
        for place, (label, options) in enumerate((wishes or {"": {}}).items())
    ]  # fmt: skip


def _wished(policy: AdaPolicy, options: dict[str, float], control: Callable[[AdaPolicy], Decider] | None = None) -> Accelerate:
    """The policy with a wish, or why it cannot be met."""
    try:
        wished = policy.with_options(**options)
        return Planned(wished if control is None else control(wished))
    except ValueError as error:
        return Unavailable(str(error))


@dataclass(frozen=True)
class Shuffled:
    """A policy that sees of every image another one of the batch: what it gains without looking at the right image.

    Args:
        policy: the policy.
    """

    policy: AdaPolicy

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return self.policy.kinds

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self.policy.decision_steps(num_steps)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Every image is decided by its neighbour's state; the steps that are done stay its own."""
        others = state.take([*range(1, state.num_images), 0])
        return self.policy.decide(replace(others, actions=state.actions))

    def check(self, transformer: nn.Module) -> None:
        self.policy.check(transformer)


def shuffled_method(like: Method, policy: AdaPolicy, *, main: bool) -> Method:
    """The control of a row of the policy."""
    return Method(
        name=f"Shuffled {like.name}", family=SHUFFLED, group="static", label=like.label,
        num_inference_steps=like.num_inference_steps, accelerate=_wished(policy, dict(like.settings), Shuffled),
        note=f"{like.name}, but every image is decided by what the policy sees of the next one of its batch.",
        settings={"like": like.name, **like.settings}, main=main, timed=False,
    )  # fmt: skip


def ladder_methods(ladder: Ladder, num_inference_steps: int) -> list[Method]:
    """Every rung of a ladder but the first as a static schedule; those nearest to 15, 25, 35 and 45 % are timed."""
    fitted = ladder.for_steps(num_inference_steps)
    reused = (fitted.actions > 0).double().mean(1)
    timed = {int((reused - level).abs().argmin()) for level in MAIN_LEVELS}
    rows = {tuple(rung): place for place, rung in enumerate(fitted.actions.tolist()) if any(rung)}
    return [
        planned_method(
            f"Static rung {place}, {float(reused[place]):.0%}", STATIC, "static", f"{float(reused[place]):.0%}", num_inference_steps,
            fitted.schedule(torch.tensor([place])), f"Rung {place} of the ladder: {''.join(map(str, rung))}, searched on training prompts.",
            timed=place in timed,
        )
        for rung, place in rows.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class RandomAsOften:
    """Reuses random steps, as many on average as another method did on the same batch, with the kind that it used most.

    Args:
        actions_of: of the cases at these places, the actions `(images, num_steps)` that the other method took.
        kinds: what its actions mean.
        open_steps: the steps that it may reuse at.
        seed: of the drawing; a batch is drawn the same again.
    """

    actions_of: Callable[[slice], Tensor]
    kinds: Sequence[Reuse]
    open_steps: range
    seed: int

    def schedule(self, images: slice) -> ReuseSchedule:
        """The schedule of the cases at these places, a row each; full compute where the other method reused nothing."""
        actions = self.actions_of(images)
        count, num_steps = actions.shape
        kind = most_used_kind(actions, self.kinds)
        if kind is None:
            return full_compute(count, num_steps)
        generator = torch.Generator().manual_seed(self.seed + images.start)
        mean = min(float((actions > 0).sum(1).double().mean()), len(self.open_steps))
        # the range's first step always computes there, which is the last one before those that are open
        reuse_range = ((self.open_steps.start - 1) / num_steps, self.open_steps.stop / num_steps)
        return random_schedule(count, num_steps, mean, kind, generator, reuse_range)

    @contextmanager
    def __call__(self, pipeline: Any, images: slice) -> Iterator[Run]:
        with Planned(self.schedule(images))(pipeline, slice(0, images.stop - images.start)) as run:
            yield run


def random_method(like: Method, actions_of: Callable[[slice], Tensor], policy: AdaPolicy, seed: int, *, main: bool) -> Method:
    """Random schedules at the rate of `like`, a row of the policy that has to be measured before it."""
    steps = like.num_inference_steps
    return Method(
        name=f"Random, rate of {like.label}", family=RANDOM, group="static", label=like.label, num_inference_steps=steps,
        accelerate=RandomAsOften(actions_of, policy.kinds, range(policy.decision_steps(steps)[0] + 1, steps - 1), seed),
        note=f"Per image, uniformly drawn steps reuse, on average over each batch as many as in {like.name}.",
        settings={"like": like.name, **like.settings}, main=main, timed=False,
    )  # fmt: skip


def most_used_kind(actions: Tensor, kinds: Sequence[Reuse]) -> Reuse | None:
    """The kind of reuse that most image-steps of int64 `(images, num_steps)` take; None if none reuses."""
    counts = actions[actions > 0].bincount()
    return kinds[int(counts.argmax()) - 1] if len(counts) else None
