"""The policy's rows, at several quality weights and budgets, and beside them random schedules that reuse as often."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ada.evaluation.methods.base import ADA, ADA_BUDGET, RANDOM, Method, Planned, Run
from ada.policy import AdaPolicy
from blockdance import Reuse, ReuseSchedule, full_compute, random_schedule


def ada_methods(
    policy: AdaPolicy, weights: Sequence[float], budgets: Sequence[float], num_inference_steps: int
) -> list[Method]:
    """The policy at several quality weights λ, and within several compute budgets.

    Args:
        policy: the policy.
        weights: values of λ.
        budgets: shares of the denoising compute to spend.
        num_inference_steps: denoising steps.
    """
    rows = [
        (f"λ={weight:.3g}", ADA, {"quality_weight": weight}, f"The policy's greedy decisions at quality weight {weight:.3g}.")
        for weight in weights
    ] + [
        (f"budget {budget:.0%}", ADA_BUDGET, {"compute": budget},
         f"The steps that the policy most wants to reuse, as many as bring the compute to {budget:.0%}.")
        for budget in budgets
    ]  # fmt: skip
    return [
        Method(
            name=f"{ADA} {label}", family=family, group="ada", label=label.removeprefix("budget "),
            num_inference_steps=num_inference_steps, accelerate=Planned(policy.with_options(**options)),
            note=f"{note} Its MACs and its latency contain the policy network.", settings=options,
        )
        for label, family, options, note in rows
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
        mean = float((actions > 0).sum(1).double().mean())
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
        accelerate=RandomAsOften(actions_of, policy.kinds, policy.decided_steps(steps), seed),
        note=f"Per image, uniformly drawn steps reuse, on average over each batch as many as in {like.name}.",
        settings={"like": like.name, **like.settings}, main=main,
    )  # fmt: skip


def most_used_kind(actions: Tensor, kinds: Sequence[Reuse]) -> Reuse | None:
    """The kind of reuse that most image-steps of int64 `(images, num_steps)` take; None if none reuses."""
    counts = actions[actions > 0].bincount()
    return kinds[int(counts.argmax()) - 1] if len(counts) else None
