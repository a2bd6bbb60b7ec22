"""The strongest training-free rival of a policy: a threshold on how far the predicted clean latents move, image by image.

SeaCache and TeaCache add up the change of a signal since the last computed step and reuse while the sum stays small; they do it for
the whole batch. Here each image has its own sum, of the signal that foretells damage best, on the same runtime as Ada.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ada.evaluation.methods.base import Method, generate
from ada.rollouts import FrozenPipeline
from blockdance import PolicyState, Reuse, ReuseSchedule, apply_blockdance

FAMILY = "Threshold per image"
FIRST_DECISION = 2
MOST_IN_A_ROW = 2
LEVELS = (0.15, 0.25, 0.35)


@dataclass(frozen=True)
class ThresholdRule:
    """Reuses the next step of an image while its movement since its last computed step adds up to a threshold at most.

    Asked after every step; the first three and the last one always compute, and so does a step after `MOST_IN_A_ROW` reuses.

    Args:
        kind: the kind of reuse.
        threshold: of the sum; below 0 every step computes.
        seen: where the newest movement of every image `(images,)` is noted whenever it is asked; None notes nothing.
    """

    kind: Reuse
    threshold: float
    seen: list[Tensor] | None = None

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return (self.kind,)

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return tuple(range(FIRST_DECISION, num_steps - 2))

    def check(self, transformer: nn.Module) -> None:
        """It fits any transformer that has the boundary."""

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Decides the coming step."""
        moved = movement(state.clean)
        if self.seen is not None:
            self.seen.append(moved[:, -1].cpu())
        # how many steps right before this one reused, of each image
        run = (state.actions[:, : state.step] > 0).flip(1).long().cumprod(1).sum(1).to(moved.device)
        newest = torch.arange(moved.shape[1] - 1, -1, -1, device=moved.device)
        total = (moved * (newest <= run[:, None])).sum(1)
        actions = torch.zeros_like(state.actions)
        actions[:, state.step] = ((total <= self.threshold) & (run < MOST_IN_A_ROW)).to(actions)
        return ReuseSchedule(actions, self.kinds)


def movement(clean: Tensor) -> Tensor:
    """Relative change of the predicted clean latents from step to step, `(images, history − 1)`, of `(images, history, …)`, newest last."""
    flat = clean.flatten(2).float()
    moved: Tensor = flat.diff(dim=1).norm(dim=2) / flat[:, 1:].norm(dim=2).clamp(min=1e-8)
    return moved


def threshold_methods(frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int], boundary: int) -> list[Method]:
    """The rule, which skips the blocks up to a boundary, at thresholds that save about 15, 25 and 35 % of the steps on prompts held out
    from the evaluation, which are generated once with every step computed."""
    kind, steps, seen = Reuse(boundary=boundary), frozen.num_inference_steps, list[Tensor]()
    with apply_blockdance(frozen.pipeline, ThresholdRule(kind, -1.0, seen)):
        generate(frozen, prompts, seeds, steps)
    moved = torch.stack(seen, 1)
    return [
        Method(
            name=f"{FAMILY}, {level:.0%}", family=FAMILY, group="peers", num_inference_steps=steps,
            plan=ThresholdRule(kind, fit_threshold(moved, level, steps)), timed=level == LEVELS[1],
            note=f"Each image reuses {kind} while the relative change of its predicted clean latents since its last computed step adds "
            f"up to a threshold at most, which saves about {level:.0%} on {len(prompts)} other prompts.",
            settings={"level": level, "prompts": list(prompts), "boundary": boundary},
        )
        for level in LEVELS
    ]  # fmt: skip


def fit_threshold(moved: Tensor, level: float, num_steps: int) -> float:
    """The threshold at which the rule would reuse a share `level` of all steps, were movements `(images, decisions)` as in full compute."""
    low, high = 0.0, float(moved.max()) * (MOST_IN_A_ROW + 1)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _would_reuse(moved, middle) < level * num_steps else (low, middle)
    return high


def _would_reuse(moved: Tensor, threshold: float) -> float:
    """Mean number of steps that the rule would reuse."""
    total, run, reused = torch.zeros(3, len(moved))
    for change in moved.T:
        total = total + change
        reuses = (total <= threshold) & (run < MOST_IN_A_ROW)
        reused += reuses
        # the movement of a computed step is the first of the next sum
        total, run = torch.where(reuses, total, 0), torch.where(reuses, run + 1, 0)
    return float(reused.mean())
