"""What a policy is worth: beside the mixture of static schedules and the oracle, at equal mean compute, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ada.policy import LadderPolicy
from ada.policy.curve import Curve
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.schedules import Mixture, Tree, gap_closed, oracle_errors
from ada.schedules.frontier import ROUNDING
from ada.statistics import rank_correlation, studentised_interval

LEVELS = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50)
NUM_WEIGHTS = 121


@dataclass(frozen=True)
class LevelOutcome:
    """At one share of the compute saved, means over held-out cases; damage is bounded, in [0, 1].

    Args:
        saved: the share.
        policy, mixture, oracle: mean damage of the policy, of the best mixture of static schedules (chosen on the training cases), and
            of the best choice that hindsight could make.
        advantage: mean of mixture − policy, paired; with the ends of its 95 % interval.
        changed_policy, changed_mixture: share of the images visibly changed.
        gap_closed: share of the gap between mixture and oracle that the policy closes.
        distinct: how many different schedules the policy gives.
        agreement: Spearman's correlation, over cases, between what the policy saves and how little the rungs damage the image; None
            where it gives all cases the same.
    """

    saved: float
    policy: float
    mixture: float
    oracle: float
    advantage: tuple[float, float, float]
    changed_policy: float
    changed_mixture: float
    gap_closed: float
    distinct: int
    agreement: float | None

    @property
    def verdict(self) -> str:
        """Whether the interval of the advantage is clear of zero."""
        _, low, high = self.advantage
        return "better" if low > 0 else "worse" if high < 0 else "level"


@dataclass(frozen=True)
class Outcome:
    """All levels, and the policy's curve over λ.

    Args:
        levels: what was reached.
        curve: over λ.
        num_cases: how many cases were judged.
        num_captions: how many captions they are of.
        num_policies: by how many policies, each on cases that it was not trained on (cross-fitting).
    """

    levels: tuple[LevelOutcome, ...]
    curve: Curve
    num_cases: int
    num_captions: int
    num_policies: int = 1

    def at(self, saved: float) -> LevelOutcome:
        """The outcome at a level.

        Raises:
            KeyError: it was not measured: the policy does not save that much.
        """
        return {round(level.saved, 6): level for level in self.levels}[round(saved, 6)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        sizes = {"num_cases": self.num_cases, "num_captions": self.num_captions, "num_policies": self.num_policies}
        return sizes | {"levels": [asdict(level) for level in self.levels], "curve": self.curve.to_dict()}

    def summary(self) -> dict[str, float]:
        """What is logged."""
        closed = {f"validation/gap_closed_{level.saved:.0%}".replace("%", ""): level.gap_closed for level in self.levels}
        return closed | {"validation/advantage": sum(level.advantage[0] for level in self.levels) / max(1, len(self.levels))}


@dataclass(frozen=True)
class HeldOut:
    """A policy and cases that it was not trained on.

    Args:
        policy: in evaluation mode.
        sights: `(cases, nodes, width)`.
        damage: `(cases, rungs)`.
        static_damage: `(others, rungs)`, of the cases that static schedules are chosen on.
        captions: int64 `(cases,)`, a number for every caption: its cases are resampled together.
    """

    policy: LadderPolicy
    sights: Tensor
    damage: Tensor
    static_damage: Tensor
    captions: Tensor


@torch.no_grad()
def choose_rungs(policy: LadderPolicy, tree: Tree, sights: Tensor, quality_weights: Sequence[float]) -> Tensor:
    """Greedy rungs of every case at every λ: int64 `(weights, cases)`; `sights` are `(cases, nodes, width)`."""
    tree = tree.to(sights.device)
    predicted = policy.predict(sights, tree.nodes[:, 0])
    return torch.stack(
        [
            tree.walk(policy.logits(predicted, torch.full(predicted.shape[:2], weight, device=sights.device)))
            for weight in quality_weights
        ]
    )


@torch.no_grad()
def rungs_over_weights(parts: Sequence[HeldOut], tree: Tree) -> tuple[list[float], Tensor]:
    """λ from well below the trained range to well above it, and the rungs that each part's policy takes: int64 `(weights, cases)`."""
    low, high = parts[0].policy.quality_weight_range
    weights = torch.logspace(math.log10(low / 4), math.log10(high * 8), NUM_WEIGHTS, dtype=torch.float64).tolist()
    return weights, torch.cat([choose_rungs(part.policy, tree, part.sights, weights) for part in parts], 1)


