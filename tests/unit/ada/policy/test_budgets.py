"""Exact budgets: by hand, and against every assignment of schedules to images."""

from itertools import product

import pytest
import torch
from torch import Tensor

from ada.policy.budgets import nearest, share_budget, trim

SAVED = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])


def convex_damage(num_images: int, seed: int) -> Tensor:
    """Damages that grow ever faster along `SAVED`."""
    steps = torch.rand(num_images, len(SAVED) - 1, generator=torch.Generator().manual_seed(seed)).sort(1).values
    return torch.cat([torch.zeros(num_images, 1), steps.cumsum(1)], 1)


def spread(damage: Tensor, wanted: float, is_open: Tensor | None = None, done: float = 0.0) -> Tensor:
    is_open = torch.ones_like(damage, dtype=torch.bool) if is_open is None else is_open
    return share_budget(damage, SAVED.expand_as(damage), is_open, torch.full((len(damage),), done), wanted)


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_way_to_spend_the_budget_damages_less(wanted: float, seed: int) -> None:
    damage = convex_damage(4, seed)
    shared = spread(damage, wanted)
    assert shared.mean().item() == pytest.approx(wanted, abs=1e-6)
    places = (shared[:, None] - SAVED).abs().argmin(1)
    ours = damage.gather(1, places[:, None]).sum().item()
    ways = [way for way in product(range(5), repeat=4) if sum(way) == round(40 * wanted)]
    best = min(sum(damage[image, place].item() for image, place in enumerate(way)) for way in ways)
    assert ours == pytest.approx(best, abs=1e-6)


def test_a_schedule_above_the_hull_is_passed_over() -> None:
    """The first image's 10 % cost as much as its 20 %; so it saves nothing until 20 % are its turn."""
    damage = torch.tensor([[0.0, 0.3, 0.3, 0.9, 2.0], [0.0, 0.1, 0.3, 0.9, 2.0]])
    assert spread(damage, 0.05).tolist() == pytest.approx([0.0, 0.1], abs=1e-6)
    assert spread(damage, 0.15).tolist() == pytest.approx([0.2, 0.1], abs=1e-6)
    # what is left of the budget is part of a move
    assert spread(damage, 0.1).tolist() == pytest.approx([0.1, 0.1], abs=1e-6)


def test_what_is_closed_is_not_taken() -> None:
    damage = convex_damage(2, 0)
    is_open = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])
    assert spread(damage, 0.1, is_open).tolist() == pytest.approx([0.0, 0.2], abs=1e-6)
    assert spread(damage, 0.4, is_open).tolist() == pytest.approx([0.1, 0.4], abs=1e-6)
    # the second image can take none, and has saved 20 %: the first one makes up for it
    is_open = torch.tensor([[True] * 5, [False] * 5])
    shared = share_budget(damage, SAVED.expand(2, -1), is_open, torch.tensor([0.0, 0.2]), 0.25)
    assert shared.tolist() == pytest.approx([0.3, 0.2], abs=1e-6)


def test_where_the_open_schedules_save_too_much_the_most_damaged_compute() -> None:
    damage = torch.tensor([[0.1] * 5, [0.3] * 5, [0.2] * 5])
    is_open = SAVED.expand(3, -1) >= 0.2
    assert spread(damage, 0.2, is_open).tolist() == pytest.approx([0.2, 0.2, 0.2], abs=1e-6)
    assert spread(damage, 0.15, is_open, done=0.1).tolist() == pytest.approx([0.2, 0.1, 0.15], abs=1e-6)
    assert spread(damage, 0.0, is_open, done=0.1).tolist() == pytest.approx([0.1, 0.1, 0.1], abs=1e-6)


ACTIONS = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0], [0, 1, 0, 2, 0, 2], [0, 1, 1, 1, 1, 1]])
SAVES = torch.tensor([0.0, 0.1, 0.05])  # so these save 0, 20, 20 and 50 %


def test_the_last_reuses_are_trimmed_and_what_is_done_stays() -> None:
    target = torch.tensor([0.5, 0.31, 0.12, 0.0])
    trimmed = trim(ACTIONS.expand(len(target), -1, -1), SAVES, 2, target)
    assert trimmed[:, 1].tolist() == [[0, 1, 0, 0, 1, 0]] * 2 + [[0, 1, 0, 0, 0, 0]] * 2
    assert trimmed[:, 2].tolist() == [[0, 1, 0, 2, 0, 2]] * 2 + [[0, 1, 0, 0, 0, 0]] * 2
    whole, cut = [0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]  # step 1 is done
    assert trimmed[:, 3].tolist() == [whole, [0, 1, 1, 1, 0, 0], cut, cut]


def test_the_nearest_from_which_least_is_trimmed() -> None:
    is_open = torch.tensor([[True] * 4] * 5 + [[True, True, False, False]])
    target = torch.tensor([0.2, 0.3, 0.1, 0.16, 0.9, 0.3])
    trimmed = trim(ACTIONS.expand(len(target), -1, -1), SAVES, 1, target)
    allowed = nearest(trimmed, ACTIONS, SAVES, target, is_open, tolerance=0.005)
    # 20 % as they are; 30 % cut from 50; 10 % cut from the 20s; 15 % from the one with half steps; else what is nearest
    assert [row.nonzero().flatten().tolist() for row in allowed] == [[1, 2], [3], [1, 2], [2], [3], [1]]
