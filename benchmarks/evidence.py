"""Does the policy win, why, and what does it owe to what? `python benchmarks/evidence.py`

Rolls the ladder of a configuration out on the test captions × noises (kept in the table: a run that was killed goes on), trains
policies on more and fewer cases and with parts left out, and judges each on the test captions against the mixture of static schedules
that was chosen on the training cases. Nothing is chosen on the test captions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, auto_cli
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from ada.data import load_prompts
from ada.policy import AdaPolicy, BaseModel
from ada.policy.sight import NUM_SIGNS
from ada.progress import progress
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.rollouts import Case, FrozenPipeline, Table
from ada.rollouts.table import stack
from ada.schedules import Ladder, Mixture, Tree
from ada.training import HeldOut, LadderTraining, Outcome, RolloutDataModule, measure_outcome
from ada.training.ladder import kept_by_folds
from ada.training.outcome import paired_interval, rung_chances, rungs_over_weights
from blockdance import Plan, full_compute

LEVELS = (0.10, 0.15, 0.20, 0.30, 0.40, 0.50)
NOISE_OF_TEST = 2**41
NUM_STEPS = 300
THRESHOLD_RULE, GATE = "threshold rule: x̂₀ change alone", "gate of six scalars"
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
    """

    name: str
    options: Mapping[str, Any]
    cases: int | None = None
    inputs: str = "all"
    shuffled: bool = False
    looks: tuple[int, ...] | None = None
    draw: int | None = None


