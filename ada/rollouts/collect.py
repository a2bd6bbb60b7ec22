"""Fills the table: what schedules do to cases, every rung of a ladder on every case, and what a policy would have seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ada.policy.sight import describe
from ada.processes import num_processes, work_off
from ada.processor import fast_linear
from ada.rewards import RewardError, WeightedReward
from ada.rewards.weighted import QUALITY
from ada.rollouts.driver import roll_out
from ada.rollouts.fingerprints import digest, networks_digest, parts_digest
from ada.rollouts.pipeline import FrozenPipeline
from ada.rollouts.table import Case, Table, names_of
from ada.schedules import Ladder, LadderError, Tree
from blockdance import PolicyState, Reuse

Rows = list[tuple[Case, str]]
"""Cases, and schedules or their beginnings, as the table names them."""


def open_table(folder: Path | None, pipeline: FrozenPipeline, reward: WeightedReward, kinds: Sequence[Reuse]) -> Table:
    """The table of everything that is known of schedules of these kinds over a pipeline.

    Args:
        folder: where tables are kept; None for memory alone.
        pipeline, reward, kinds: what rows depend on beside case and schedule.

    Raises:
        ValueError: the reward of an image depends on other images.
    """
    reward.check_repeatable()
    settings = {
        "base": pipeline.fingerprint(),
        "parts": parts_digest(pipeline.pipeline),
        "kinds": [asdict(kind) for kind in kinds],
        "reward": reward.describe(),
        "networks": networks_digest(reward),
    }
    return Table(folder, settings)


def measure(
    pipeline: FrozenPipeline,
    reward: WeightedReward,
    cases: Sequence[Case],
    actions: Tensor,
    kinds: Sequence[Reuse],
    decision_steps: Sequence[int],
) -> tuple[dict[str, Tensor], Mapping[int, PolicyState]]:
    """Runs schedules on cases in one call of the pipeline, and scores them.

    Args:
        pipeline: the frozen pipeline.
        reward: the quality Q of an image beside its reference, 0 for the reference itself; what is lost is the damage.
        cases: the cases, of the same settings, which are the pipeline's.
        actions: int64 `(schedules, num_steps)`; the first computes every step and is the reference.
        kinds: what they refer to.
        decision_steps: the steps after which a policy looks.

    Returns:
        The `damage`, 0 or more, `QUALITY`, and the reward's parts by name, as they are, `(cases, schedules)` each; and what a policy sees,
        as in `Rollout`.

    Raises:
        RewardError: a damage that is no finite number.
    """
    prompts, count = [case.prompt for case in cases], len(actions)
    expanded = actions.expand(len(cases), -1, -1).contiguous()
    rollout = roll_out(pipeline, prompts, [case.seed for case in cases], expanded, kinds, decision_steps)
    with torch.inference_mode(), fast_linear(pipeline.device):
        scored = reward(
            rollout.images.flatten(0, 1),
            [prompt for prompt in prompts for _ in range(count)],
            rollout.images[:, :1].expand_as(rollout.images).flatten(0, 1),
        )
    parts = {name: part.unflatten(0, (len(cases), count)) for name, part in scored.parts.items()}
    quality = scored.total.unflatten(0, (len(cases), count))
    damage = -quality
    if not damage.isfinite().all():
        raise RewardError(
            f"A damage of the prompts {prompts} is no finite number. Check that the model decodes them to finite images."
        )
    return {**parts, QUALITY: quality, "damage": (damage - damage[:, :1]).clamp(min=0)}, rollout.states


class Collector:
    """Runs a ladder's rungs over a frozen pipeline.

    Args:
        pipeline: the frozen pipeline.
        reward: the quality Q of an image beside its reference, as in `measure`.
        ladder: the rungs; the first is the reference.
        folder: where tables are kept; None for memory alone.
        batch_size: prompts whose rungs run in one call of the pipeline.
        processes: how many run batches at the same time, each with one thread; by default as many as torch has threads on a CPU, and one
            elsewhere (`ada.processes`).

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
        processes: int | None = None,
    ) -> None:
        self.folder, self.processes = folder, processes
        self.pipeline, self.reward, self.ladder, self.batch_size = pipeline, reward, ladder, batch_size
        self.tree = Tree.of(ladder.actions, ladder.decision_steps)
        self.table = open_table(folder, pipeline, reward, ladder.kinds)
        self.identity = digest({"table": self.table.settings, "ladder": ladder.to_dict()})
        """Tells what is collected from everything else."""
        self._names = cache(lambda num_steps: names_of(ladder, num_steps))

    def beside(
        self, pipeline: FrozenPipeline | None = None, reward: WeightedReward | None = None, ladder: Ladder | None = None
    ) -> "Collector":
        """Another one, that runs in the same way and keeps its tables in the same folder, with what is given in place of its own."""
        parts = pipeline or self.pipeline, reward or self.reward, ladder or self.ladder
        return Collector(*parts, self.folder, self.batch_size, self.processes)

    def names(self, case: Case) -> tuple[list[str], list[str]]:
        """A case's rungs, and the beginnings at the nodes of the tree, as the table names them."""
        names: tuple[list[str], list[str]] = self._names(dict(case.settings).get("num_inference_steps"))
        return names

    def values(self, cases: Sequence[Case], name: str) -> Tensor:
        """A value (`damage`, or a part of the reward) of cases that are in the table: `(cases, rungs)`."""
        return torch.stack([self.table.values(case, self.names(case)[0], name) for case in cases])

    def sights(self, cases: Sequence[Case]) -> Tensor:
        """What a policy sees of cases that are in the table, at every node: `(cases, nodes, width)`."""
        return torch.stack([self.table.sights(case, self.names(case)[1]) for case in cases])

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """The cases of which something is not in the table yet."""
        return [case for case in dict.fromkeys(cases) if self.missing_rungs(case)]

    def missing_rungs(self, case: Case) -> tuple[int, ...]:
        """The rungs that must be run for what is not known of a case, the reference with them."""
        rungs, beginnings = self.names(case)
        found = {rung for rung, name in enumerate(rungs) if not self.table.knows(case, name)}
        for (_, rung), beginning in zip(self.tree.nodes.tolist(), beginnings, strict=True):
            if not self.table.has_seen(case, beginning):
                found.add(rung)
        return tuple(sorted({0, *found})) if found else ()

    def fill(self, cases: Sequence[Case], advance: Callable[[int], None] = lambda done: None) -> None:
        """Runs what is missing; a run that is killed loses the batches in flight at most: on a CPU, as many as there are processes.

        Args:
            cases: the cases wanted.
            advance: called with the number of cases done after each batch.
        """

        def alike(case: Case) -> tuple[Any, ...]:
            return case.settings, self.missing_rungs(case)

        batches = []
        for (_, rungs), group in groupby(sorted(self.missing(cases), key=alike), key=alike):
            todo = list(group)
            batches += [[(todo[start : start + self.batch_size], rungs)] for start in range(0, len(todo), self.batch_size)]
        processes = num_processes(self.pipeline.device, self.processes)
        for rows, values, seen, sights in work_off(batches, lambda batch: self.run(*batch), processes):
            self.table.add(rows, values, seen, sights)
            advance(len({case for case, _ in rows}))

    def run(self, cases: Sequence[Case], rungs: Sequence[int]) -> tuple[Rows, dict[str, Tensor], Rows, Tensor]:
        """One batch, of cases with the same settings: what rungs do, and what is seen on their way, as `Table.add` takes it.

        Args:
            cases: the cases.
            rungs: places in the ladder, of which the first is the reference.

        Raises:
            RewardError: a damage, or something that is seen, that is no finite number.
            LadderError: the generation starts after a decision.
        """
        pipeline = self.pipeline.with_settings(**dict(cases[0].settings))
        ladder, names = self.ladder.for_steps(pipeline.num_inference_steps), self.names(cases[0])
        steps = ladder.decision_steps
        values, states = measure(pipeline, self.reward, cases, ladder.actions[list(rungs)], ladder.kinds, steps)
        unseen = sorted(set(steps) - set(states))
        if unseen:
            raise LadderError(
                f"Nothing was seen at the decisions after the steps {unseen}: this generation starts too late for them, as with an "
                "image and little `strength`. Give a ladder whose first decision comes two steps after the start, or later."
            )
        seen, sights = [], []
        for (stage, rung), beginning in zip(self.tree.nodes.tolist(), names[1], strict=True):
            if rung in rungs:
                places = [place * len(rungs) + rungs.index(rung) for place in range(len(cases))]
                sights.append(describe(states[steps[stage]].take(places)))
                seen += [(case, beginning) for case in cases]
        if not all(sight.isfinite().all() for sight in sights):
            raise RewardError(
                f"Something that a policy sees of the prompts {[case.prompt for case in cases]} is no finite number, though their images "
                "are. Check the transformer's features and the prompt embeddings in this precision, such as `dtype`."
            )
        rows = [(case, names[0][rung]) for case in cases for rung in rungs]
        return rows, {name: value.flatten() for name, value in values.items()}, seen, torch.cat(sights)
