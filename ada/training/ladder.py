"""Training of a `LadderPolicy` on a table of rollouts: critic and exact policy gradient, wired for Lightning."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ada.policy import BaseModel, LadderPolicy
from ada.reinforce import check_quality_weights
from ada.rewards.damage import bounded_damage
from ada.schedules import Ladder, Tree, entropy, expected
from ada.training.outcome import Outcome, measure_outcome
from ada.training.rollout_data import RolloutDataModule

GRID = 64
"""Points of λ at which what there is to gain is looked up."""


class LadderTraining(LightningModule):
    """Learns which rung each image takes, in stages (BlockDance-Ada: R = C + λ·Q, with Q = −bounded damage).

    All rungs of a training case are known, so nothing is sampled but λ. Two terms are mixed: the critic's cross-entropy (the predicted
    damage q̂ of every rung that is open at a node), and the policy gradient of E[R] = Σ π(rung)·R(rung), exact, divided at each λ by
    what choosing per image could gain there, so that no λ owns it. With hundreds of cases the critic generalises best; with
    thousands, the policy gradient refines it.

    Args:
        rank: sensitivities of the policy.
        num_components: main components that it keeps of what it sees beside the signs.
        critic_weight: weight of the critic's cross-entropy.
        policy_gradient_weight: weight of the policy gradient.
        quality_weight_range: λ is drawn log-uniformly from here.
        learning_rate: of AdamW; falls to zero along a cosine.
        weight_decay: of AdamW, on the direction alone.
        entropy_weight: weight of the entropy bonus, beside the policy gradient.
        seed: of the weights and of λ.
    """

    def __init__(
        self,
        rank: int = 1,
        num_components: int = 24,
        critic_weight: float = 1.0,
        policy_gradient_weight: float = 0.0,
        quality_weight_range: tuple[float, float] = (0.2, 30.0),
        learning_rate: float = 0.02,
        weight_decay: float = 0.5,
        entropy_weight: float = 0.003,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if critic_weight < 0 or policy_gradient_weight < 0 or critic_weight + policy_gradient_weight == 0:
            raise ValueError(
                "`critic_weight` and `policy_gradient_weight` must be 0 or more, and not both 0; got "
                f"{critic_weight} and {policy_gradient_weight}."
            )
        self.options: dict[str, Any] = {"rank": rank, "num_components": num_components}
        self.quality_weight_range = check_quality_weights(quality_weight_range)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.critic_weight, self.policy_gradient_weight = critic_weight, policy_gradient_weight
        self.entropy_weight, self.seed = entropy_weight, seed

    @property
    def data(self) -> RolloutDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RolloutDataModule)
        return data

    def setup(self, stage: str) -> None:
        """Makes the policy for what the data module has rolled out."""
        data = self.data
        sights, damage = (tensor.to(self.device) for tensor in data.train_data.tensors)
        base_model = BaseModel.of(data.pipeline.transformer)
        self.prepare(base_model, data.ladder, data.reuse_costs, sights, bounded_damage(damage, data.visible_damage))

    def prepare(
        self, base_model: BaseModel, ladder: Ladder, reuse_costs: Sequence[float], sights: Tensor, cost: Tensor
    ) -> LadderPolicy:
        """Makes a fresh policy, calibrated on the training cases.

        Args:
            base_model: fingerprint of the model.
            ladder: the rungs.
            reuse_costs: of each kind of reuse.
            sights: `(cases, nodes, width)`.
            cost: bounded damage `(cases, rungs)`.
        """
        low, high = self.quality_weight_range
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.policy = LadderPolicy(
                base_model=asdict(base_model),
                ladder=ladder.to_dict(),
                reuse_costs=reuse_costs,
                sight_width=sights.shape[-1],
                quality_weight=math.sqrt(low * high),
                quality_weight_range=[low, high],
                **self.options,
            ).to(sights.device)
        self.tree = Tree.of(ladder.actions, ladder.decision_steps).to(sights.device)
        self.policy.calibrate(sights, self.tree.nodes[:, 0], cost)
        self._saved = ladder.saved(reuse_costs).float().to(sights.device)
        grid = torch.linspace(math.log(low), math.log(high), GRID).exp().to(sights.device)
        self._gain = gain_of_choosing(cost, self._saved, grid)
        return self.policy

    # --- learning ---

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        sights, damage = batch
        loss, parts = self.loss(sights, bounded_damage(damage, self.data.visible_damage), self._generator())
        self.log_dict({f"train/{name}": value for name, value in parts.items()} | {"train/loss": loss})
        return loss

    def loss(self, sights: Tensor, cost: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and its parts.

        Args:
            sights: `(cases, nodes, width)`.
            cost: bounded damage `(cases, rungs)`.
            generator: of λ, on the CPU.
        """
        predicted = self.policy.predict(sights, self.tree.nodes[:, 0].expand(len(cost), -1))
        parts = {"critic_loss": critic_loss(predicted, cost, self.tree)}
        loss = self.critic_weight * parts["critic_loss"]
        if self.policy_gradient_weight:
            place = torch.rand(len(cost), generator=generator).to(cost.device)
            value, spread = balanced_reward(self.policy, predicted, cost, self.tree, place, self._gain)
            loss = loss - self.policy_gradient_weight * value - self.entropy_weight * spread
            parts |= {"expected_reward": value, "entropy": spread}
        return loss, parts

    def _generator(self) -> torch.Generator:
        """Randomness of one step of one process, whatever came before."""
        return torch.Generator().manual_seed((self.seed * 7919 + self.global_step * 104_729 + self.global_rank) % 2**63)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.policy, self.learning_rate, self.weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    # --- validation: greedy decisions on held-out captions, against what needs no policy ---

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        sights, damage = batch
        outcome = measure_outcome(
            self.policy, self.tree, sights, damage, self.data.train_data.tensors[1].to(damage.device), self.data.visible_damage
        )
        self.log_dict(outcome.summary(), batch_size=len(sights))

    def outcome(self) -> Outcome:
        """What the policy is worth on the held-out captions."""
        sights, damage = self.data.validation_data.tensors
        policy, tree = self.policy.eval().cpu(), self.tree.to("cpu")
        return measure_outcome(policy, tree, sights, damage, self.data.train_data.tensors[1], self.data.visible_damage)

    def finished_policy(self, outcome: Outcome) -> LadderPolicy:
        """The policy with its measured curve."""
        policy = LadderPolicy(**self.policy.config | {"curve": outcome.curve.to_dict()})
        policy.load_state_dict(self.policy.state_dict())
        return policy.eval()

    def static_points(self) -> tuple[Tensor, Tensor]:
        """What each rung saves, and its mean bounded damage on the held-out captions."""
        return self._saved.cpu(), bounded_damage(self.data.validation_data.tensors[1], self.data.visible_damage).mean(0)