def measure_outcome(parts: Sequence[HeldOut], tree: Tree, visible: float, levels: Sequence[float] = LEVELS) -> Outcome:
    """Measures a policy on held-out cases, or several that differ in the cases they were trained on (cross-fitting), each on its own.

    Args:
        parts: the policies' ladder, costs and range of λ are the same.
        tree: of the ladder.
        visible: τ.
        levels: shares of the compute to judge at; those that the policy does not reach are left out.
    """
    damage = torch.cat([part.damage for part in parts])
    cost, changed = bounded_damage(damage, visible).double(), visibly_changed(damage, visible).double()
    policy = parts[0].policy
    saved = policy.ladder.saved(policy.reuse_costs).to(damage.device)
    weights, rungs = rungs_over_weights(parts, tree)
    spent = saved[rungs]
    mixtures = [Mixture.of(bounded_damage(part.static_damage, visible).double(), saved) for part in parts]
    curve = Curve(
        weights,
        spent.mean(1).tolist(),
        cost.gather(1, rungs.T).mean(0).tolist(),
        changed.gather(1, rungs.T).mean(0).tolist(),
    )
    captions = torch.cat([part.captions for part in parts])
    reach = min(float(spent.mean(1).max()), *(mixture.saved[-1] for mixture in mixtures))
    found = []
    for level in levels:
        if float(spent.mean(1).min()) <= level <= reach:
            chances = rung_chances(rungs, spent, level, len(saved))
            shares = torch.stack([mixture.shares(level, len(saved)) for mixture in mixtures])
            shares = shares.repeat_interleave(torch.tensor([len(part.damage) for part in parts]), 0).to(cost)
            found.append(_judge(chances, shares, cost, changed, saved, level, captions))
    return Outcome(tuple(found), curve, len(damage), len(captions.unique()), len(parts))


def rung_chances(rungs: Tensor, spent: Tensor, level: float, num_rungs: int) -> Tensor:
    """How a policy meets a mean saving exactly: the two neighbouring λ, mixed. float64 `(cases, rungs)`, rows of sum 1."""
    means = spent.mean(1)
    above = int(torch.where(means >= level - 1e-12, means, torch.inf).argmin())
    below = int(torch.where(means <= level + 1e-12, means, -torch.inf).argmax())
    gap = float(means[above] - means[below])
    part = (level - float(means[below])) / gap if gap > 1e-12 else 0.0
    hot = torch.nn.functional.one_hot
    return (1 - part) * hot(rungs[below], num_rungs).double() + part * hot(rungs[above], num_rungs).double()


def _judge(
    chances: Tensor, shares: Tensor, cost: Tensor, changed: Tensor, saved: Tensor, level: float, captions: Tensor
) -> LevelOutcome:
    """`chances` and `shares` are how often each case takes each rung, by the policy and by the mixture: `(cases, rungs)`."""
    ours, theirs = (chances * cost).sum(1), (shares * cost).sum(1)
    best = oracle_errors(cost, saved, level)
    differences = theirs - ours
    # a policy that does what the mixture does differs from it by rounding alone, which must not count as a gain
    differences = torch.where(differences.abs() < ROUNDING, 0.0, differences)
    agreement = rank_correlation((chances @ saved).cpu().numpy(), -cost.sum(1).cpu().numpy(), num_resamples=0)
    closed = gap_closed(float(ours.mean()), float(theirs.mean()), float(best.mean()))
    return LevelOutcome(
        saved=level,
        policy=float(ours.mean()),
        mixture=float(theirs.mean()),
        oracle=float(best.mean()),
        advantage=paired_interval(differences, captions),
        changed_policy=float((chances * changed).sum(1).mean()),
        changed_mixture=float((shares * changed).sum(1).mean()),
        gap_closed=closed,
        distinct=int((chances > 0).any(0).sum()),
        agreement=None if agreement is None else agreement.value,
    )


def paired_interval(differences: Tensor, clusters: Tensor) -> tuple[float, float, float]:
    """Mean of differences of bounded damage, in [−1, 1], with its 95 % interval, whole clusters resampled together.

    Args:
        differences: `(cases,)`.
        clusters: int64 `(cases,)`; of a single one nothing is known but the bounds.
    """
    values = differences.double().cpu()
    groups = torch.unique(clusters.cpu(), return_inverse=True)[1]
    count = int(groups.max()) + 1
    means = torch.zeros(count, dtype=torch.float64).index_add(0, groups, values) / groups.bincount(minlength=count)
    if count == 1:
        return float(means), -1.0, 1.0
    centre, low, high = studentised_interval(means)
    return centre, max(low, -1.0), min(high, 1.0)
