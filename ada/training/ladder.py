"""Training of a `LadderPolicy` on a table of rollouts: critic and exact policy gradient, wired for Lightning."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ada.policy import BaseModel, LadderPolicy
from ada.policy.ladder import DAMAGE_FLOOR
from ada.reinforce import check_quality_weights
from ada.rewards.damage import bounded_damage
from ada.schedules import Ladder, Tree, entropy, expected
from ada.training.errors import RunError
from ada.training.outcome import HeldOut, Outcome, measure_outcome
from ada.training.rollout_data import RolloutDataModule

GRID = 64
"""Points of λ at which what there is to gain is looked up."""


class LadderTraining(LightningModule):
    """Learns which rung each image takes, in stages (BlockDance-Ada: R = C + λ·Q, with Q = −bounded damage).

    All rungs of a training case are known, so nothing is sampled but λ. Two terms are mixed: the critic's squared error (of the
    log-odds of the damage of every rung, at every node), with a penalty on its coefficients, and the policy gradient of
    E[R] = Σ π(rung)·R(rung), exact, divided at each λ by what choosing per image could gain there, so that no λ owns it. By itself the
    critic chooses best: from hundreds of cases the policy gradient learns what does not hold for others (docs/evidence).

    Args:
        num_components: main components that it keeps of what it sees beside the signs.
        num_directions: main directions of the damages of all rungs that the critic learns; what else differs from image to image is left
            out (reduced-rank regression). None for all.
        prior_cases: how strongly the critic's coefficients are held at zero: as if so many more cases had said so of every input.
        critic_weight: weight of the critic's loss.
        policy_gradient_weight: weight of the policy gradient.
        quality_weight_range: λ is drawn log-uniformly from here.
        learning_rate: of Adam; falls to zero along a cosine.
        entropy_weight: weight of the entropy bonus, beside the policy gradient.
        folds: where no captions are held out, the policy is judged by cross-fitting: beside it as many others are trained, each without
            its share of the captions, and decide about those.
        seed: of λ; None for that of the command line (`seed_everything`), or 0.
    """

    def __init__(
        self,
        num_components: int = 24,
        num_directions: int | None = 4,
        prior_cases: float = 24.0,
        critic_weight: float = 1.0,
        policy_gradient_weight: float = 0.0,
        quality_weight_range: tuple[float, float] = (0.2, 30.0),
        learning_rate: float = 0.02,
        entropy_weight: float = 0.003,
        folds: int = 8,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if critic_weight < 0 or policy_gradient_weight < 0 or critic_weight + policy_gradient_weight == 0:
            raise ValueError(
                "`critic_weight` and `policy_gradient_weight` must be 0 or more, and not both 0; got "
                f"{critic_weight} and {policy_gradient_weight}."
            )
        if prior_cases < 0:
            raise ValueError(f"`prior_cases` must be 0 or more; got {prior_cases}.")
        if num_directions is not None and num_directions < 1:
            raise ValueError(f"`num_directions` must be 1 or more, or null; got {num_directions}.")
        if folds < 2:
            raise ValueError(f"`folds` must be 2 or more; got {folds}.")
        self.num_components, self.num_directions = num_components, num_directions
        self.prior_cases, self.folds = prior_cases, folds
        self.quality_weight_range = check_quality_weights(quality_weight_range)
        self.critic_weight, self.policy_gradient_weight = critic_weight, policy_gradient_weight
        self.learning_rate, self.entropy_weight, self.seed = learning_rate, entropy_weight, seed or 0

    @property
    def data(self) -> RolloutDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RolloutDataModule)
        return data

    @property
    def policy(self) -> LadderPolicy:
        """The one that is exported: trained on all cases."""
        return self.policies[0]

    def setup(self, stage: str) -> None:
        """Makes the policies for what the data module has rolled out."""
        data = self.data
        # the module itself is moved there after this
        device = self.trainer.strategy.root_device
        sights, damage, captions = (tensor.to(device) for tensor in data.train_data.tensors)
        base_model = BaseModel.of(data.pipeline.transformer, data.pipeline.model)
        cost = bounded_damage(damage, data.visible_damage)
        if not data.validation_data and len(captions.unique()) < 2:
            raise RunError(
                "A policy is judged on captions that it was not trained on, and there is one in all. Give more captions "
                "(`data.train_limit`), or a `data.validation_split`."
            )
        kept = [] if data.validation_data else kept_by_folds(captions, self.folds)
        self.prepare(base_model, data.ladder, data.reuse_costs, sights, cost, kept)

    def prepare(
        self,
        base_model: BaseModel,
        ladder: Ladder,
        reuse_costs: Sequence[float],
        sights: Tensor,
        cost: Tensor,
        kept: Sequence[Tensor] = (),
    ) -> None:
        """Makes fresh policies, each calibrated on its training cases: one for all cases, and one for each selection of them.

        Args:
            base_model: fingerprint of the model.
            ladder: the rungs.
            reuse_costs: of each kind of reuse.
            sights: `(cases, nodes, width)`.
            cost: bounded damage `(cases, rungs)`.
            kept: bool `(cases,)` each.
        """
        low, high = self.quality_weight_range
        config: dict[str, Any] = {
            "base_model": asdict(base_model),
            "ladder": ladder.to_dict(),
            "reuse_costs": reuse_costs,
            "sight_width": sights.shape[-1],
            "num_components": self.num_components,
            "quality_weight": math.sqrt(low * high),
            "quality_weight_range": [low, high],
        }
        self._outcome: Outcome | None = None
        self.tree = Tree.of(ladder.actions, ladder.decision_steps).to(sights.device)
        self.cost, self.kept = cost, [torch.ones(len(cost), dtype=torch.bool, device=cost.device), *kept]
        self.policies = [LadderPolicy(**config).to(sights.device) for _ in self.kept]
        self.trained = nn.ModuleList(self.policies)
        self._saved = ladder.saved(reuse_costs).float().to(sights.device)
        grid = torch.linspace(math.log(low), math.log(high), GRID).exp().to(sights.device)
        stages = self.tree.nodes[:, 0]
        self._inputs, self._targets, self._gains = [], [], []
        for policy, chosen in zip(self.policies, self.kept, strict=True):
            policy.calibrate(sights[chosen], stages, cost[chosen])
            self._inputs.append(policy.inputs(sights, stages))
            self._targets.append(critic_targets(cost, chosen, self.num_directions))
            self._gains.append(gain_of_choosing(cost[chosen], self._saved, grid))

    # --- learning ---

    def training_step(self, batch: tuple[Tensor]) -> Tensor:
        (places,) = batch
        loss, parts = self.loss(places, self._generator())
        self.log_dict({f"train/{name}": value for name, value in parts.items()} | {"train/loss": loss})
        return loss

    def loss(self, places: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, the sum over the policies, and the parts of the first one's.

        Args:
            places: int64, the cases of the batch.
            generator: of λ, on the CPU.
        """
        place_of_weight = torch.rand(len(places), generator=generator).to(self.cost.device)
        losses = [self._loss(number, places, place_of_weight) for number in range(len(self.policies))]
        return torch.stack([loss for loss, _ in losses]).sum(), losses[0][1]

    def _loss(self, number: int, places: Tensor, place_of_weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        policy, kept = self.policies[number], self.kept[number].float()
        # of mean 1 over all cases, so that the loss of a batch is the mean of the losses of its parts
        case_weights = kept[places] / kept.mean()
        log_odds, cost = policy.log_odds(self._inputs[number][places], self.tree.nodes[:, 0]), self.cost[places]
        prior = self.prior_cases / kept.sum() * policy.coefficients.square().sum(1).mean()
        parts = {"critic_loss": (critic_loss(log_odds, self._targets[number][places]) * case_weights).mean()}
        loss = self.critic_weight * (parts["critic_loss"] + prior)
        if self.policy_gradient_weight:
            expected_damage = policy.expected_damage(log_odds, self.tree.nodes[:, 0])
            value, spread = balanced_reward(policy, expected_damage, cost, self.tree, place_of_weight, self._gains[number])
            parts |= {"expected_reward": (value * case_weights).mean(), "entropy": (spread * case_weights).mean()}
            loss = loss - self.policy_gradient_weight * parts["expected_reward"] - self.entropy_weight * parts["entropy"]
        return loss, parts

    def on_train_batch_end(self, *_: Any) -> None:
        # the critic learns without them: what else reads them comes at an epoch's end
        if self.policy_gradient_weight or self.trainer.is_last_batch:
            self.measure_errors()

    def measure_errors(self) -> None:
        """Tells the policies how far their critics are off on the cases that they learn from; without a critic nothing is predicted."""
        if not self.critic_weight:
            return
        stages = self.tree.nodes[:, 0]
        for policy, kept, inputs in zip(self.policies, self.kept, self._inputs, strict=True):
            with torch.no_grad():
                policy.measure_errors(policy.log_odds(inputs[kept], stages), stages, self.cost[kept])

    def _generator(self) -> torch.Generator:
        """Randomness of one step of one process, whatever came before."""
        return torch.Generator().manual_seed((self.seed * 7919 + self.global_step * 104_729 + self.global_rank) % 2**63)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.trained.parameters(), self.learning_rate)
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise RunError(
                "A run needs an end, which its learning rate falls to: give `--trainer.max_epochs` or `--trainer.max_steps`."
            )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    # --- what came of it: greedy decisions on held-out captions, against what needs no policy ---

    def on_train_end(self) -> None:
        self.measure_errors()  # a run may end within an epoch, as by `max_steps`
        if self.logger is not None and self.trainer.is_global_zero:
            self.logger.log_metrics(self.outcome().summary(), self.global_step)

    def outcome(self) -> Outcome:
        """What the trained policy is worth on held-out captions: those of the validation split, or by cross-fitting. Measured once."""
        if self._outcome is None:
            self._outcome = measure_outcome(self.judged(), self.tree.to("cpu"), self.data.visible_damage)
        return self._outcome

    def judged(self) -> list[HeldOut]:
        """The policies as they are now, each with cases that it is not trained on."""
        data = self.data
        if data.validation_data is None:
            return self.held_out(*data.train_data.tensors)
        sights, damage, captions = data.validation_data.tensors
        return [HeldOut(_on_cpu(self.policy), sights, damage, data.train_data.tensors[1], captions)]

    def held_out(self, sights: Tensor, damage: Tensor, captions: Tensor) -> list[HeldOut]:
        """Each policy but the first, with the cases that it was not trained on, of all cases in their order."""
        parts = []
        for policy, chosen in zip(self.policies[1:], self.kept[1:], strict=True):
            kept = chosen.cpu()
            parts.append(HeldOut(_on_cpu(policy), sights[~kept], damage[~kept], damage[kept], captions[~kept]))
        return parts

    def finished_policy(self, outcome: Outcome) -> LadderPolicy:
        """The policy with its measured curve."""
        policy = LadderPolicy(**self.policy.config | {"curve": outcome.curve.to_dict()})
        policy.load_state_dict(self.policy.state_dict())
        return _on_cpu(policy)

    def static_points(self) -> tuple[Tensor, Tensor]:
        """What each rung saves, and its mean bounded damage on the held-out captions."""
        held_out = self.data.validation_data or self.data.train_data
        return self._saved.cpu(), bounded_damage(held_out.tensors[1], self.data.visible_damage).mean(0)


