"""What `benchmarks/evidence.py` computes of a table of rollouts."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ladders import build_ladder
from torch import Tensor
from torch.utils.data import TensorDataset

from ada.policy import BaseModel, LadderPolicy
from ada.policy.curve import Curve
from ada.policy.sight import NUM_SIGNS
from ada.rewards.damage import bounded_damage
from ada.schedules import Tree
from ada.statistics import share_difference
from ada.training.outcome import HeldOut, LevelOutcome, Outcome
from benchmarks.evidence import save_gates
from benchmarks.off_ladder import best_of_others, moves_of
from benchmarks.reward_ablation import scale_for
from benchmarks.rivals import best_single, compare_pair, equal_damage, more_often, spread
from benchmarks.variants import Imitation, Judged, Variant, at_looks, cross_fit, fit, keep_inputs


def test_spread_by_hand() -> None:
    """Two images, two rungs: the first image takes its rungs in turn, the second always its second one."""
    damage = torch.tensor([[0.0, 4.0], [1.0, 2.0]])
    chances = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    assert spread(damage, chances) == "2.0000, 2.0000, 4.0000"


def test_how_much_more_often_images_are_changed_counts_captions() -> None:
    """Of 40 captions with two images each the first has one image changed and the second both, and by the other none: 1.5 of 40, with
    the interval that Newcombe's method gives for these shares."""
    changed = torch.tensor([True, False, True, True] + [False] * 76)
    expected = share_difference([0.5, 1.0] + [0.0] * 38, [0.0] * 40)
    found = [float(each) for each in re.findall(r"[+-][\d.]+", more_often(changed, torch.zeros(80), torch.arange(80) // 2))]
    assert found == pytest.approx([0.0375, expected.low, expected.high], abs=1e-4)


def test_the_best_single_schedule_saves_enough() -> None:
    cost = torch.tensor([[0.0, 0.3, 0.2, 0.6], [0.0, 0.3, 0.2, 0.6]])
    saved = torch.tensor([0.0, 0.1, 0.199, 0.3])
    assert [best_single(cost, saved, level) for level in (0.0, 0.1, 0.2, 0.3)] == [0, 2, 2, 3]


def test_what_is_saved_at_equal_damage_lies_between_two_weights() -> None:
    """The mixture does 0.3 damage at 40 %; the policy 0.2 at 42 % and 0.4 at 46 %, so 0.3 at 44 %."""
    curve = Curve([1.0, 2.0, 3.0], [0.46, 0.42, 0.1], [0.4, 0.2, 0.0], [0.0, 0.0, 0.0])
    level = LevelOutcome(0.4, 0.2, 0.3, 0.1, (0.1, 0.0, 0.2), 0.0, 0.0, 0.5, 3, 0.5)
    assert "44.0% rather than 40%" in equal_damage(Outcome((level,), curve, 10, 10))


def test_the_scale_of_a_loss_gives_the_mean_asked_for() -> None:
    losses = torch.tensor([0.0, 1e-3, 0.5, 20.0])
    assert float(bounded_damage(losses, scale_for(losses, 0.3)).mean()) == pytest.approx(0.3, abs=1e-4)


def test_parts_of_what_is_seen_are_apart() -> None:
    """Signs, features and prompt make up everything, and no number is in two of them."""
    sights, prompt_width = torch.ones(2, 3, NUM_SIGNS + 12), 4
    parts = [keep_inputs(sights, inputs, prompt_width) for inputs in ("signs", "features", "prompt")]
    assert [int(part[0, 0].sum()) for part in parts] == [NUM_SIGNS, 8, 4]
    assert torch.equal(sum(parts), keep_inputs(sights, "all", prompt_width))


def test_fewer_looks_are_nodes_of_the_ladder() -> None:
    """The ladder that looks less often sees its own nodes among all, in its own order."""
    ladder = build_ladder()
    fewer, nodes = at_looks(ladder, ladder.decision_steps[:1])
    tree = Tree.of(ladder.actions, ladder.decision_steps)
    assert fewer.decision_steps == ladder.decision_steps[:1]
    assert tree.nodes[nodes].tolist() == Tree.of(fewer.actions, fewer.decision_steps).nodes.tolist()


BASE = BaseModel(transformer="Toy", num_blocks=4, latent_channels=4, prompt_width=0)


def toy_cases(count: int, sign: int) -> tuple[Tensor, Tensor]:
    """Sights of which one sign tells how sensitive an image is, and the damage of the ladder's rungs."""
    ladder, generator = build_ladder(), torch.Generator().manual_seed(0)
    sensitivity = 2 * torch.randn(count, generator=generator)
    sights = torch.randn(count, len(Tree.of(ladder.actions, ladder.decision_steps).nodes), NUM_SIGNS + 8, generator=generator)
    sights[:, :, sign] = sensitivity[:, None]
    return sights, 0.004 * sensitivity.exp()[:, None] * torch.tensor([0.0, 0.15, 0.3, 0.6, 1.2, 1.5])


def test_imitation_learns_the_oracles_rungs() -> None:
    """What imitates the oracle on some cases comes close to it on others."""
    ladder, costs, visible, base = build_ladder(), [0.1, 0.1], 0.003, BASE
    sights, damage = toy_cases(400, sign=3)
    variant = Variant("imitation", {"num_components": 4}, training=Imitation)
    trained = fit(variant, ladder, costs, base, sights[:200], bounded_damage(damage[:200], visible))
    part = HeldOut(trained.policy, sights[200:], damage[200:], damage[:200], torch.arange(200))
    judged = Judged([part], trained.tree)
    assert judged.outcome(visible, (0.2,)).at(0.2).gap_closed > 0.6

    # beside itself it has no advantage, beside the same policy that sees other images' states it has
    assert compare_pair("itself", judged, judged, visible)[3] == "+0.0000 (+0.0000 … +0.0000)"
    blind = Judged([replace(part, sights=part.sights.flip(0))], trained.tree)
    mean, low, _ = map(float, re.findall(r"[+-][\d.]+", compare_pair("the blind one", judged, blind, visible)[3]))
    assert mean > low > 0


def data_of(sights: Tensor, damage: Tensor) -> Any:
    """What is read of a data module: two cases of every caption."""
    captions = torch.arange(len(sights)) // 2
    return SimpleNamespace(
        ladder=build_ladder(), reuse_costs=[0.1, 0.1], visible_damage=0.003, train_data=TensorDataset(sights, damage, captions)
    )


def test_every_case_is_decided_once_by_a_policy_that_did_not_learn_from_its_caption() -> None:
    """Those of one fold learn nothing from their own damage: whatever it is, they are decided as before."""
    sights, damage = toy_cases(64, sign=3)
    variant = Variant("policy", {"num_components": 4, "folds": 4})
    training, judged = cross_fit(variant, data_of(sights, damage), BASE)
    seen = torch.cat([part.captions for part in judged.parts if part.captions is not None])
    assert sorted(seen.tolist()) == [place // 2 for place in range(64)]
    other = damage.clone()
    first = ~training.kept[1]
    other[first] = other[first].flip(0)
    again, _ = cross_fit(variant, data_of(sights, other), BASE)
    for name, value in judged.parts[0].policy.state_dict().items():
        assert torch.equal(value, again.policies[1].state_dict()[name]), name
    assert not torch.equal(training.policy.coefficients, again.policy.coefficients)


def test_gates_that_are_saved_meet_budgets_and_see_six_scalars_alone(tmp_path: Path) -> None:
    """The first of them tells the sensitivity; all that they do not see may change."""
    sights, damage = toy_cases(64, sign=0)
    save_gates(data_of(sights, damage), BASE, {"num_components": 4, "folds": 4}, tmp_path)
    others = sights.clone()
    others[:, :, NUM_SIGNS:], others[:, :, 1:5] = 7.0, 7.0
    stages = Tree.of(build_ladder().actions, build_ladder().decision_steps).nodes[:, 0]
    for name in ("critic", "imitation"):
        gate = LadderPolicy.from_pretrained(tmp_path / name)
        assert gate.with_options(mean_compute=0.85).quality_weight > 0
        predicted = gate.predict(sights, stages)
        torch.testing.assert_close(gate.predict(others, stages), predicted)
        assert predicted.std(0).max() > 0.05


def test_a_reuse_moves_by_a_step_where_it_may() -> None:
    """Not before the first open step, not onto another reuse, not onto the last step; it keeps its kind."""
    moves = moves_of(torch.tensor([0, 0, 0, 2, 0, 1, 1, 0]), first=3)
    assert moves == [[0, 0, 0, 0, 2, 1, 1, 0], [0, 0, 0, 2, 1, 0, 1, 0]]


def test_the_best_move_is_that_of_other_captions() -> None:
    """The last schedule is best by far on the first caption alone: which does not choose it, and all others do."""
    cost = torch.full((8, 3), 0.5, dtype=torch.float64)
    cost[:, 0], cost[:, 2], cost[0, 2] = 0.0, 0.55, 0.0
    assert best_of_others(cost, torch.arange(8)).tolist() == [1, *[2] * 7]


@pytest.mark.parametrize("name", ["evidence", "few_steps", "off_ladder", "reward_ablation", "scale_shift", "transfer"])
def test_it_starts_as_the_docs_say(name: str) -> None:
    """`python benchmarks/<name>.py`: from the checkout, with nothing but what is installed on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    finished = subprocess.run(command, cwd=Path(__file__).parents[4], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--training" in finished.stdout or "--student" in finished.stdout