def critic_loss(predicted: Tensor, cost: Tensor, tree: Tree) -> Tensor:
    """Cross-entropy of the predicted damage of the rungs that are open at each node; its minimum is the mean damage.

    Args:
        predicted: `(cases, nodes, rungs)` in (0, 1).
        cost: bounded damage `(cases, rungs)`.
        tree: which rungs are open where.
    """
    target = cost[:, None].expand_as(predicted)
    loss = torch.nn.functional.binary_cross_entropy(predicted.clamp(1e-6, 1 - 1e-6), target, reduction="none")
    is_open = tree.open_at_nodes
    return ((loss * is_open).sum(-1) / is_open.sum(-1)).mean()


def balanced_reward(
    policy: LadderPolicy, predicted: Tensor, cost: Tensor, tree: Tree, place: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over cases of E[R], each at its own λ, divided by what choosing gains there; and the mean entropy.

    Args:
        policy: turns predictions into logits.
        predicted: `(cases, nodes, rungs)`.
        cost: bounded damage `(cases, rungs)`.
        tree: of the policy's ladder.
        place: `(cases,)` in [0, 1]: where each case's λ lies in the logarithm of the policy's range.
        gain: what choosing gains at `GRID` points of that range, as `gain_of_choosing` gives it.
    """
    low, high = (math.log(bound) for bound in policy.quality_weight_range)
    weight = (low + (high - low) * place).exp()
    balance = 1 / gain.to(cost.device)[(place * (len(gain) - 1)).round().long()]
    log_probs = tree.log_probs(policy.logits(predicted, weight[:, None]))
    rewards = policy.ladder.saved(policy.reuse_costs).to(cost) - weight[:, None] * cost
    return (expected(log_probs, rewards) * balance).mean(), entropy(log_probs).mean()


def make_optimizer(policy: LadderPolicy, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays the direction alone."""
    others = [parameter for name, parameter in policy.named_parameters() if name != "direction"]
    groups: list[dict[str, Any]] = [{"params": [policy.direction]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)


def gain_of_choosing(cost: Tensor, saved: Tensor, quality_weights: Tensor) -> Tensor:
    """What an oracle gains over the best single rung at every λ: `(weights,)`, at least a hundredth of the largest.

    Args:
        cost: bounded damage `(cases, rungs)`.
        saved: `(rungs,)`.
        quality_weights: λ, `(weights,)`.
    """
    rewards = saved - quality_weights[:, None, None] * cost
    gain = rewards.max(-1).values.mean(-1) - rewards.mean(1).max(-1).values
    return gain.clamp(min=0.01 * float(gain.max()))
