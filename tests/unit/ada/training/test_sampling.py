"""Sampled schedules, and the table that spares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ladders import CASES, KINDS, actions_of, build_frozen
from torch import Tensor
from torch.nn import functional as F

from ada import processor
from ada.rewards import PSNR, WeightedReward
from ada.rollouts import Case, Collector
from ada.schedules import Ladder
from ada.training import StepTraining
from ada.training.sampling import SampledRollout

PROMPTS, SEEDS = [case.prompt for case in CASES], [case.seed for case in CASES]
DECISION_STEP = 3
LINEAR = F.linear


def build_training(table: Path | None, **options: Any) -> StepTraining:
    reward = WeightedReward({"psnr": PSNR()}, {"psnr": 0.1}, **options)
    training = StepTraining(build_frozen(), reward, KINDS, forced_tail=0.15, table=table, hidden_size=16, num_heads=2)
    training.prepare("a")
    return training


def count_rows(training: StepTraining) -> list[int]:
    """Rows that the last block, which no kind of reuse skips, runs in every call from now on."""
    rows: list[int] = []
    training.pipeline.transformer.transformer_blocks[-1].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def roll_out(training: StepTraining, decisions: list[list[str]], with_images: bool = False) -> SampledRollout:
    """Decisions of each prompt, as strings of actions."""
    drawn = torch.stack([actions_of(*group) for group in decisions])

    def draw(logits: Tensor) -> Tensor:
        assert logits.shape == (len(PROMPTS), drawn.shape[2], 1 + len(KINDS))
        return drawn

    ones = torch.ones(len(PROMPTS))
    return training.sampler.roll_out(training.policy, PROMPTS, SEEDS, ones, draw, drawn.shape[1], False, with_images)


def same(one: SampledRollout, other: SampledRollout, tolerance: float) -> None:
    for name in ("quality", "compute_saved", "logits", "reference"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=0)
    torch.testing.assert_close(one.parts["psnr"], other.parts["psnr"], atol=10 * tolerance, rtol=0)
    assert torch.equal(one.decisions, other.decisions)
    assert one.kept.all()


def test_the_settings_are_those_that_the_tests_say() -> None:
    policy = build_training(None).policy
    assert policy.decision_steps(8) == (DECISION_STEP,)
    assert list(policy.decided_steps(8)) == [4, 5, 6]


class Noting(PSNR):
    """Notes whether linear layers are torch's own while it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        self.found.append(F.linear is LINEAR)
        return super().__call__(images, prompts, reference)


def test_both_ways_of_rolling_out_score_by_the_fastest_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "is_held_back", lambda: True)
    training, noting = build_training(None), Noting()
    training.reward.rewards["psnr"] = noting
    roll_out(training, [["101"]] * 3)
    assert noting.found
    assert not any(noting.found)
    noting.found.clear()
    ladder = Ladder(actions_of("00000000", "00001010"), KINDS, (2, 4))
    Collector(training.pipeline, training.reward, ladder, None, processes=1).fill(CASES[:1])
    assert noting.found
    assert not any(noting.found)
    assert F.linear is LINEAR


def test_what_is_in_the_table_is_not_run_again(tmp_path: Path) -> None:
    group = [["101", "010"], ["222", "010"], ["001", "000"]]
    plain = roll_out(build_training(None), group)
    training = build_training(tmp_path)
    first = roll_out(training, group)
    assert first.images is not None
    assert plain.images is not None
    assert torch.equal(first.images, plain.images), "an empty table changes nothing"
    same(first, plain, 0.0)
    rows = count_rows(training)
    second = roll_out(training, group)
    assert not rows, "all up to the decision is on the tape, all after it in the table"
    assert second.images is None
    same(second, first, 0.0)

    # another run of the same settings has no tape, but the table
    later = build_training(tmp_path)
    rows = count_rows(later)
    third = roll_out(later, group)
    assert rows == [2] * 8 * len(PROMPTS), "the references alone, in two branches"
    same(third, first, 0.0)


def test_schedules_that_are_new_are_run_beside_those_that_are_known(tmp_path: Path) -> None:
    training = build_training(tmp_path)
    roll_out(training, [["101", "010"], ["222", "010"], ["001", "000"]])
    group = [["101", "110"], ["222", "010"], ["100", "100"]]
    rows = count_rows(training)
    found = roll_out(training, group)
    # one new schedule of the first prompt, one of the last; they start after the tape, at step 4
    assert sum(rows) == 2 * 2 * 4
    same(found, roll_out(build_training(None), group), 1e-4)
    rows.clear()
    pictured = roll_out(training, group, with_images=True)
    assert rows, "images that are wanted are made"
    assert pictured.images is not None
    assert pictured.images.shape == (3, 2, 3, 16, 16)
    same(pictured, found, 0.0)


def test_a_ladders_rollouts_serve_sampled_ones(tmp_path: Path) -> None:
    """Of the same settings: all schedules that compute up to the decision."""
    training = build_training(tmp_path)
    ladder = Ladder(actions_of("00000000", "00001010", "00002220"), KINDS, (2, 4))
    Collector(training.pipeline, training.reward, ladder, tmp_path).fill(CASES)
    later = build_training(tmp_path)
    rows = count_rows(later)
    found = roll_out(later, [["101", "222"]] * 3)
    assert rows == [2] * 8 * len(PROMPTS), "the references alone"
    same(found, roll_out(build_training(None), [["101", "222"]] * 3), 1e-4)


def test_a_reward_that_depends_on_other_images_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scored once and kept"):
        build_training(tmp_path, normalisation={"psnr": "running"})
    build_training(None, normalisation={"psnr": "running"})


def test_cases_are_told_apart_by_their_noise(tmp_path: Path) -> None:
    training = build_training(tmp_path)
    first = roll_out(training, [["101"]] * 3)
    assert training.sampler._table is not None
    assert not training.sampler._table.knows(Case(PROMPTS[0], 99), "00001010", "psnr")
    assert len(set(first.quality.flatten().tolist())) == 3
