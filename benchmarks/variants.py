"""Ways to train a ladder's policy, with parts left out, and what became of each on the test cases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ada.policy import BaseModel
from ada.policy.sight import NUM_SIGNS
from ada.rewards.damage import bounded_damage
from ada.schedules import Ladder, Tree
from ada.training import HeldOut, LadderTraining, Outcome, RolloutDataModule, measure_outcome
from ada.training.ladder import kept_by_folds
from ada.training.outcome import rung_chances, rungs_over_weights

LEVELS = (0.10, 0.15, 0.20, 0.30, 0.40, 0.50)
NUM_STEPS = 300
ONE_SIGN, GATE = "x̂₀ change alone", "gate of six scalars"
IMITATION = "gate after BAG: six scalars imitate the oracle"
X0_CHANGE = 0
"""Place among the signs of the root mean square of the newest change of the predicted clean latents."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: for the table.
        options: of `LadderTraining`.
        cases: how many training cases; None for all.
        inputs: which part of what is seen is kept: all, signs, features, prompt, x0, six.
        shuffled: whether each test image is decided by another's state.
        looks: the steps after which it decides; None for all of the ladder's.
        draw: which draw of training cases, with replacement; None for all of them once.
        training: how it is fitted.
    """

    name: str
    options: Mapping[str, Any]
    cases: int | None = None
    inputs: str = "all"
    shuffled: bool = False
    looks: tuple[int, ...] | None = None
    draw: int | None = None
    training: type[LadderTraining] = LadderTraining


class Imitation(LadderTraining):
    """Imitates the searched schedules, as BAG's gate does (2608.09231): the cross-entropy to the rung that an oracle takes, at every λ.

    What is imitated spends as many steps on an image as hindsight would; BAG's own gives every image the same budget. The penalty on its
    coefficients is a tenth of the critic's: with that it does best by cross-fitting on the training captions.
    """

    def __init__(self, prior_cases: float = 2.4, **options: Any) -> None:
        super().__init__(prior_cases=prior_cases, **options)

    def _loss(self, number: int, places: Tensor, place_of_weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        policy, kept = self.policies[number], self.kept[number].float()
        low, high = (math.log(bound) for bound in policy.quality_weight_range)
        weight = (low + (high - low) * place_of_weight).exp()[:, None]
        oracle = (self._saved - weight * self.cost[places]).argmax(1)
        stages = self.tree.nodes[:, 0]
        damage = policy.expected_damage(policy.log_odds(self._inputs[number][places], stages), stages)
        chosen = self.tree.log_probs(policy.logits(damage, weight)).sum(1)
        cross_entropy = -chosen.gather(1, oracle[:, None])[:, 0]
        prior = self.prior_cases / kept.sum() * policy.coefficients.square().sum(1).mean()
        loss = (cross_entropy * kept[places] / kept.mean()).mean() + prior
        return loss, {"cross_entropy": loss}

    def measure_errors(self) -> None:
        """Nothing is predicted whose error could be measured."""


def variants(options: Mapping[str, Any], ladder: Ladder, num_cases: int, draws: int, more: Sequence[int] = ()) -> list[Variant]:
    """All that is compared; the first is trained as the policy is, but in whole batches, as the others are. Training holds no chance of
    its own, so it is drawn what it learns from.

    Args:
        options: of the policy's training.
        ladder: what it chooses from.
        num_cases: how many cases it learns from.
        draws: how often they are drawn.
        more: larger numbers of cases to learn from.
    """
    sizes = [*(size for size in (60, 120, 240, 480, 960) if size < num_cases), *more]
    first, middle = ladder.decision_steps[0], ladder.decision_steps[len(ladder.decision_steps) // 2]
    return [
        Variant("policy trained here", options),
        *(Variant(f"training images drawn anew, {draw}", options, draw=draw) for draw in range(1, draws)),
        Variant("shuffled states", options, shuffled=True),
        *(Variant(f"{size} training images", options, cases=size) for size in sizes),
        Variant(f"one look, after step {first}", options, looks=(first,)),
        Variant(f"two looks, after steps {first} and {middle}", options, looks=(first, middle)),
        Variant(ONE_SIGN, options, inputs="x0"),
        Variant(GATE, options, inputs="six"),
        Variant(IMITATION, options, inputs="six", training=Imitation),
        Variant("imitation of the oracle", options, training=Imitation),
        Variant("signs alone", options, inputs="signs"),
        Variant("features alone", options, inputs="features"),
        Variant("prompt alone", options, inputs="prompt"),
        Variant("all directions of damage", {**options, "num_directions": None}),
        Variant("exact policy gradient alone", {**options, "critic_weight": 0.0, "policy_gradient_weight": 1.0}),
        Variant("critic and policy gradient", {**options, "policy_gradient_weight": 1.0}),
    ]


def keep_inputs(sights: Tensor, inputs: str, prompt_width: int) -> Tensor:
    """What is seen, with the rest at its mean (0 after standardising: constant). The prompt is the last part of it."""
    start_of_prompt = sights.shape[-1] - prompt_width
    kept = torch.zeros(sights.shape[-1], dtype=torch.bool)
    if inputs == "all":
        kept[:] = True
    elif inputs == "signs":
        kept[:NUM_SIGNS] = True
    elif inputs == "features":
        kept[NUM_SIGNS:start_of_prompt] = True
    elif inputs == "prompt":
        kept[start_of_prompt:] = True
    elif inputs == "x0":
        kept[X0_CHANGE] = True
    else:
        kept[[0, 5, 10, NUM_SIGNS - 5, NUM_SIGNS - 3, NUM_SIGNS - 2]] = True
    return sights * kept


def at_looks(ladder: Ladder, looks: Sequence[int]) -> tuple[Ladder, list[int]]:
    """The ladder that is decided at some of its decision steps only, and the places of its nodes among all."""
    tree = Tree.of(ladder.actions, ladder.decision_steps)
    fewer = replace(ladder, decision_steps=tuple(looks))
    nodes = Tree.of(fewer.actions, fewer.decision_steps).nodes.tolist()
    return fewer, [int(tree.node_of[ladder.decision_steps.index(looks[stage]), rung]) for stage, rung in nodes]


def fit(
    variant: Variant,
    ladder: Ladder,
    reuse_costs: Sequence[float],
    base: BaseModel,
    sights: Tensor,
    cost: Tensor,
    kept: Sequence[Tensor] = (),
) -> LadderTraining:
    """Trains one variant, whole batches at a time."""
    training = variant.training(**variant.options)
    training.prepare(base, ladder, reuse_costs, sights, cost, kept)
    optimizer = torch.optim.Adam(training.trained.parameters(), training.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    generator, places = torch.Generator().manual_seed(0), torch.arange(len(sights))
    for _ in range(NUM_STEPS):
        loss, _ = training.loss(places, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        training.measure_errors()
    training.policy.eval()
    return training


@dataclass(frozen=True)
class Judged:
    """A variant that was trained, once or for every fold, and the cases that it is judged on, as it sees them."""

    parts: Sequence[HeldOut]
    tree: Tree

    def outcome(self, visible: float, levels: Sequence[float] = LEVELS) -> Outcome:
        """Beside the mixture and the oracle."""
        return measure_outcome(self.parts, self.tree, visible, levels)

    def chances(self, level: float) -> Tensor | None:
        """How often each case takes each rung when `level` is saved on average, `(cases, rungs)`; None where it cannot be."""
        policy = self.parts[0].policy
        saved = policy.ladder.saved(policy.reuse_costs)
        _, rungs = rungs_over_weights(self.parts, self.tree)
        spent = saved[rungs]
        means = spent.mean(1)
        return rung_chances(rungs, spent, level, len(saved)) if float(means.min()) <= level <= float(means.max()) else None


def judge(variant: Variant, data: RolloutDataModule, base: BaseModel, test: Sequence[Tensor], pool: Sequence[Tensor]) -> Judged:
    """Trains a variant; it is judged on the test cases, beside the mixture that is best on the policy's own training cases.

    Args:
        variant: what is trained.
        data: the policy's.
        base: fingerprint of the model.
        test: sights, damage and captions of the test cases.
        pool: those that the variant learns from.
    """
    sights, damage, _ = pool
    ladder, nodes = at_looks(data.ladder, variant.looks or data.ladder.decision_steps)
    generator = torch.Generator().manual_seed(variant.draw or 0)
    chosen = torch.randperm(len(sights), generator=generator)[: variant.cases]
    if variant.draw is not None:
        chosen = torch.randint(len(sights), (len(sights),), generator=generator)
    seen = keep_inputs(sights[chosen][:, nodes], variant.inputs, base.prompt_width)
    cost = bounded_damage(damage[chosen], data.visible_damage)
    training = fit(variant, ladder, data.reuse_costs, base, seen, cost)
    seen = keep_inputs(test[0][:, nodes], variant.inputs, base.prompt_width)
    if variant.shuffled:
        seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(1))]
    return Judged([HeldOut(training.policy, seen, test[1], data.train_data.tensors[1], test[2])], training.tree)


def cross_fit(variant: Variant, data: RolloutDataModule, base: BaseModel) -> tuple[LadderTraining, Judged]:
    """Trains a variant on all training cases, and for every fold on the others, whose policies decide about the cases that they did not
    see: fold after fold, the same for all variants.

    Args:
        variant: what is trained.
        data: the policy's.
        base: fingerprint of the model.
    """
    sights, damage, captions = data.train_data.tensors
    seen = keep_inputs(sights, variant.inputs, base.prompt_width)
    kept = kept_by_folds(captions, LadderTraining(**variant.options).folds)
    training = fit(variant, data.ladder, data.reuse_costs, base, seen, bounded_damage(damage, data.visible_damage), kept)
    return training, Judged(training.held_out(seen, damage, captions), training.tree)
