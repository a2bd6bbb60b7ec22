"""Policies are trained over pipelines of every kind: rolled out, learnt, exported, loaded, and run in the stock pipeline."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.trained_families import STEPS, TRAINED
from lightning.pytorch import Trainer
from torch import Tensor

from ada.policy import AdaPolicy, LadderPolicy
from ada.rewards import Reward, WeightedReward
from ada.rollouts import FrozenPipeline, roll_out
from ada.schedules import Ladder
from ada.training import LadderTraining, RolloutDataModule
from blockdance import Reuse, ReuseSchedule

RUNGS = ("000000", "000010", "000020", "000110")
LADDER = Ladder(
    torch.tensor([[int(action) for action in rung] for rung in RUNGS]),
    (Reuse(boundary=2), Reuse(boundary=1, order=1, weight=0.5)),
    (2, 3),
)


class Distance(Reward):
    """Minus the root mean square difference to the reference: of images, videos, waveforms, latents of any shape."""

    compares_with_reference = True

    def __call__(self, images: Tensor, prompts: Sequence[Any], reference: Tensor) -> Tensor:
        return -(images - reference).flatten(1).square().mean(1).sqrt()


def train(frozen: FrozenPipeline, prompts: Sequence[Any], ladder: Ladder, folder: Path, **options: Any) -> LadderTraining:
    """A few steps on three prompts, held out against two noises of them."""
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    ladder.save(folder / "ladder.json")
    data = RolloutDataModule(
        frozen, WeightedReward({"distance": Distance()}, {"distance": 1.0}), str(folder / "ladder.json"), source=str(folder),
        table=folder / "tables", validation_limit=2, visible_damage=0.05, **options,
    )  # fmt: skip
    module = LadderTraining(num_components=2, quality_weight_range=(0.2, 5.0))
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    module.finished_policy(module.outcome()).save_pretrained(folder / "policy")
    return module


def assert_same(images: Tensor, expected: Tensor) -> None:
    """Equal but for what sums in another order leave after guided steps; another schedule moves images a thousand times more."""
    torch.testing.assert_close(images, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TRAINED)
def test_a_policy_is_trained_exported_and_runs_in_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    family = TRAINED[name]
    frozen = family.frozen()
    module = train(frozen, family.prompts, LADDER, tmp_path)
    policy = AdaPolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(policy, LadderPolicy)

    cases = module.data.cases("validation")
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    rollout = roll_out(frozen, prompts, seeds, LADDER.actions.expand(len(cases), -1, -1), LADDER.kinds, LADDER.decision_steps)
    for rung in (0, 3):
        schedule = ReuseSchedule(LADDER.actions[[rung]], LADDER.kinds)
        assert_same(rollout.images[1, rung], frozen.generate(prompts[1:], seeds[1:], schedule).images[0])
    damage = module.data.validation_data.tensors[1]
    assert (damage[:, 0] == 0).all()
    assert (damage[:, 1:] > 1e-4).all(), "every rung reuses something"

    # within a budget it takes the most saving rung; at its λ what it takes of the rollouts' states, as training saw them
    most = 1 - float(policy.ladder.saved(policy.reuse_costs).max())
    saving = frozen.generate(prompts, seeds, policy.with_options(compute=most))
    assert saving.report.actions[:, 1:].tolist() == LADDER.actions[[3, 3], 1:].tolist()
    assert_same(saving.images, rollout.images[:, 3])
    chosen = frozen.generate(prompts, seeds, policy.with_options(quality_weight=1.0))
    sights = module.data.validation_data.tensors[0]
    damage_seen = policy.predict(sights, module.tree.nodes[:, 0].expand(len(sights), -1))
    rungs = module.tree.walk(policy.logits(damage_seen, torch.full((len(sights), 1), 1.0)))
    assert chosen.report.actions[:, 1:].tolist() == LADDER.actions[rungs, 1:].tolist()
    assert frozen.num_inference_steps == STEPS
