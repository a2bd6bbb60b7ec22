"""Does the policy win, why, and what does it owe to what? `python benchmarks/evidence.py`

Rolls the ladder of a configuration out on the test captions × noises (kept in the table: a run that was killed goes on), trains
policies on more and fewer cases and with parts left out, and judges each on the test captions against the mixture of static schedules
that was chosen on the training cases. Nothing is chosen on the test captions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, auto_cli
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from ada.data import load_prompts
from ada.policy import BaseModel
from ada.policy.sight import NUM_SIGNS
from ada.rewards.damage import bounded_damage
from ada.rollouts import Case
from ada.schedules import Tree
from ada.training import LadderTraining, Outcome, RolloutDataModule, measure_outcome
from ada.training.ladder import make_optimizer
from ada.training.rollout_data import progress

LEVELS = (0.10, 0.15, 0.20, 0.30, 0.40)
NOISE_OF_TEST = 2**41
NUM_STEPS = 300
X0_CHANGE = 0
"""Place among the signs of the root mean square of the newest change of the predicted clean latents."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: for the table.
        options: of `LadderTraining`.
        cases: how many training cases; None for all.
        inputs: which part of what is seen is kept: all, signs, pooled, x0, six.
        shuffled: whether each test image is decided by another's state.
    """

    name: str
    options: Mapping[str, Any]
    cases: int | None = None
    inputs: str = "all"
    shuffled: bool = False
    seed: int = 0


def variants(options: Mapping[str, Any], num_cases: int, seeds: int) -> list[Variant]:
    """All that is compared; the first is the policy itself."""
    sizes = [size for size in (40, 80, 160, 320, 640) if size < num_cases]
    return [
        *(Variant(f"policy, seed {seed}", options, seed=seed) for seed in range(seeds)),
        Variant("shuffled states", options, shuffled=True),
        *(Variant(f"{size} training images", options, cases=size) for size in sizes),
        Variant("threshold rule: x̂₀ change alone", {**options, "rank": 1}, inputs="x0"),
        Variant("gate of six scalars", {**options, "rank": 1}, inputs="six"),
        Variant("signs alone", options, inputs="signs"),
        Variant("features and prompt alone", options, inputs="pooled"),
        Variant("rank 1", {**options, "rank": 1}),
        Variant("exact policy gradient alone", {**options, "critic_weight": 0.0, "policy_gradient_weight": 1.0}),
        Variant("critic and policy gradient", {**options, "policy_gradient_weight": 0.05}),
    ]


def keep_inputs(sights: Tensor, inputs: str) -> Tensor:
    """What is seen, with the rest at its mean (0 after standardising: constant)."""
    kept = torch.zeros(sights.shape[-1], dtype=torch.bool)
    if inputs == "all":
        kept[:] = True
    elif inputs == "signs":
        kept[:NUM_SIGNS] = True
    elif inputs == "pooled":
        kept[NUM_SIGNS:] = True
    elif inputs == "x0":
        kept[X0_CHANGE] = True
    else:
        kept[[0, 5, 10, NUM_SIGNS - 5, NUM_SIGNS - 3, NUM_SIGNS - 2]] = True
    return sights * kept


def fit(variant: Variant, data: RolloutDataModule, base: BaseModel, sights: Tensor, damage: Tensor) -> LadderTraining:
    """Trains one variant, whole batches at a time."""
    training = LadderTraining(**{**variant.options, "seed": variant.seed})
    cost = bounded_damage(damage, data.visible_damage)
    training.prepare(base, data.ladder, data.reuse_costs, sights, cost)
    optimizer = make_optimizer(training.policy, training.learning_rate, training.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    generator = torch.Generator().manual_seed(variant.seed)
    for _ in range(NUM_STEPS):
        loss, _ = training.loss(sights, cost, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    training.policy.eval()
    return training


def judge(variant: Variant, data: RolloutDataModule, base: BaseModel, test: tuple[Tensor, Tensor], clusters: Tensor) -> Outcome:
    """Trains a variant and measures it on the test cases."""
    sights, damage = data.train_data.tensors
    count = variant.cases or len(sights)
    chosen = torch.randperm(len(sights), generator=torch.Generator().manual_seed(0))[:count]
    training = fit(variant, data, base, keep_inputs(sights[chosen], variant.inputs), damage[chosen])
    seen, harmed = keep_inputs(test[0], variant.inputs), test[1]
    if variant.shuffled:
        seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(1))]
    tree = Tree.of(data.ladder.actions, data.ladder.decision_steps)
    return measure_outcome(training.policy, tree, seen, harmed, damage, data.visible_damage, LEVELS, clusters)


def save_gate(data: RolloutDataModule, base: BaseModel, options: Mapping[str, Any], folder: Path) -> None:
    """Trains the gate of six scalars and writes its folder, calibrated on the validation captions.

    What it does not see has the weight 0, so it is a policy like any other.
    """
    variant = Variant("gate of six scalars", {**options, "rank": 1}, inputs="six")
    (sights, damage), validation = data.train_data.tensors, data.cases("validation")
    data.collector.fill(validation)
    seen, harmed = data.tensors(validation).tensors
    training = fit(variant, data, base, keep_inputs(sights, variant.inputs), damage)
    tree = Tree.of(data.ladder.actions, data.ladder.decision_steps)
    outcome = measure_outcome(training.policy, tree, keep_inputs(seen, variant.inputs), harmed, damage, data.visible_damage)
    training.finished_policy(outcome).save_pretrained(folder)


def load_data(config: str, limit: int | None) -> tuple[RolloutDataModule, dict[str, Any]]:
    """The data module of a configuration, and the options of its model."""
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    settings = content["data"]["init_args"]
    if limit is not None:
        settings["train_limit"] = limit
    parser = ArgumentParser()
    parser.add_subclass_arguments(RolloutDataModule, "data")
    found = parser.instantiate_classes(
        parser.parse_object({"data": {"class_path": "ada.training.RolloutDataModule", "init_args": settings}})
    )
    return found["data"], content["model"].get("init_args", {})


def main(
    config: str = "configs/default.yaml",
    train_limit: int | None = None,
    test_limit: int | None = None,
    noises: int = 1,
    seeds: int = 3,
    output: Path = Path("docs/evidence"),
    gate: Path | None = None,
) -> None:
    """Prints a table and writes evidence.md and evidence.json.

    Args:
        config: a configuration of ladder training.
        train_limit: training captions; by default those of the configuration.
        test_limit: test captions; by default all.
        noises: noises per test caption.
        seeds: training seeds of the policy itself.
        output: folder to write to.
        gate: folder to save the gate of six scalars to, for `evaluate.py --rivals`; then nothing else is compared.
    """
    data, options = load_data(config, train_limit)
    if gate is not None:
        train = data.cases("train")
        data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
        data.collector.fill(train)
        data.train_data = data.tensors(train)
        save_gate(data, BaseModel.of(data.pipeline.transformer), options, gate)
        return
    prompts = load_prompts("checkpoints/emoji-prompts", "test", limit=test_limit)
    pairs = [
        (index, prompt, noise)
        for noise in range(noises)
        for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True)
    ]
    cases = [Case(prompt, NOISE_OF_TEST + index * 16 + noise) for index, prompt, noise in pairs]
    train = data.cases("train")
    data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
    for title, some in (("training", train), ("test", cases)):
        todo = data.collector.missing(some)
        with progress(f"Rolling out {len(data.ladder)} schedules on {title} captions", len(todo)) as advance:
            data.collector.fill(todo, advance)
    data.train_data = data.tensors(train)
    test = data.tensors(cases).tensors
    clusters = torch.tensor([index for index, _, _ in pairs])
    base = BaseModel.of(data.pipeline.transformer)
    found = {
        variant.name: judge(variant, data, base, (test[0], test[1]), clusters)
        for variant in variants(options, len(train), seeds)
    }
    report(found, len(train), len(cases), output)


def report(found: Mapping[str, Outcome], num_training: int, num_test: int, output: Path) -> None:
    """Prints and writes the comparison."""
    first = next(iter(found.values()))
    heads = ["", *(f"{level:.0%} saved" for level in LEVELS)]
    rows = [[name, *(cell(outcome, level) for level in LEVELS)] for name, outcome in found.items()]
    static = [["mixture of static schedules", *(f"{level.mixture:.4f}" for level in first.levels)]]
    oracle = [["oracle", *(f"{level.oracle:.4f}" for level in first.levels)]]
    changed = [
        ["visibly changed, policy", *(f"{level.changed_policy:.1%}" for level in first.levels)],
        ["visibly changed, mixture", *(f"{level.changed_mixture:.1%}" for level in first.levels)],
        ["distinct schedules", *(str(level.distinct) for level in first.levels)],
        ["Spearman: saved, robustness of the image", *(f"{level.agreement:.2f}" for level in first.levels)],
    ]
    title = (
        f"{num_test} test images, {num_training} training images: bounded damage; advantage over the mixture, 95 %; gap closed"
    )
    table = RichTable(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    body = static + oracle + rows + changed
    for row in body:
        table.add_row(*row)
    Console(width=220).print(table)
    output.mkdir(parents=True, exist_ok=True)
    lines = [title + ".", "", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(LEVELS)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    (output / "evidence.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {name: outcome.to_dict() for name, outcome in found.items()}
    (output / "evidence.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cell(outcome: Outcome, level: float) -> str:
    """Damage, advantage with interval, share of the gap."""
    try:
        found = outcome.at(level)
    except KeyError:
        return "not reached"
    mean, low, high = found.advantage
    return f"{found.policy:.4f}: {mean:+.4f} ({low:+.4f} … {high:+.4f}), {found.gap_closed:.0%}"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
