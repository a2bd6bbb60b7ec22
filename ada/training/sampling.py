"""Schedules that are drawn while the image is being made, and what they led to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ada.policy import StepPolicy
from ada.rewards import WeightedReward
from ada.rollouts import Case, FrozenPipeline, References, Tape
from ada.rollouts.fingerprints import parts_digest
from blockdance import PolicyState, Reuse, ReuseSchedule

Draw = Callable[[Tensor], Tensor]
"""Decisions `(prompts, group, decisions)` for logits `(prompts, decisions, actions)`."""


class SampledSchedules:
    """A decider that draws a group of schedules per prompt.

    Args:
        policy: decides.
        quality_weights: λ, `(prompts,)`.
        draw: decisions `(prompts, group, decisions)` for logits `(prompts, decisions, actions)`.
    """

    def __init__(self, policy: StepPolicy, quality_weights: Tensor, draw: Draw) -> None:
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


class Sampler:
    """Rolls sampled schedules out over a frozen pipeline; what comes before the decisions is made once and kept on a tape.

    Args:
        pipeline: the frozen pipeline.
        reward: the quality Q.
        tape: folder of the tape; None keeps it in memory alone.
        tape_memory, tape_disk: most that it takes in memory and on disk, in GiB.
        kinds: the kinds of reuse on offer.
        decision_step: ρ as a step; all up to it are taped.
    """

    def __init__(
        self,
        pipeline: FrozenPipeline,
        reward: WeightedReward,
        tape: Path | None,
        tape_memory: float,
        tape_disk: float,
        kinds: Sequence[Reuse],
        decision_step: int,
    ) -> None:
        self._pipeline, self._reward = pipeline, reward
        settings: dict[str, Any] = {}
        if tape is not None:
            kept = {"kinds": [str(kind) for kind in kinds], "decision_step": decision_step}
            settings = {"base": pipeline.fingerprint(), "parts": parts_digest(pipeline.pipeline)} | kept
        records = Tape(int(tape_memory * 2**30), tape, settings, int(tape_disk * 2**30))
        self._references = References(pipeline, records, kinds, decision_step)

    @torch.inference_mode()
    def roll_out(
        self,
        policy: StepPolicy,
        prompts: Sequence[Any],
        seeds: Sequence[int],
        quality_weights: Tensor,
        draw: Draw,
        group: int,
        update_statistics: bool,
    ) -> SampledRollout:
        """One call of the pipeline: a group of schedules of every prompt. Their steps before ρ are replayed from the tape, as is the
        reference; what is not on it yet is made first.

        Args:
            policy: gives the logits.
            prompts: the prompts; one that comes several times with equal noise shares its steps too.
            seeds: of their noise.
            quality_weights: λ of each, `(prompts,)`.
            draw: chooses the decisions.
            group: schedules per prompt.
            update_statistics: whether the reward takes these images into its statistics.
        """
        decider = SampledSchedules(policy, quality_weights, draw)
        cases = [Case(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        records = self._references.of(cases)
        reference = self._references.images(records)
        first = {case: place for place, case in reversed(list(enumerate(cases)))}
        generated = self._pipeline.generate(
            [case.prompt for case in cases for _ in range(group)],
            [case.seed for case in cases for _ in range(group)],
            decider,
            groups=[first[case] for case in cases for _ in range(group)],
            recording=self._references.steps([record for record in records for _ in range(group)]),
        )
        assert decider.state is not None, "the pipeline ran, so it was asked"
        scored = self._reward(
            generated.images,
            [prompt for prompt in prompts for _ in range(group)],
            reference.repeat_interleave(group, 0),
            update_statistics=update_statistics,
        )
        shape = (len(prompts), group)
        return SampledRollout(
            decider.state,
            decider.logits,
            decider.decisions,
            reference,
            generated.images.unflatten(0, shape),
            scored.total.unflatten(0, shape).clone(),
            compute_saved(policy, decider.decisions, self._pipeline.num_inference_steps),
            {name: part.unflatten(0, shape).clone() for name, part in scored.parts.items()},
            scored.kept.unflatten(0, shape).clone(),
        )


def compute_saved(policy: StepPolicy, decisions: Tensor, num_steps: int) -> Tensor:
    """C(u): share of the MACs of the steps after ρ that a schedule saves (the paper's 1 − Σu/(s − ρ), in MACs).

    Args:
        policy: tells ρ, and what every action costs.
        decisions: int64 `(…, decisions)`.
        num_steps: of the generation.

    Returns:
        `(…)` in [0, 1].
    """
    after_prefix = num_steps - policy.decision_steps(num_steps)[0]
    return (1 - policy.action_costs.to(decisions.device)[decisions]).sum(-1) / after_prefix
