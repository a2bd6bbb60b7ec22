"""Schedules that are drawn while the image is being made, and what they led to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ada.policy import StepPolicy
from ada.processor import fast_linear
from ada.rewards import WeightedReward
from ada.rewards.weighted import QUALITY, RewardResult
from ada.rollouts import Case, FrozenPipeline, References, Table, Tape, name_of, open_table
from ada.rollouts.driver import GivenSchedules
from ada.rollouts.fingerprints import parts_digest
from ada.rollouts.tape import Record
from blockdance import Plan, PolicyState, Reuse, ReuseSchedule

Draw = Callable[[Tensor], Tensor]
"""Decisions `(prompts, group, decisions)` for logits `(prompts, decisions, actions)`."""


class OutcomeKnown(Exception):  # noqa: N818, it is no error
    """Ends a call of the pipeline of which no image, or not every one, is wanted any more."""


class SampledSchedules:
    """A decider that draws a group of schedules per prompt.

    Args:
        policy: decides.
        quality_weights: λ, `(prompts,)`.
        draw: decisions `(prompts, group, decisions)` for logits `(prompts, decisions, actions)`.
        is_known: of the place of an image and its schedule, whether there is no need to run it.

    Raises:
        OutcomeKnown: in the decision, where there is one that need not be run.
    """

    def __init__(self, policy: StepPolicy, quality_weights: Tensor, draw: Draw, is_known: Callable[[int, str], bool]) -> None:
        self._policy, self._quality_weights, self._draw, self._is_known = policy, quality_weights, draw, is_known
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
        self.schedule = self._policy.schedule(self.decisions.flatten(0, 1), state.num_steps)
        self.names = [name_of(actions) for actions in self.schedule.actions.tolist()]
        self.open = [image for image, name in enumerate(self.names) if not self._is_known(image, name)]
        if len(self.open) < len(self.names):
            raise OutcomeKnown
        return self.schedule

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
        images: `(prompts, group, …)`; None where they were not asked for and not all were made.
        quality: Q, `(prompts, group)`.
        compute_saved: C, `(prompts, group)`: share of the MACs of the steps that decide.
        parts: the named parts of the quality, each `(prompts, group)`.
        kept: bool `(prompts, group)`, False for images that the reward dropped.
    """

    state: PolicyState
    logits: Tensor
    decisions: Tensor
    reference: Tensor
    images: Tensor | None
    quality: Tensor
    compute_saved: Tensor
    parts: dict[str, Tensor]
    kept: Tensor


