"""Does it pay to leave the ladder? `python benchmarks/off_ladder.py`

A rung is one schedule for all images that take it. Here every reuse of a rung may move to the step before or behind it, which costs
nothing, and each image takes the move that suits it: by hindsight, which bounds what any policy off the ladder could gain by a single
move; the move that is best on other captions, which tells whether the rung itself was badly chosen; and the one that a critic of the
ladder policy's kind, trained on other captions, expects to do least damage, which is what learning off the ladder could hope for.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence import load_data, roll_out
from jsonargparse import auto_cli
from rivals import advantage
from torch import Tensor
from variants import Variant, fit
from written_tables import write_table

from ada.data import load_prompts
from ada.policy import BaseModel
from ada.rewards.damage import bounded_damage
from ada.rollouts import Case
from ada.schedules import Ladder
from ada.training import RolloutDataModule
from ada.training.ladder import kept_by_folds

CAPTIONS = "checkpoints/emoji-prompts"
FOLDS = 8
SURE = 1000.0
"""λ at which damage alone decides."""


def moves_of(rung: Tensor, first: int) -> list[list[int]]:
    """The schedules that differ from one, int64 `(num_steps,)`, by one reuse that comes a step earlier or later.

    Args:
        rung: the schedule.
        first: the first step that may reuse; the last step of all computes, as it did.
    """
    found = []
    for step in rung.nonzero().flatten().tolist():
        for other in (step - 1, step + 1):
            if first <= other < len(rung) - 1 and not rung[other]:
                moved = rung.clone()
                moved[other], moved[step] = rung[step], 0
                found.append(moved.tolist())
    return found


def around(ladder: Ladder, rung: int) -> Ladder:
    """A rung and its moves, behind full compute."""
    own = ladder.actions[rung]
    rows = [ladder.actions[0].tolist(), own.tolist(), *moves_of(own, ladder.decision_steps[0] + 1)]
    return replace(ladder, actions=torch.tensor(rows))


def chosen_by_critic(
    ladder: Ladder, data: RolloutDataModule, options: dict[str, Any], sights: Tensor, cost: Tensor, places: Tensor
) -> Tensor:
    """For every case the schedule that a policy trained on other captions takes, full compute not among them: int64 `(cases,)`."""
    base = BaseModel.of(data.pipeline.transformer)
    training = fit(Variant("critic", options), ladder, data.reuse_costs, base, sights, cost, kept_by_folds(places, FOLDS))
    chosen = torch.zeros(len(sights), dtype=torch.int64)
    for policy, kept in zip(training.policies[1:], training.kept[1:], strict=True):
        others = sights[~kept]
        with torch.no_grad():
            damage = policy.predict(others, training.tree.nodes[:, 0])
            logits = policy.logits(damage, torch.tensor(SURE))
        logits[..., 0] = -torch.inf
        chosen[~kept] = training.tree.walk(logits)
    return chosen


def best_of_others(cost: Tensor, places: Tensor) -> Tensor:
    """For every case the schedule of least mean damage on the other folds' captions, full compute not among them: int64 `(cases,)`."""
    chosen = torch.zeros(len(cost), dtype=torch.int64)
    for kept in kept_by_folds(places, FOLDS):
        chosen[~kept] = 1 + cost[kept, 1:].mean(0).argmin()
    return chosen


def main(
    training: str = "configs/default.yaml",
    rungs: Sequence[int] = (5, 8, 12),
    limit: int = 96,
    output: Path = Path("docs/evidence/off_ladder.md"),
) -> None:
    """Prints a table and writes it.

    Args:
        training: file of a configuration of ladder training.
        rungs: of its ladder.
        limit: composed captions of the training split, one noise each.
        output: file to write.
    """
    data, options = load_data(training, None)
    prompts = load_prompts(CAPTIONS, "composed_train", limit=limit)["prompt"]
    cases, places = [Case(prompt, place) for place, prompt in enumerate(prompts)], torch.arange(len(prompts))
    data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, cases[0].prompt)
    rows = []
    for rung in rungs:
        ladder = around(data.ladder, rung)
        collector = data.collector.beside(ladder=ladder)
        roll_out(collector, cases, f": rung {rung} and its moves")
        cost = bounded_damage(collector.values(cases, "damage"), data.visible_damage).double()
        ways = {
            "hindsight": 1 + cost[:, 1:].argmin(1),
            "best on other captions": best_of_others(cost, places),
            "critic": chosen_by_critic(ladder, data, options, collector.sights(cases), cost.float(), places),
        }
        saved = f"{ladder.saved(data.reuse_costs)[1]:.0%}"
        rows.append([f"{rung}, {saved}", str(len(ladder) - 2), f"{cost[:, 1].mean():.4f}"])
        for chosen in ways.values():
            taken = cost.gather(1, chosen[:, None])[:, 0]
            moved = (chosen != 1).double().mean()
            rows[-1].append(f"{taken.mean():.4f}: {advantage(cost[:, 1] - taken, places)}, {moved:.0%} moved")
    heads = ["rung", "moves", "as it is", "best move by hindsight", "best on other captions", "chosen by a critic"]
    title = (
        f"{len(cases)} composed captions of the training split, one noise each: bounded damage of a rung "
        "whose reuses may move by a step; how much less than without, 95 %; share of the images that move"
    )
    write_table(title, heads, rows, [], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
