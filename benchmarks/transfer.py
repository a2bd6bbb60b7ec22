"""What is a policy worth where it was not trained? `python benchmarks/transfer.py`

Other numbers of steps, guidance and another sampler, on the test captions; the mixture of static schedules is that of the default
training and setting. Nothing is chosen on the test captions. Rollouts are kept in tables, as in `benchmarks/evidence.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from evidence import load_data, roll_out
from jsonargparse import auto_cli
from torch import Tensor
from variants import LEVELS
from written_tables import cell, write_table

from ada.data import load_prompts
from ada.noise import EVALUATION, noise_seed
from ada.policy import AdaPolicy, LadderPolicy
from ada.rollouts import Case, FrozenPipeline
from ada.schedules import Ladder, Tree
from ada.training import HeldOut, Outcome, RolloutDataModule, measure_outcome


@dataclass(frozen=True)
class Setting:
    """What differs from training.

    Args:
        name: for the table.
        call: arguments of the pipeline's call.
        sampler: class of another scheduler, made from the present one's configuration.
    """

    name: str
    call: tuple[tuple[str, Any], ...] = ()
    sampler: Any = None


SETTINGS = (
    Setting("as in training"),
    Setting("14 steps", (("num_inference_steps", 14),)),
    Setting("30 steps", (("num_inference_steps", 30),)),
    Setting("50 steps", (("num_inference_steps", 50),)),
    Setting("guidance 7", (("guidance_scale", 7.0),)),
    Setting("UniPC", sampler=UniPCMultistepScheduler),
)


@dataclass(frozen=True)
class Seen:
    """What the ladder does to the test captions in one setting, and what a policy would see.

    Args:
        ladder: for the setting's number of steps.
        sights, damage: `(cases, nodes, width)` and `(cases, rungs)`.
    """

    ladder: Ladder
    sights: Tensor
    damage: Tensor


def look(setting: Setting, data: RolloutDataModule, cases: Sequence[Case]) -> Seen:
    """Runs the ladder in another setting, or reads it from a table."""
    pipeline = data.pipeline.with_settings(**dict(setting.call))
    if setting.sampler is not None:
        parts = pipeline.pipeline.components
        other = type(pipeline.pipeline)(**parts | {"scheduler": setting.sampler.from_config(parts["scheduler"].config)})
        other.set_progress_bar_config(disable=True)
        pipeline = FrozenPipeline(other, pipeline.num_inference_steps, pipeline.arguments)
    ladder = data.ladder.for_steps(pipeline.num_inference_steps)
    collector = data.collector.beside(pipeline, ladder=ladder)
    roll_out(collector, cases, f": {setting.name}")
    return Seen(ladder, collector.sights(cases), collector.values(cases, "damage"))


def judge(policy: LadderPolicy, seen: Seen, data: RolloutDataModule) -> Outcome:
    """A policy in a setting, against the mixture that was chosen in the default one."""
    stretched = policy.with_options()
    stretched.ladder = seen.ladder
    # one noise each, so every case is a caption
    part = HeldOut(stretched, seen.sights, seen.damage, data.train_data.tensors[1], torch.arange(len(seen.damage)))
    tree = Tree.of(seen.ladder.actions, seen.ladder.decision_steps)
    return measure_outcome([part], tree, data.visible_damage, LEVELS)


def main(
    training: str = "configs/default.yaml",
    policies: Sequence[Path] = (Path("checkpoints/ada-emoji"),),
    train_limit: int | None = None,
    test_limit: int = 32,
    output: Path = Path("docs/evidence"),
) -> None:
    """Prints a table and writes transfer.md.

    Args:
        training: file of the default configuration.
        policies: their folders; all have its ladder.
        train_limit: training captions, on which the mixture is chosen; by default those of the configuration.
        test_limit: test captions, spread evenly; one noise each.
        output: folder to write to.
    """
    data, _ = load_data(training, train_limit)
    trained = [AdaPolicy.from_pretrained(policy) for policy in policies]
    train = data.cases("train")
    roll_out(data.collector, train, " on training captions")
    data.train_data = data.tensors(train)
    prompts = load_prompts("checkpoints/emoji-prompts", "test", limit=test_limit)
    numbered = zip(prompts["prompt"], prompts["index"], strict=True)
    # the first noise of the evidence
    cases = [Case(prompt, noise_seed(0, index * 16, EVALUATION)) for prompt, index in numbered]
    rows = []
    for setting in SETTINGS:
        seen = look(setting, data, cases)
        for policy, folder in zip(trained, policies, strict=True):
            assert isinstance(policy, LadderPolicy)
            outcome = judge(policy, seen, data)
            name = setting.name if len(policies) == 1 else f"{setting.name}: {folder}"
            rows.append([name, *(cell(outcome, level) for level in LEVELS)])
    title = (
        f"{len(cases)} test captions, one noise each: bounded damage; advantage over the mixture of static schedules, 95 %; share of the "
        "gap to the oracle that is closed. The mixture is that of 20 steps of DPM-Solver++ at guidance 4"
    )
    write_table(title, ["", *(f"{level:.0%} saved" for level in LEVELS)], rows, (), output / "transfer.md")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
