"""Where does reuse end? `python benchmarks/few_steps.py`

The embedded model distilled to four steps (`python examples/emoji/distill.py`) beside its teacher, and every schedule of reuse that four
steps have: what each does to the image, what choosing one of them per image could win, and what a policy makes of the one step that it
can decide about. On composed captions that neither model nor policy was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from evidence import roll_out
from jsonargparse import auto_cli
from torch import Tensor
from variants import Variant, judge
from written_tables import cell, write_table

from ada.data import load_prompts
from ada.noise import EVALUATION, noise_seed
from ada.policy import BaseModel
from ada.progress import progress
from ada.rewards import ClipScore, PerceptualDistance, WeightedReward
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS, Case, FrozenPipeline
from ada.schedules import Mixture, oracle_errors
from ada.statistics import studentised_interval
from ada.training import RolloutDataModule
from blockdance import Reuse, ReuseSchedule, full_compute

NUM_STEPS = 4
KINDS = (Reuse(boundary=11), Reuse(boundary=15))
"""After the paper's share of the blocks, and after the last block."""
SCHEDULES = torch.tensor([[0, *rest] for rest in product((0, 1), repeat=NUM_STEPS - 1)])
ORACLE_LEVELS = (0.05, 0.10, 0.15, 0.20, 0.30, 0.40, 0.50, 0.60)
POLICY_LEVELS = (0.05, 0.10, 0.15, 0.20)
BATCH_SIZE = 64
"""Images per call."""
HEADS = (
    "", "passes", "quality", "distance to the teacher's 20 steps: mean, median", "bounded damage to the student's 4 steps",
    "visibly changed",
)  # fmt: skip


class Way(NamedTuple):
    """One way to draw the captions: its name, the images `(captions, 3, height, width)`, and the share of its own full compute saved."""

    name: str
    images: Tensor
    saved: float