class Sampler:
    """Rolls sampled schedules out over a frozen pipeline; what comes before the decisions is made once and kept on a tape, and what
    came of a schedule is kept in a table.

    Args:
        pipeline: the frozen pipeline.
        reward: the quality Q.
        tape: folder of the tape; None keeps it in memory alone.
        tape_memory, tape_disk: most that it takes in memory and on disk, in GiB.
        kinds: the kinds of reuse on offer.
        decision_step: ρ as a step; all up to it are taped.
        table: folder of the tables; None for none: every schedule is run.

    Raises:
        ValueError: there is to be a table, and the reward of an image depends on other images.
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
        table: Path | None,
    ) -> None:
        self._pipeline, self._reward = pipeline, reward
        settings: dict[str, Any] = {}
        if tape is not None:
            kept = {"kinds": [str(kind) for kind in kinds], "decision_step": decision_step}
            settings = {"base": pipeline.fingerprint(), "parts": parts_digest(pipeline.pipeline)} | kept
        records = Tape(int(tape_memory * 2**30), tape, settings, int(tape_disk * 2**30))
        self._references = References(pipeline, records, kinds, decision_step)
        self._table: Table | None = None if table is None else open_table(table, pipeline, reward, kinds)

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
        with_images: bool = False,
    ) -> SampledRollout:
        """One call of the pipeline: a group of schedules of every prompt. Their steps before ρ are replayed from the tape, as is the
        reference; what is not on it yet is made first. Schedules that are in the table are drawn and not run.

        Args:
            policy: gives the logits.
            prompts: the prompts; one that comes several times with equal noise shares its steps too.
            seeds: of their noise.
            quality_weights: λ of each, `(prompts,)`.
            draw: chooses the decisions.
            group: schedules per prompt.
            update_statistics: whether the reward takes these images into its statistics.
            with_images: whether all images are wanted, those too whose outcome is known.
        """
        cases = [Case(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        table, rows, shape = self._table, [case for case in cases for _ in range(group)], (len(cases), group)

        def is_known(image: int, name: str) -> bool:
            return table is not None and not with_images and table.knows(rows[image], name, QUALITY)

        decider = SampledSchedules(policy, quality_weights, draw, is_known)
        records = self._references.of(cases)
        reference = self._references.images(records)
        made = self._generate(decider, rows, [record for record in records for _ in range(group)])
        scored = None
        if made is not None:
            owners = [image // group for image in decider.open]
            asked = [prompts[owner] for owner in owners]
            with fast_linear(self._pipeline.device):
                scored = self._reward(made, asked, reference[owners], update_statistics=update_statistics)
        if table is None:
            assert scored is not None, "nothing is known where there is no table"
            values, kept = {QUALITY: scored.total, **scored.parts}, scored.kept
        else:
            values = self._look_up(table, rows, decider, scored)
            kept = torch.ones_like(values[QUALITY], dtype=torch.bool)
        shaped = {name: value.to(reference.device).unflatten(0, shape).clone() for name, value in values.items()}
        assert decider.state is not None, "the pipeline ran, so it was asked"
        return SampledRollout(
            decider.state,
            decider.logits,
            decider.decisions,
            reference,
            made.unflatten(0, shape) if made is not None and len(made) == len(rows) else None,
            shaped.pop(QUALITY),
            compute_saved(policy, decider.decisions, self._pipeline.num_inference_steps),
            shaped,
            kept.to(reference.device).unflatten(0, shape).clone(),
        )

    def _generate(self, decider: SampledSchedules, rows: Sequence[Case], records: Sequence[Record]) -> Tensor | None:
        """The images that must be made: all in the call in which it is decided, or those of a second one; None where there are none."""
        places = {case: place for place, case in enumerate(dict.fromkeys(rows))}

        def generate(images: Sequence[int], plan: Plan) -> Tensor:
            return self._pipeline.generate(
                [rows[image].prompt for image in images],
                [rows[image].seed for image in images],
                plan,
                groups=[places[rows[image]] for image in images],
                recording=self._references.steps([records[image] for image in images]),
            ).images

        try:
            return generate(range(len(rows)), decider)
        except OutcomeKnown:
            if not decider.open:
                return None
        steps = decider.decision_steps(self._pipeline.num_inference_steps)
        return generate(decider.open, GivenSchedules(decider.schedule.actions[decider.open], decider.kinds, steps))

    def _look_up(
        self, table: Table, rows: Sequence[Case], decider: SampledSchedules, scored: RewardResult | None
    ) -> dict[str, Tensor]:
        """Quality and parts of all images, `(images,)` each, after what was scored has been put into the table."""
        drawn = list(zip(rows, decider.names, strict=True))
        if scored is not None:
            table.add([drawn[image] for image in decider.open], {QUALITY: scored.total, **scored.parts})
        return {
            name: torch.cat([table.values(case, [schedule], name) for case, schedule in drawn])
            for name in (QUALITY, *self._reward.rewards)
        }


def compute_saved(policy: StepPolicy, decisions: Tensor, num_steps: int) -> Tensor:
    """C(u): share of the MACs of the steps from ρ on that a schedule saves (the paper's 1 − Σu/(s − ρ), in MACs).

    Args:
        policy: tells ρ, and what every action costs.
        decisions: int64 `(…, decisions)`.
        num_steps: of the generation.

    Returns:
        `(…)` in [0, 1].
    """
    after_prefix = num_steps - policy.decision_steps(num_steps)[0]
    return (1 - policy.action_costs.to(decisions.device)[decisions]).sum(-1) / after_prefix
