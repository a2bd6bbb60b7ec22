"""Which reward: the distance to the reference, a scorer's quality, or both? `python benchmarks/reward_ablation.py`

Rolls the ladder out on captions that are none of the training's (kept in a table: a run that was killed goes on), trains a policy for each
reward, and judges each by cross-fitting on the distance and on the scorer's loss, against the mixture of static schedules that is best for
what is judged.
"""

from pathlib import Path

import torch
from evidence import load_data, roll_out
from jsonargparse import auto_cli
from torch import Tensor
from variants import LEVELS, Variant, fit
from written_tables import cell, write_table

from ada.policy import BaseModel
from ada.rewards import ClipScore, PerceptualDistance, WeightedReward
from ada.rewards.damage import bounded_damage
from ada.training import LadderTraining, measure_outcome
from ada.training.ladder import kept_by_folds

SCORER = "checkpoints/emoji-scorer"
DISTANCE, QUALITY = "distance", "quality"


def scale_for(losses: Tensor, mean: float) -> float:
    """The τ at which the mean of the bounded losses is `mean`, by bisection in the logarithm."""
    low, high = -20.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(bounded_damage(losses, 10**middle).mean()) > mean else (low, middle)
    return 10**low


def main(training: str = "configs/default.yaml", count: int = 120, output: Path = Path("docs/evidence")) -> None:
    """Prints a table and writes rewards.md.

    Args:
        training: file of a configuration of ladder training.
        count: captions, no more than the training's.
        output: folder to write to.
    """
    data, options = load_data(training, None)
    own = data.cases("train")
    cases = [case for case in load_data(training, 2 * len(own))[0].cases("train") if case not in own][:count]
    data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, cases[0].prompt)
    reward = WeightedReward({DISTANCE: PerceptualDistance(SCORER), QUALITY: ClipScore(SCORER)}, {DISTANCE: 1.0, QUALITY: 0.0})
    collector = data.collector.beside(reward=reward)
    roll_out(collector, cases, "")
    sights = collector.sights(cases)
    losses = {
        DISTANCE: collector.values(cases, "damage"),
        QUALITY: (-collector.values(cases, QUALITY)).clamp(min=0),
    }
    visible = {DISTANCE: data.visible_damage}
    visible[QUALITY] = scale_for(losses[QUALITY], float(bounded_damage(losses[DISTANCE], visible[DISTANCE]).mean()))
    costs = {name: bounded_damage(loss, visible[name]) for name, loss in losses.items()}
    costs["both"] = (costs[DISTANCE] + costs[QUALITY]) / 2

    captions, base = torch.arange(len(cases)), BaseModel.of(data.pipeline.transformer)
    kept = kept_by_folds(captions, LadderTraining(**options).folds)
    rows = []
    for name, cost in costs.items():
        trained = fit(Variant(name, options), data.ladder, data.reuse_costs, base, sights, cost, kept)
        for judged, loss in losses.items():
            outcome = measure_outcome(trained.held_out(sights, loss, captions), trained.tree, visible[judged], LEVELS)
            rows.append([name, judged, *(cell(outcome, level) for level in LEVELS)])
    title = (
        f"Rewards compared on {len(cases)} composed captions, each judged by policies that were not trained on it: bounded loss; advantage "
        "over the mixture of static schedules that is best for it, 95 %; share of the gap to the oracle that is closed"
    )
    words = [
        f"The scorer's loss is what the score of image and prompt falls below the reference's, bounded at {visible[QUALITY]:.2g} "
        f"(the distance at {visible[DISTANCE]:g}), so that both have the same mean over images and rungs."
    ]
    heads = ["rewarded", "judged on", *(f"{level:.0%} saved" for level in LEVELS)]
    write_table(title, heads, rows, words, output / "rewards.md")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