def draw(
    frozen: FrozenPipeline, cases: Sequence[Case], names: Sequence[str], schedules: ReuseSchedule | None = None
) -> list[Way]:
    """Runs schedules on all cases, or every step; those of one case share what they can.

    Args:
        frozen: the pipeline.
        cases: captions and noise.
        names: of the ways, one per schedule.
        schedules: a row each; None computes every step.
    """
    schedules = schedules or full_compute(1, frozen.num_inference_steps)
    count, size = len(names), max(1, BATCH_SIZE // len(names))
    images, saved = [], []
    with progress(f"Drawing: {names[-1]}", len(cases)) as advance:
        for start in range(0, len(cases), size):
            batch = cases[start : start + size]
            rows = [case for case in batch for _ in range(count)]
            plan = ReuseSchedule(schedules.actions.repeat(len(batch), 1), schedules.kinds)
            groups = [place // count for place in range(len(rows))]
            made = frozen.generate([row.prompt for row in rows], [row.seed for row in rows], plan, groups)
            images.append(made.images.unflatten(0, (len(batch), count)))
            saved.append(made.report.compute_saved.reshape(len(batch), count))
            advance(len(batch))
    drawn, shares = torch.cat(images), torch.cat(saved).mean(0).tolist()
    return [Way(name, drawn[:, place], shares[place]) for place, name in enumerate(names)]


@dataclass(frozen=True)
class Measures:
    """What is measured on every way.

    Args:
        quality: agreement with the caption.
        perceptual: distance to another image.
        prompts: one per image.
    """

    quality: ClipScore
    perceptual: PerceptualDistance
    prompts: Sequence[str]

    @torch.inference_mode()
    def distance(self, way: Way, reference: Way) -> Tensor:
        """Perceptual distance, `(captions,)`."""
        return self.perceptual(way.images, self.prompts, reference.images).clamp(min=0)

    @torch.inference_mode()
    def row(self, way: Way, passes: float, teacher: Way, student: Way | None = None) -> list[str]:
        """The cells of a way.

        Args:
            way: the way.
            passes: of the transformer, with every block computed.
            teacher: the images that quality is lost from.
            student: the images that reuse, or fewer steps, damage; None for a way of the teacher's.
        """
        far = self.distance(way, teacher)
        cells = [
            way.name, f"{passes * (1 - way.saved):.2f}", interval(self.quality(way.images, self.prompts), 2),
            f"{far.mean():.4f}, {far.median():.4f}",
        ]  # fmt: skip
        if student is None:
            return [*cells, "", ""]
        damage = self.distance(way, student)
        return [*cells, interval(bounded_damage(damage), 3), f"{visibly_changed(damage).mean():.0%}"]


def interval(values: Tensor, decimals: int) -> str:
    """Mean and the ends of its interval."""
    mean, low, high = studentised_interval(values)
    return f"{mean:.{decimals}f} ({low:.{decimals}f} … {high:.{decimals}f})"


def bound(ways: Sequence[Way], damage: Tensor) -> str:
    """What the best choice per image could win over a mixture of static schedules, both chosen in hindsight."""
    cost, saved = bounded_damage(damage).double(), torch.tensor([way.saved for way in ways], dtype=torch.float64)
    mixture = Mixture.of(cost, saved)
    levels = [level for level in ORACLE_LEVELS if level <= mixture.saved[-1]]
    found = (
        f"{level:.0%}: {float(mixture.errors(cost, level).mean()):.3f} and {float(oracle_errors(cost, saved, level).mean()):.3f}"
        for level in levels
    )
    return (
        "Bounded damage of the mixture of these schedules and of the oracle, at equal compute saved: " + "; ".join(found) + "."
    )


def policy_words(
    student: FrozenPipeline, scorer: str, ladder: str, train_limit: int, cases: Sequence[Case], table: Path
) -> str:
    """A policy of the ladder, trained on other captions, on these cases: what it is worth at every level."""
    reward = WeightedReward({"perceptual": PerceptualDistance(scorer)}, {"perceptual": 1.0})
    data = RolloutDataModule(student, reward, ladder, train_split="composed_train", train_limit=train_limit, table=table)
    train = data.cases("train")
    data.reuse_costs = student.reuse_costs(data.ladder.kinds, train[0].prompt)
    for title, some in (("training", train), ("other", cases)):
        roll_out(data.collector, some, f" on {title} captions")
    data.train_data = data.tensors(train)
    base = BaseModel.of(student.transformer)
    judged = judge(Variant("policy", {}), data, base, data.tensors(cases).tensors, data.train_data.tensors)
    outcome = judged.outcome(data.visible_damage, POLICY_LEVELS)
    found = (f"{level:.0%} saved: {cell(outcome, level)}" for level in POLICY_LEVELS)
    return "; ".join(found) + "."


def main(
    student: str = "runs/emoji-distilled/pipeline",
    teacher: str = EMBEDDED,
    scorer: str = "checkpoints/emoji-scorer",
    ladder: str = "configs/ladders/emoji_four_steps.json",
    limit: int = 128,
    train_limit: int = 240,
    table: Path = Path("runs/tables"),
    output: Path = Path("docs/evidence"),
) -> None:
    """Prints tables and writes few_steps.md.

    Args:
        student: folder of the distilled pipeline.
        teacher: folder of the pipeline that it was distilled from.
        scorer: folder of the CLIP that measures quality and distance.
        ladder: file of the ladder that the policy chooses from.
        limit: composed captions of the validation split, spread evenly; one noise each.
        train_limit: composed captions of the training split that the policy learns from.
        table: folder of its rollouts.
        output: folder to write to.
    """
    slow = FrozenPipeline(teacher, 20, EMBEDDED_ARGUMENTS)
    fast = FrozenPipeline(student, NUM_STEPS, {**EMBEDDED_ARGUMENTS, "guidance_scale": 1.0})
    prompts = load_prompts("checkpoints/emoji-prompts", "composed_validation", limit=limit)
    numbered = zip(prompts["prompt"], prompts["index"], strict=True)
    cases = [Case(prompt, noise_seed(0, index, EVALUATION)) for prompt, index in numbered]
    by_steps = {
        steps: draw(slow.with_settings(num_inference_steps=steps), cases, [f"teacher, {steps} steps, guidance"])[0]
        for steps in (20, 8, NUM_STEPS)
    }
    unguided = slow.with_settings(NUM_STEPS, guidance_scale=1.0)
    plain = draw(unguided, cases, ["teacher, 4 steps, no guidance"])[0]
    fewer = {
        steps: draw(fast.with_settings(num_inference_steps=steps), cases, [f"student, {steps} steps"])[0] for steps in (3, 2)
    }
    actions = torch.cat([SCHEDULES, 2 * SCHEDULES[1:]])
    names = ["student, 4 steps"]
    names += [f"`{''.join(map(str, row.tolist()))}`, block {kind.boundary}" for kind in KINDS for row in SCHEDULES[1:]]
    student_ways = draw(fast, cases, names, ReuseSchedule(actions, KINDS))
    original, own = by_steps[20], student_ways[0]

    measured = Measures(ClipScore(scorer), PerceptualDistance(scorer, scale=-1.0), [case.prompt for case in cases])
    rows = [
        *(measured.row(way, 2 * steps, original) for steps, way in by_steps.items()),
        measured.row(plain, NUM_STEPS, original),
        *(measured.row(way, NUM_STEPS, original, own) for way in student_ways),
        *(measured.row(way, steps, original, own) for steps, way in fewer.items()),
    ]
    damage = torch.stack([measured.distance(way, own) for way in student_ways], 1)
    words = [
        bound(student_ways, damage),
        f"A policy that decides after the third step about the fourth ({ladder}, {train_limit} training captions), beside the mixture of "
        "that ladder alone: " + policy_words(fast, scorer, ladder, train_limit, cases, table),
    ]
    title = f"{len(cases)} composed captions, one noise each. Passes: of the transformer for one image; intervals are 95 %"
    write_table(title, HEADS, rows, words, output / "few_steps.md")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
