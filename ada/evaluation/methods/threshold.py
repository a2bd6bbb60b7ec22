"""The strongest training-free rival of a policy: a threshold on how far the predicted clean latents move, image by image.

SeaCache and TeaCache add up the change of a signal since the last computed step and reuse while the sum stays small; they do it for
the whole batch. Here each image has its own sum, of the signal that foretells damage best, on the same runtime as Ada.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ada.evaluation.methods.base import Method, Planned
from ada.evaluation.subject import Cases, Subject, generate
from blockdance import PolicyState, Reuse, ReuseSchedule

THRESHOLD = "Threshold per image"
FIRST_DECISION = 2
MOST_IN_A_ROW = 2
LEVELS = (0.15, 0.25, 0.35)


def movement(clean: Tensor) -> Tensor:
    """Relative change of the predicted clean latents from step to step.

    Args:
        clean: `(images, history, …)`, the newest last.

    Returns:
        `(images, history − 1)`.
    """
    flat = clean.flatten(2).float()
    moved: Tensor = flat.diff(dim=1).norm(dim=2) / flat[:, 1:].norm(dim=2).clamp(min=1e-8)
    return moved


@dataclass(frozen=True)
class AskedEveryStep:
    """What deciders have in common that are asked after every step but the first two and those after which nothing is left to reuse.

    Args:
        kind: the kind of reuse; a decider that only looks names where.
    """

    kind: Reuse

    @property
    def kinds(self) -> tuple[Reuse, ...]:
        return (self.kind,)

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return tuple(range(FIRST_DECISION, num_steps - 2))

    def check(self, transformer: nn.Module) -> None:
        """It fits any transformer that has the boundary."""


@dataclass(frozen=True)
class ThresholdRule(AskedEveryStep):
    """Reuses the next step of an image while its movement since its last computed step adds up to a threshold at most.

    Asked after every step; the first three and the last one always compute, and so does a step after `MOST_IN_A_ROW` reuses.

    Args:
        threshold: of the sum.
    """

    threshold: float

    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Decides the coming step."""
        moved = movement(state.clean)
        run = _reuses_in_a_row(state.actions, state.step).to(moved.device)
        newest = torch.arange(moved.shape[1] - 1, -1, -1, device=moved.device)
        total = (moved * (newest <= run[:, None])).sum(1)
        actions = torch.zeros_like(state.actions)
        actions[:, state.step] = ((total <= self.threshold) & (run < MOST_IN_A_ROW)).to(actions)
        return ReuseSchedule(actions, self.kinds)


def _reuses_in_a_row(actions: Tensor, step: int) -> Tensor:
    """How many steps right before `step` reused, of int64 `(images, num_steps)`: `(images,)`."""
    reused = (actions[:, :step] > 0).flip(1).long()
    return reused.cumprod(1).sum(1)


@dataclass(frozen=True)
class MovementRecorder(AskedEveryStep):
    """Computes every step and notes how far the predicted clean latents moved."""

    seen: list[Tensor] = field(default_factory=list)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.seen.append(movement(state.clean)[:, -1].cpu())
        return ReuseSchedule(torch.zeros_like(state.actions), self.kinds)


def threshold_methods(subject: Subject, prompts: Sequence[str], seeds: Sequence[int], boundary: int) -> list[Method]:
    """The rule at thresholds that save about 15, 25 and 35 % of the steps on other prompts.

    Args:
        subject: the pipeline; it generates the prompts once, with every step computed.
        prompts: held out from the evaluation.
        seeds: of their noise.
        boundary: last block that is skipped.
    """
    kind, steps = Reuse(boundary=boundary), subject.num_inference_steps
    recorder = MovementRecorder(kind)
    cases = Cases(list(prompts), list(seeds), len(prompts))
    with Planned(recorder)(subject.pipeline, slice(0, len(prompts))):
        generate(subject, cases.prompts, cases.seeds, steps)
    moved = torch.stack(recorder.seen, 1)
    return [
        Method(
            name=f"{THRESHOLD}, {level:.0%}", family=THRESHOLD, group="peers", label=f"{level:.0%}", num_inference_steps=steps,
            accelerate=Planned(ThresholdRule(kind, fit_threshold(moved, level, steps))),
            note=f"Each image reuses {kind} while the relative change of its predicted clean latents since its last computed step adds "
            f"up to a threshold at most, which saves about {level:.0%} on {len(prompts)} other prompts.",
            settings={"level": level, "prompts": list(prompts), "boundary": boundary}, timed=level == LEVELS[1],
        )
        for level in LEVELS
    ]  # fmt: skip


def fit_threshold(moved: Tensor, level: float, num_steps: int) -> float:
    """The threshold at which the rule would reuse `level` of all steps, were movements as in full compute.

    Args:
        moved: `(images, decisions)`.
        level: share of the steps to reuse.
        num_steps: denoising steps.
    """
    low, high = 0.0, float(moved.max()) * (MOST_IN_A_ROW + 1)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _would_reuse(moved, middle) < level * num_steps else (low, middle)
    return high


def _would_reuse(moved: Tensor, threshold: float) -> float:
    """Mean number of steps that the rule would reuse."""
    total, run, reused = torch.zeros(len(moved)), torch.zeros(len(moved)), torch.zeros(len(moved))
    for change in moved.T:
        total = total + change
        reuses = (total <= threshold) & (run < MOST_IN_A_ROW)
        reused += reuses
        # the movement of a computed step is the first of the next sum
        total, run = torch.where(reuses, total, 0), torch.where(reuses, run + 1, 0)
    return float(reused.mean())
