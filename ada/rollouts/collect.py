"""Fills the table: every rung of a ladder on every case, and what a policy would have seen."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ada.policy.sight import describe
from ada.rewards import RewardError, WeightedReward
from ada.rollouts.driver import roll_out
from ada.rollouts.pipeline import FrozenPipeline
from ada.rollouts.table import Case, Table
from ada.schedules import Ladder, LadderError, Tree


class Collector:
    """Runs a ladder's rungs over a frozen pipeline.

    Args:
        pipeline: the frozen pipeline.
        reward: the quality Q of an image beside its reference, 0 for the reference itself; what is lost is the damage.
        ladder: the rungs; the first is the reference.
        folder: where tables are kept; None for memory alone.
        batch_size: prompts whose rungs run in one call of the pipeline.
        describe_reward: tells one reward from another in the table's settings.

    Raises:
        ValueError: the reward of an image depends on other images.
    """

    def __init__(
        self,
        pipeline: FrozenPipeline,
        reward: WeightedReward,
        ladder: Ladder,
        folder: Path | None,
        batch_size: int = 4,
        describe_reward: Any = None,
    ) -> None:
        reward.check_repeatable()
        self.pipeline, self.reward, self.ladder, self.batch_size = pipeline, reward, ladder, batch_size
        self.tree = Tree.of(ladder.actions, ladder.decision_steps)
        self.table = Table(
            folder,
            {"base": pipeline.fingerprint(), "ladder": ladder.to_dict(), "reward": describe_reward or reward.describe()},
        )

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are not in the table yet."""
        return [case for case in dict.fromkeys(cases) if case not in self.table]

    def fill(self, cases: Sequence[Case], advance: Callable[[int], None] = lambda done: None) -> None:
        """Runs what is missing; a run that is killed loses the batch in flight at most.

        Args:
            cases: the cases wanted.
            advance: called with the number of cases done after each batch.
        """
        todo = self.missing(cases)
        for _, alike in groupby(sorted(todo, key=_settings), key=_settings):
            cases = list(alike)
            for start in range(0, len(cases), self.batch_size):
                batch = cases[start : start + self.batch_size]
                values, sights = self.run(batch)
                self.table.add(batch, values, sights)
                advance(len(batch))

    def run(self, cases: Sequence[Case]) -> tuple[dict[str, Tensor], Tensor]:
        """One batch, of cases with the same settings.

        Returns:
            The `damage`, 0 or more, and the reward's parts by name, as they are, `(cases, rungs)` each; and what is seen at every node,
            `(cases, nodes, width)`.

        Raises:
            RewardError: a damage that is no finite number.
            LadderError: the generation starts after a decision.
        """
        pipeline = self.pipeline.with_settings(**dict(cases[0].settings))
        ladder, rungs = self.ladder.for_steps(pipeline.num_inference_steps), len(self.ladder)
        prompts = [case.prompt for case in cases]
        actions = ladder.actions.expand(len(cases), -1, -1).contiguous()
        rollout = roll_out(pipeline, prompts, [case.seed for case in cases], actions, ladder.kinds, ladder.decision_steps)
        unseen = sorted(set(ladder.decision_steps) - set(rollout.states))
        if unseen:
            raise LadderError(
                f"Nothing was seen at the decisions after the steps {unseen}: this generation starts too late for them, as with an "
                "image and little `strength`. Give a ladder whose first decision comes two steps after the start, or later."
            )
        sights = []
        for stage, rung in self.tree.nodes.tolist():
            state = rollout.states[ladder.decision_steps[stage]]
            sights.append(describe(state.take([place * rungs + rung for place in range(len(cases))])))
        with torch.inference_mode():
            scored = self.reward(
                rollout.images.flatten(0, 1),
                [prompt for prompt in prompts for _ in range(rungs)],
                rollout.images[:, :1].expand_as(rollout.images).flatten(0, 1),
            )
        parts = {name: part.unflatten(0, (len(cases), rungs)) for name, part in scored.parts.items()}
        damage = -scored.total.unflatten(0, (len(cases), rungs))
        if not damage.isfinite().all():
            raise RewardError(
                f"A damage of the prompts {prompts} is no finite number. Check that the model decodes them to finite images."
            )
        return {**parts, "damage": (damage - damage[:, :1]).clamp(min=0)}, torch.stack(sights, 1)


def _settings(case: Case) -> tuple[tuple[str, Any], ...]:
    return case.settings