def _on_cpu(policy: LadderPolicy) -> LadderPolicy:
    return copy.deepcopy(policy).eval().cpu()


def kept_by_folds(captions: Tensor, folds: int) -> list[Tensor]:
    """Which cases each fold's policy is trained on: all but those of every `folds`-th caption.

    Args:
        captions: int64 `(cases,)`, a number for every caption.
        folds: how many; no more than there are captions.

    Returns:
        bool `(cases,)` each.
    """
    order = captions.unique(return_inverse=True)[1]
    return [order % folds != fold for fold in range(min(folds, int(order.max()) + 1))]


def critic_targets(cost: Tensor, chosen: Tensor, num_directions: int | None = None) -> Tensor:
    """What the critic is to learn: the log-odds of damage, or of them what lies along their main directions about the mean,
    `(cases, rungs)`.

    Args:
        cost: bounded damage `(cases, rungs)`.
        chosen: bool `(cases,)`, those that mean and directions are taken from.
        num_directions: None for all.
    """
    log_odds = torch.logit(cost, DAMAGE_FLOOR)
    if num_directions is None:
        return log_odds
    mean = log_odds[chosen].mean(0)
    _, _, directions = torch.linalg.svd(log_odds[chosen] - mean, full_matrices=False)
    along = (log_odds - mean) @ directions[:num_directions].T
    return mean + torch.mm(along, directions[:num_directions])


def critic_loss(log_odds: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the log-odds of damage, of all rungs at all nodes: also of those that are closed there, because what is seen
    of an image on the way to one rung tells of the others too.

    Args:
        log_odds: `(cases, nodes, rungs)`.
        target: what they ought to be, `(cases, rungs)`.

    Returns:
        `(cases,)`.
    """
    return (log_odds - target[:, None]).square().mean((1, 2))


def balanced_reward(
    policy: LadderPolicy, predicted: Tensor, cost: Tensor, tree: Tree, place: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """E[R] of each case at its own λ, divided by what choosing gains there, and the entropy: `(cases,)` each.

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
    return expected(log_probs, rewards) * balance, entropy(log_probs)


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
