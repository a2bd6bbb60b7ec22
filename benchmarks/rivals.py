"""What a policy stands beside: the best single schedule, simple rules, fewer steps, policies of another kind; and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from variants import LEVELS, Judged

from ada.policy import AdaPolicy
from ada.processes import num_processes, work_off
from ada.progress import progress
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.rollouts import Case, FrozenPipeline, Table
from ada.schedules import Mixture
from ada.statistics import share_difference
from ada.training import Outcome, RolloutDataModule
from ada.training.outcome import paired_interval
from blockdance import Plan, full_compute


def compare_static(name: str, ours: Judged, data: RolloutDataModule, test: Sequence[Tensor]) -> list[list[str]]:
    """Rows of the table: a policy's advantage over the best single schedule that saves as much, paired; and the raw distances of policy
    and mixture."""
    visible, saved = data.visible_damage, data.ladder.saved(data.reuse_costs)
    cost, train_cost = bounded_damage(test[1], visible).double(), bounded_damage(data.train_data.tensors[1], visible)
    mixture = Mixture.of(train_cost, saved)
    single = [f"advantage of {name} over the best single schedule"]
    raw = [[f"distance, {one}: mean, median, 90 % quantile"] for one in (name, "mixture")]
    for level in LEVELS:
        chances = ours.chances(level)
        if chances is None:
            for row in (single, *raw):
                row.append("not reached")
            continue
        error = (chances * cost).sum(1)
        single.append(advantage(cost[:, best_single(train_cost, saved, level)] - error, test[2]))
        for row, shares in zip(raw, (chances, mixture.shares(level, len(saved)).expand_as(chances)), strict=True):
            row.append(spread(test[1], shares))
    return [single, *raw]


def compare_pair(name: str, ours: Judged, rival: Judged, visible: float) -> list[str]:
    """A row of the table, with its name: a policy's advantage over a rival that is judged on the same cases in the same order, paired."""
    cost = torch.cat([bounded_damage(part.damage, visible) for part in ours.parts]).double()
    captions = torch.cat([part.captions for part in ours.parts])
    row = [name]
    for level in LEVELS:
        own, theirs = ours.chances(level), rival.chances(level)
        reached = own is not None and theirs is not None
        row.append(advantage(((theirs - own) * cost).sum(1), captions) if reached else "not reached")
    return row


def best_single(cost: Tensor, saved: Tensor, level: float) -> int:
    """The schedule of least mean damage among those that save as much, but for the part of a step that reuse costs.

    Raises:
        ValueError: none does.
    """
    enough = (saved >= level - 0.01).nonzero().flatten()
    if not len(enough):
        raise ValueError(f"The ladder saves {float(saved.max()):.1%} at most, and is to be judged at {level:.0%}.")
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
    names = list(attempts)
    settings = {"base": pipeline.fingerprint(), "attempts": names, "reward": reward.describe()}
    table = Table(data.collector.folder, settings)
    todo = [case for case in cases if not all(table.knows(case, name) for name in names)]
    reference = Attempt(pipeline, full_compute(1, pipeline.num_inference_steps))

    def run(batch: Sequence[Case]) -> tuple[list[tuple[Case, str]], dict[str, Tensor]]:
        prompts, seeds = [case.prompt for case in batch], [case.seed for case in batch]
        made = [one.pipeline.generate(prompts, seeds, one.plan) for one in (reference, *attempts.values())]
        with torch.inference_mode():
            losses = [-reward(some.images, prompts, made[0].images).total for some in made]
        damage = torch.stack([(loss - losses[0]).clamp(min=0) for loss in losses[1:]], 1)
        saved = torch.stack([some.report.compute_saved for some in made[1:]], 1)
        return [(case, name) for case in batch for name in names], {"damage": damage.flatten(), "saved": saved.flatten()}

    batches = [[todo[start : start + batch_size]] for start in range(0, len(todo), batch_size)]
    with progress(f"Running {name} on test captions", len(todo)) as advance:
        for rows, values in work_off(batches, run, num_processes(pipeline.device)):
            table.add(rows, values)
            advance(len(rows) // len(names))
    damage, saved = (torch.stack([table.values(case, names, name) for case in cases]) for name in ("damage", "saved"))
    return damage, saved


def compare_fewer_steps(data: RolloutDataModule, cases: Sequence[Case], test: Sequence[Tensor]) -> list[list[str]]:
    """Rows of the table: fewer steps at every level, and how much better the best static schedules are: mixed, and the single one, which
    is also set beside them in visibly changed images and in the median."""
    num_steps, visible = data.pipeline.num_inference_steps, data.visible_damage
    counts = [round(num_steps * (1 - level)) for level in LEVELS]
    attempts = {
        f"{count} steps": Attempt(data.pipeline.with_settings(num_inference_steps=count), full_compute(1, count))
        for count in counts
    }
    damage, _ = try_out(data, cases, "fewer steps", attempts)
    damage = damage[:, [list(attempts).index(f"{count} steps") for count in counts]]  # with few steps, levels share a number
    cost, changed = bounded_damage(damage, visible), visibly_changed(damage, visible)
    saved = data.ladder.saved(data.reuse_costs)
    train_cost, static = bounded_damage(data.train_data.tensors[1], visible), bounded_damage(test[1], visible)
    mixture = Mixture.of(train_cost, saved)
    names = (
        "as many steps fewer",
        "advantage of the mixture over fewer steps",
        "advantage of the best single schedule that saves as much over fewer steps",
        "visibly changed more often by fewer steps than by that schedule",
        "median distance, that schedule and fewer steps",
    )
    rows = [[name] for name in names]
    for place, level in enumerate(LEVELS):
        best = best_single(train_cost, saved, level)
        plain, schedule = damage[:, place], test[1][:, best]
        cells = (
            f"{cost[:, place].mean():.4f}, visibly changed {changed[:, place].float().mean():.1%}",
            advantage(cost[:, place] - mixture.errors(static, level), test[2]),
            advantage(cost[:, place] - static[:, best], test[2]),
            more_often(changed[:, place], visibly_changed(schedule, visible), test[2]),
            f"{schedule.median():.5f}, {plain.median():.5f}",
        )
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return rows


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
    """How much more than the mixture the policy saves at the same mean damage, two neighbouring λ mixed, in words: the λ are read off
    the cases that it is judged on, and where its curve is not monotone the least saving counts."""
    points = list(zip(outcome.curve.damage, outcome.curve.saved, strict=True))
    found = []
    for level in outcome.levels:
        reached = [
            saved + (other - saved) * (level.mixture - damage) / (more - damage)
            for (more, other), (damage, saved) in pairwise(points)
            if damage <= level.mixture < more
        ]
        least = points[0]  # the smallest λ
        if reached:
            found.append(f"{min(reached):.1%} rather than {level.saved:.0%}")
        elif least[0] <= level.mixture:
            found.append(f"{least[1]:.1%} or more rather than {level.saved:.0%}")
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


def more_often(changed: Tensor, other: Tensor, captions: Tensor) -> str:
    """How much more often images are changed, 0 or 1 each, with the 95 % interval; a caption counts once."""
    shares = [[float(side[captions == caption].double().mean()) for caption in captions.unique()] for side in (changed, other)]
    found = share_difference(*shares)
    return f"{found.value:+.4f} ({found.low:+.4f} … {found.high:+.4f})"
