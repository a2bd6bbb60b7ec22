"""Does the policy win, why, and what does it owe to what? `python benchmarks/evidence.py`

Rolls the ladder of a configuration out on the test captions × noises (kept in the table: a run that was killed goes on), trains
policies on more and fewer cases and with parts left out, and judges each, and a policy that is there, on the test captions against the
mixture of static schedules that was chosen on the training cases. Nothing is chosen by the damage of the test captions; a level is met by
the two λ between whose savings on them it lies.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, auto_cli
from rivals import compare_fewer_steps, compare_pair, compare_policy, compare_static, cost_of_training, equal_damage
from variants import GATE, IMITATION, LEVELS, ONE_SIGN, Imitation, Judged, Variant, cross_fit, judge, variants
from written_tables import cell, write_table

from ada.data import load_prompts
from ada.noise import EVALUATION, noise_seed
from ada.policy import AdaPolicy, BaseModel, LadderPolicy
from ada.progress import progress
from ada.rollouts import Case, Collector
from ada.schedules import Ladder, Tree
from ada.training import HeldOut, LadderTraining, Outcome, RolloutDataModule
from ada.training.quiet import quieten_libraries


def save_gates(data: RolloutDataModule, base: BaseModel, options: Mapping[str, Any], folder: Path) -> None:
    """Trains the gates of six scalars, ours and the one after BAG, and writes a folder for each, its curve measured by cross-fitting.

    What they do not see has the weight 0, so they are policies like any other.
    """
    for name, way in (("critic", LadderTraining), ("imitation", Imitation)):
        training, judged = cross_fit(Variant(name, options, inputs="six", training=way), data, base)
        training.finished_policy(judged.outcome(data.visible_damage)).save_pretrained(folder / name)


def roll_out(collector: Collector, cases: Sequence[Case], title: str) -> None:
    """Runs a ladder on what is not in its table yet."""
    todo = collector.missing(cases)
    with progress(f"Rolling out {len(collector.ladder)} schedules{title}", len(todo)) as advance:
        collector.fill(todo, advance)


def load_data(config: str, limit: int | None) -> tuple[RolloutDataModule, dict[str, Any]]:
    """The data module of a configuration, and the options of its model."""
    quieten_libraries()
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


def load_finished(folder: Path, ladder: Ladder) -> LadderPolicy:
    """A policy that chooses from a ladder.

    Raises:
        ValueError: it chooses from another one.
    """
    policy = AdaPolicy.from_pretrained(folder)
    if not isinstance(policy, LadderPolicy) or policy.ladder.to_dict() != ladder.to_dict():
        raise ValueError(f"The policy in {folder} does not choose from the ladder of the configuration.")
    return policy


def compare_rivals(
    shipped: str, tried: Sequence[Variant], judged: Mapping[str, Judged], data: RolloutDataModule, base: BaseModel
) -> list[list[str]]:
    """Rows of the table: the published policy, and the one that is trained as the rivals are, beside each of them; the latter on the
    training captions as well, each decided by policies that did not see it.

    Args:
        shipped: the published policy's name.
        tried: all that was trained here; the first as the published one.
        judged: by name, on the test captions.
        data: the policies'.
        base: fingerprint of the model.
    """
    own, rivals, visible = tried[0].name, (ONE_SIGN, IMITATION, GATE), data.visible_damage
    rows = [
        compare_pair(f"advantage of {name} over {rival}", judged[name], judged[rival], visible)
        for name in (shipped, own)
        for rival in rivals
    ]
    crossed = {one.name: cross_fit(one, data, base)[1] for one in tried if one.name in (own, *rivals)}
    where = "both cross-fitted on the training captions"
    rows += [
        compare_pair(f"advantage of {own} over {rival}, {where}", crossed[own], crossed[rival], visible) for rival in rivals
    ]
    return rows


def main(
    training: str = "configs/default.yaml",
    policy: Path = Path("checkpoints/ada-emoji"),
    train_limit: int | None = None,
    test_limit: int | None = None,
    noises: int = 3,
    noises_of_others: int = 3,
    draws: int = 3,
    more: Sequence[int] = (),
    output: Path = Path("docs/evidence"),
    others: Sequence[Path] = (),
    gates: Path | None = None,
) -> None:
    """Prints a table and writes evidence.md and evidence.json.

    Args:
        training: file of a whole configuration of ladder training, on the embedded model's captions.
        policy: folder of the policy that it trained.
        train_limit: training captions; by default those of the configuration.
        test_limit: test captions; by default all.
        noises: noises per test caption.
        noises_of_others: of them, those that fewer steps and other policies run on as well.
        draws: how often the training cases are drawn, the first time all of them.
        more: larger numbers of training captions, for the learning curve.
        output: folder to write to.
        others: folders of policies of other kinds, such as the one that configs/paper_ada.yaml trains.
        gates: folder to save the gates of six scalars to, for `evaluate.py --rivals`; then nothing else is compared.
    """
    for folder in others:
        AdaPolicy.from_pretrained(folder)  # one that is not there is said now, and not after two hours
    data, options = load_data(training, train_limit)
    if gates is not None:
        train = data.cases("train")
        data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
        data.collector.fill(train)
        data.train_data = data.tensors(train)
        save_gates(data, BaseModel.of(data.pipeline.transformer), options, gates)
        return
    finished = load_finished(policy, data.ladder)
    prompts = load_prompts("checkpoints/emoji-prompts", "test", limit=test_limit)
    cases = [
        Case(prompt, noise_seed(0, index * 16 + noise, EVALUATION))
        for noise in range(noises)
        for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True)
    ]
    train = data.cases("train")
    larger = [load_data(training, size)[0].cases("train") for size in more]
    if short := [size for size, some in zip(more, larger, strict=True) if len(some) < size]:
        raise ValueError(f"There are no {', '.join(map(str, short))} training images.")
    data.reuse_costs = data.pipeline.reuse_costs(data.ladder.kinds, train[0].prompt)
    for title, some in (("training", [*train, *chain(*larger)]), ("test", cases)):
        roll_out(data.collector, some, f" on {title} captions")
    data.train_data = data.tensors(train)
    test = data.tensors(cases).tensors
    base = BaseModel.of(data.pipeline.transformer)
    pools = {size: data.tensors(some).tensors for size, some in zip(more, larger, strict=True)}
    tried = variants(options, data.ladder, len(train), draws, more)
    shipped = str(policy)
    tree = Tree.of(data.ladder.actions, data.ladder.decision_steps)
    judged = {shipped: Judged([HeldOut(finished, test[0], test[1], data.train_data.tensors[1], test[2])], tree)}
    judged |= {one.name: judge(one, data, base, test, pools.get(one.cases or 0, data.train_data.tensors)) for one in tried}
    compared = compare_static(shipped, judged[shipped], data, test) + compare_rivals(shipped, tried, judged, data, base)
    found = {name: one.outcome(data.visible_damage) for name, one in judged.items()}
    count = len(prompts) * noises_of_others
    some, part = cases[:count], [tensor[:count] for tensor in test]
    plain = compare_fewer_steps(data, some, part)
    words = [equal_damage(found[shipped]), cost_of_training(data, len(train))]
    for folder in others:
        words.append(compare_policy(folder, data, some, part, judged[shipped]))
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
        "Spearman: saved, robustness of the image": lambda level: "–" if level.agreement is None else f"{level.agreement:.2f}",
    }
    reached = {round(level.saved, 6): level for level in first.levels}
    facts = [
        [name, *(show(reached[level]) if level in reached else "not reached" for level in LEVELS)]
        for name, show in figures.items()
    ]
    write_table(title, heads, facts[:2] + plain + rows + compared + facts[2:], words, output / "evidence.md")
    content = {name: outcome.to_dict() for name, outcome in found.items()}
    (output / "evidence.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