def variants(options: Mapping[str, Any], ladder: Ladder, num_cases: int, draws: int) -> list[Variant]:
    """All that is compared; the first is the policy itself. Training holds no chance of its own, so it is drawn what it learns from."""
    sizes = [size for size in (60, 120, 240, 480, 960) if size < num_cases]
    first, middle = ladder.decision_steps[0], ladder.decision_steps[len(ladder.decision_steps) // 2]
    return [
        Variant("policy", options),
        *(Variant(f"training images drawn anew, {draw}", options, draw=draw) for draw in range(1, draws)),
        Variant("shuffled states", options, shuffled=True),
        *(Variant(f"{size} training images", options, cases=size) for size in sizes),
        Variant(f"one look, after step {first}", options, looks=(first,)),
        Variant(f"two looks, after steps {first} and {middle}", options, looks=(first, middle)),
        Variant(THRESHOLD_RULE, options, inputs="x0"),
        Variant(GATE, options, inputs="six"),
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
    training = LadderTraining(**variant.options)
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
    training.policy.eval()
    return training


@dataclass(frozen=True)
class Judged:
    """A variant that was trained, and the test cases as it sees them."""

    part: HeldOut
    tree: Tree

    def outcome(self, visible: float, levels: Sequence[float] = LEVELS) -> Outcome:
        """Beside the mixture and the oracle."""
        return measure_outcome([self.part], self.tree, visible, levels)

    def chances(self, level: float) -> Tensor | None:
        """How often each case takes each rung when `level` is saved on average, `(cases, rungs)`; None where it cannot be."""
        policy = self.part.policy
        saved = policy.ladder.saved(policy.reuse_costs)
        _, rungs = rungs_over_weights([self.part], self.tree)
        spent = saved[rungs]
        means = spent.mean(1)
        return rung_chances(rungs, spent, level, len(saved)) if float(means.min()) <= level <= float(means.max()) else None


def judge(variant: Variant, data: RolloutDataModule, base: BaseModel, test: Sequence[Tensor]) -> Judged:
    """Trains a variant; it is judged on the test cases."""
    sights, damage, _ = data.train_data.tensors
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
    return Judged(HeldOut(training.policy, seen, test[1], damage, test[2]), training.tree)


def compare_rivals(
    ours: Judged, rivals: Mapping[str, Judged], data: RolloutDataModule, test: Sequence[Tensor]
) -> list[list[str]]:
    """Rows of the table: the policy's advantage over each rival and over the best single schedule that saves as much, paired; and the
    raw distances of policy and mixture."""
    visible, saved = data.visible_damage, data.ladder.saved(data.reuse_costs)
    cost, train_cost = bounded_damage(test[1], visible).double(), bounded_damage(data.train_data.tensors[1], visible)
    mixture = Mixture.of(train_cost, saved)
    rows = [[f"policy's advantage over the {name}"] for name in ("best single schedule", *rivals)]
    raw = [[f"distance, {name}: mean, median, 90 % quantile"] for name in ("policy", "mixture")]
    for level in LEVELS:
        chances = ours.chances(level)
        if chances is None:
            for row in (*rows, *raw):
                row.append("not reached")
            continue
        error = (chances * cost).sum(1)
        rows[0].append(advantage(cost[:, best_single(train_cost, saved, level)] - error, test[2]))
        for row, rival in zip(rows[1:], rivals.values(), strict=True):
            theirs = rival.chances(level)
            row.append("not reached" if theirs is None else advantage((theirs * cost).sum(1) - error, test[2]))
        for row, shares in zip(raw, (chances, mixture.shares(level, len(saved)).expand_as(chances)), strict=True):
            row.append(spread(test[1], shares))
    return rows + raw


def best_single(cost: Tensor, saved: Tensor, level: float) -> int:
    """The schedule of least mean damage among those that save as much, but for the hundredth part of a step that reuse costs."""
    enough = (saved >= level - 0.01).nonzero().flatten()
    return int(enough[cost[:, enough].mean(0).argmin()])


def spread(damage: Tensor, chances: Tensor) -> str:
    """Mean, median and 90 % quantile of damages `(cases, rungs)` that are taken with these chances."""
    order = damage.flatten().argsort()
    values, mass = damage.flatten()[order], (chances.flatten()[order] / len(damage)).cumsum(0)
    quantiles = [float(values[int((mass < share).sum())]) for share in (0.5, 0.9)]
    return f"{float((chances * damage).sum(1).mean()):.4f}, {quantiles[0]:.4f}, {quantiles[1]:.4f}"


@dataclass(frozen=True)
class Attempt:
    """Another way to make the images: the pipeline, and what reuses."""

    pipeline: FrozenPipeline
    plan: Plan


def try_out(
    data: RolloutDataModule, cases: Sequence[Case], name: str, attempts: Mapping[str, Attempt], batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Damage, and share of the MACs saved, of every attempt on every case: `(cases, attempts)` each; kept in a table of its own.

    Args:
        data: its pipeline makes the references.
        cases: the cases.
        name: for the progress.
        attempts: by what tells them apart in the table's settings.
        batch_size: cases per call.
    """
    pipeline, reward = data.pipeline, data.collector.reward
    settings = {"base": pipeline.fingerprint(), "attempts": list(attempts), "reward": reward.describe()}
    folder = data.collector.table.folder
    table = Table(None if folder is None else folder.parent, settings)
    todo = [case for case in cases if case not in table]
    reference = Attempt(pipeline, full_compute(1, pipeline.num_inference_steps))
    with progress(f"Running {name} on test captions", len(todo)) as advance:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            prompts, seeds = [case.prompt for case in batch], [case.seed for case in batch]
            made = [one.pipeline.generate(prompts, seeds, one.plan) for one in (reference, *attempts.values())]
            with torch.inference_mode():
                losses = [-reward(some.images, prompts, made[0].images).total for some in made]
            damage = torch.stack([(loss - losses[0]).clamp(min=0) for loss in losses[1:]], 1)
            saved = torch.stack([some.report.compute_saved for some in made[1:]], 1)
            table.add(batch, {"damage": damage, "saved": saved}, torch.zeros(len(batch), 1, 1))
            advance(len(batch))
    return stack(table, cases, "damage"), stack(table, cases, "saved")


def compare_fewer_steps(data: RolloutDataModule, cases: Sequence[Case], test: Sequence[Tensor]) -> list[list[str]]:
    """Rows of the table: fewer steps at every level, and how much better the best static schedules are: mixed, and the single one."""
    num_steps, visible = data.pipeline.num_inference_steps, data.visible_damage
    counts = [round(num_steps * (1 - level)) for level in LEVELS]
    attempts = {f"{count} steps": Attempt(data.pipeline.with_steps(count), full_compute(1, count)) for count in counts}
    damage, _ = try_out(data, cases, "fewer steps", attempts)
    cost, changed = bounded_damage(damage, visible), visibly_changed(damage, visible)
    saved = data.ladder.saved(data.reuse_costs)
    train_cost, static = bounded_damage(data.train_data.tensors[1], visible), bounded_damage(test[1], visible)
    mixture = Mixture.of(train_cost, saved)
    plain, mixed = ["as many steps fewer"], ["advantage of the mixture over fewer steps"]
    single = ["advantage of the best single schedule that saves as much over fewer steps"]
    for place, level in enumerate(LEVELS):
        plain.append(f"{cost[:, place].mean():.4f}, visibly changed {changed[:, place].float().mean():.1%}")
        mixed.append(advantage(cost[:, place] - mixture.errors(static, level), test[2]))
        single.append(advantage(cost[:, place] - static[:, best_single(train_cost, saved, level)], test[2]))
    return [plain, mixed, single]


def compare_policy(folder: Path, data: RolloutDataModule, cases: Sequence[Case], test: Sequence[Tensor], ours: Judged) -> str:
    """What another policy saves and damages, with the mixture and the ladder's policy at the same mean compute, in words.

    Args:
        folder: the policy's.
        data: of the training.
        cases: the first of the test cases.
        test: what is known of them.
        ours: the ladder's policy.
    """
    policy = AdaPolicy.from_pretrained(folder)
    attempt = Attempt(data.pipeline, policy)
    damage, saved = try_out(data, cases, f"the policy of {folder}", {f"policy {policy.digest()} {policy.config}": attempt})
    level, cost = float(saved.mean()), bounded_damage(damage[:, 0], data.visible_damage)
    told = (
        f"The policy of {folder} saves {level:.1%} on average ({float(saved.min()):.1%} to {float(saved.max()):.1%}) at a damage of "
        f"{cost.mean():.4f}"
    )
    costs, kept = data.ladder.saved(data.reuse_costs), bounded_damage(test[1], data.visible_damage).double()
    if level > float(costs.max()):
        return f"{told}, more than any rung."
    mixture = Mixture.of(bounded_damage(data.train_data.tensors[1], data.visible_damage), costs)
    static = mixture.errors(kept, level)
    chances = ours.chances(level)
    beside = "" if chances is None else f", and the policy's {(chances[: len(cases)] * kept).sum(1).mean():.4f}"
    return f"{told}; at as much, the mixture's is {static.mean():.4f} (less by {advantage(cost - static, test[2])}){beside}."


def equal_damage(outcome: Outcome) -> str:
    """How much more than the mixture the policy saves at the same mean damage, in words."""
    curve = outcome.curve
    found = []
    for level in outcome.levels:
        reached = [saved for saved, damage in zip(curve.saved, curve.damage, strict=True) if damage <= level.mixture]
        if reached:
            found.append(f"{max(reached):.1%} rather than {level.saved:.0%}")
    return f"At the damage of the mixture the policy saves {', '.join(found)}."


def cost_of_training(data: RolloutDataModule, num_cases: int) -> str:
    """What training computes, and after how many images it has paid, in words."""
    forwards = len(
        {tuple(rung[: step + 1]) for rung in data.ladder.actions.tolist() for step, action in enumerate(rung) if not action}
    )
    paid = num_cases * forwards / (0.2 * data.pipeline.num_inference_steps)
    return (
        f"An image's rungs compute {forwards} steps, as they share their beginnings ({len(data.ladder)} rungs of "
        f"{data.pipeline.num_inference_steps}); with {num_cases} training images and 20 % "
        f"saved, training has paid after {paid:,.0f} images."
    )


def advantage(differences: Tensor, captions: Tensor) -> str:
    """The mean with its 95 % interval, captions resampled."""
    mean, low, high = paired_interval(differences, captions)
    return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"


def save_gate(data: RolloutDataModule, base: BaseModel, options: Mapping[str, Any], folder: Path) -> None:
    """Trains the gate of six scalars and writes its folder, its curve measured by cross-fitting.

    What it does not see has the weight 0, so it is a policy like any other.
    """
    sights, damage, captions = data.train_data.tensors
    seen = keep_inputs(sights, "six", base.prompt_width)
    kept = kept_by_folds(captions, LadderTraining(**options).folds)
    training = fit(
        Variant("gate", options), data.ladder, data.reuse_costs, base, seen, bounded_damage(damage, data.visible_damage), kept
    )
    outcome = measure_outcome(training.held_out(seen, damage, captions), training.tree, data.visible_damage)
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
    training: str = "configs/default.yaml",
    train_limit: int | None = None,
    test_limit: int | None = None,
    noises: int = 3,
    noises_of_others: int = 1,
    draws: int = 3,
    output: Path = Path("docs/evidence"),
    others: Sequence[Path] = (),
    gate: Path | None = None,
) -> None:
    """Prints a table and writes evidence.md and evidence.json.

    Args:
        training: file of a configuration of ladder training.
        train_limit: training captions; by default those of the configuration.
        test_limit: test captions; by default all.
        noises: noises per test caption.
        noises_of_others: of them, those that fewer steps and other policies run on as well.
        draws: how often the training cases are drawn, the first time all of them.
        output: folder to write to.
        others: folders of policies of other kinds, such as the one that configs/paper_ada.yaml trains.
        gate: folder to save the gate of six scalars to, for `evaluate.py --rivals`; then nothing else is compared.
    """
    data, options = load_data(training, train_limit)
    if gate is not None:
        train = data.cases("train")
        data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
        data.collector.fill(train)
        data.train_data = data.tensors(train)
        save_gate(data, BaseModel.of(data.pipeline.transformer), options, gate)
        return
    prompts = load_prompts("checkpoints/emoji-prompts", "test", limit=test_limit)
    cases = [
        Case(prompt, NOISE_OF_TEST + index * 16 + noise)
        for noise in range(noises)
        for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True)
    ]
    train = data.cases("train")
    data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
    for title, some in (("training", train), ("test", cases)):
        todo = data.collector.missing(some)
        with progress(f"Rolling out {len(data.ladder)} schedules on {title} captions", len(todo)) as advance:
            data.collector.fill(todo, advance)
    data.train_data = data.tensors(train)
    test = data.tensors(cases).tensors
    base = BaseModel.of(data.pipeline.transformer)
    tried = variants(options, data.ladder, len(train), draws)
    judged = {variant.name: judge(variant, data, base, test) for variant in tried}
    ours = judged["policy"]
    rivals = {name: judged[name] for name in (THRESHOLD_RULE, GATE)}
    compared = compare_rivals(ours, rivals, data, test)
    found = {name: one.outcome(data.visible_damage) for name, one in judged.items()}
    count = len(prompts) * noises_of_others
    some, part = cases[:count], [tensor[:count] for tensor in test]
    plain = compare_fewer_steps(data, some, part)
    words = [equal_damage(found["policy"]), cost_of_training(data, len(train))]
    for folder in others:
        words.append(compare_policy(folder, data, some, part, ours))
    title = (
        f"{len(prompts)} test captions, noises of each: {noises} ({noises_of_others} for fewer steps), {len(train)} training images: "
        "bounded damage; advantage over the mixture of static schedules, 95 %; share of the gap to the oracle that is closed"
    )
    report(title, found, plain, compared, words, output)


def report(
    title: str,
    found: Mapping[str, Outcome],
    plain: list[list[str]],
    compared: list[list[str]],
    words: Sequence[str],
    output: Path,
) -> None:
    """Prints and writes the comparison."""
    first = next(iter(found.values()))
    heads = ["", *(f"{level:.0%} saved" for level in LEVELS)]
    rows = [[name, *(cell(outcome, level) for level in LEVELS)] for name, outcome in found.items()]
    figures = {
        "mixture of static schedules": lambda level: f"{level.mixture:.4f}",
        "oracle": lambda level: f"{level.oracle:.4f}",
        "visibly changed, policy": lambda level: f"{level.changed_policy:.1%}",
        "visibly changed, mixture": lambda level: f"{level.changed_mixture:.1%}",
        "distinct schedules": lambda level: str(level.distinct),
        "Spearman: saved, robustness of the image": lambda level: f"{level.agreement:.2f}",
    }
    reached = {round(level.saved, 6): level for level in first.levels}
    facts = [
        [name, *(show(reached[level]) if level in reached else "not reached" for level in LEVELS)]
        for name, show in figures.items()
    ]
    write_table(title, heads, facts[:2] + plain + rows + compared + facts[2:], words, output / "evidence.md")
    content = {name: outcome.to_dict() for name, outcome in found.items()}
    (output / "evidence.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str], file: Path) -> None:
    """Prints a table with sentences below it, and writes both as Markdown."""
    table = RichTable(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console = Console(width=240)
    console.print(table)
    for sentence in words:
        console.print(sentence)
    lines = [title + ".", "", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [line for sentence in words for line in ("", sentence)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
