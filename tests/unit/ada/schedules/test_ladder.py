"""Ladders: what is refused, files, other numbers of steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ladders import CASES, KINDS, RUNGS, actions_of, build_frozen, build_ladder, build_reward

from ada.schedules import Ladder, LadderError
from ada.schedules.ladder import stretch
from ada.search import ScheduleSearch
from blockdance import BlockDanceError, Reuse, ReuseSchedule

EMOJI = Path("configs/ladders/emoji.json")


@pytest.mark.parametrize(
    ("rungs", "steps", "message"),
    [
        (("00010000", "00000010"), (2, 4), "first rung must compute every step"),
        (("00000000", "00000030"), (2, 4), "A rung is no schedule.*between 0"),
        (("00000000", "10000000"), (2, 4), "A rung is no schedule.*reuses with 0 computed steps"),
        (("00000000", "00010010"), (), "`decision_steps` must ascend"),
        (("00000000", "00000010"), (4, 2), "`decision_steps` must ascend"),
        (("00000000", "00000010"), (3, 3), "`decision_steps` must ascend"),
        (("00000000", "00000010"), (1, 4), "from 2 or more"),
        (("00000000", "00000010"), (2, 7), "less than the last of the 8 steps"),
        (("00000000", "00000010", "00010010"), (3, 4), "Rung 2 reuses before the first decision, which comes after step 3"),
    ],
)
def test_what_is_no_ladder_is_named(rungs: tuple[str, ...], steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(LadderError, match=message):
        Ladder(actions_of(*rungs), KINDS, steps)


def test_file_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ladder.json"
    ladder = build_ladder()
    ladder.save(file)
    content = json.loads(file.read_text())
    assert content["rungs"] == list(RUNGS)
    assert content["kinds"][1] == {"boundary": 1, "order": 1, "weight": 0.5}
    again = Ladder.load(file)
    assert torch.equal(again.actions, ladder.actions)
    assert (again.kinds, again.decision_steps) == (KINDS, (2, 4))


def test_a_ladder_of_many_kinds_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Twelve kinds: a letter an action, as tables of rollouts name them."""
    kinds = tuple(
        Reuse(boundary=boundary, order=1, weight=weight) for boundary in (1, 2, 3) for weight in (0.25, 0.5, 0.75, 1.0)
    )
    actions = actions_of("00000000", "00000010", "00000010")
    actions[2, 4:7] = torch.tensor([11, 10, 12])
    ladder = Ladder(actions, kinds, (2, 3))
    ladder.save(tmp_path / "ladder.json")
    assert ladder.to_dict()["rungs"] == ["00000000", "00000010", "0000bac0"]
    again = Ladder.load(tmp_path / "ladder.json")
    assert torch.equal(again.actions, actions)
    assert again.kinds == kinds


def test_more_kinds_than_letters_are_named() -> None:
    """Before a search begins, and not when its ladder is written."""
    kinds = tuple(Reuse(boundary=boundary) for boundary in range(62))
    Ladder(actions_of("00000000"), kinds[:61], (2, 4))
    with pytest.raises(BlockDanceError, match="At most 61 kinds of reuse can be on offer; got 62"):
        Ladder(actions_of("00000000"), kinds, (2, 4))
    with pytest.raises(LadderError, match="At most 61 kinds"):
        ScheduleSearch(build_frozen(), build_reward(), CASES, kinds)


def test_files_that_hold_no_ladder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json.*ada search"):
        Ladder.load(tmp_path / "none.json")
    good = build_ladder().to_dict()
    broken = {
        "not JSON": "{",
        "It needs `kinds`, `decision_steps` and `rungs`": json.dumps({"rungs": list(RUNGS)}),
        "This is no ladder": json.dumps(good | {"rungs": ["0000000?"]}),
        "unexpected keyword": json.dumps(good | {"kinds": [{"boundery": 2}]}),
        "Two rungs are the same": json.dumps(good | {"rungs": [*RUNGS, RUNGS[2]]}),
        "first rung must compute": json.dumps(good | {"rungs": list(RUNGS[1:])}),
    }
    for message, text in broken.items():
        (tmp_path / "ladder.json").write_text(text)
        with pytest.raises(LadderError, match=r"ladder\.json holds no ladder" if message == "not JSON" else message):
            Ladder.load(tmp_path / "ladder.json")


def test_saved_by_hand() -> None:
    """A step of the first kind costs a quarter, of the second a half; `00010120` saves ¾ twice and ½ once, of 8 steps."""
    saved = build_ladder().saved([0.25, 0.5])
    assert saved.tolist() == pytest.approx([0, 0.75 / 8, 2 * 0.5 / 8, 1.5 / 8, (1.5 + 0.5) / 8, 2.25 / 8])
    assert saved.dtype == torch.float64


def test_schedule_takes_rungs() -> None:
    schedule = build_ladder().schedule(torch.tensor([4, 0, 4]))
    assert schedule.actions.tolist() == actions_of(RUNGS[4], RUNGS[0], RUNGS[4]).tolist()
    assert schedule.kinds == KINDS


def test_nodes_are_the_first_rungs_that_act_alike_so_far() -> None:
    ladder = build_ladder()
    assert ladder.nodes(0).tolist() == [0, 0, 0, 0, 0, 0]
    assert ladder.nodes(1).tolist() == [0, 0, 0, 3, 3, 5]


@pytest.mark.parametrize("num_steps", [12, 15, 28, 30, 50, 100])
def test_ladder_for_other_numbers_of_steps(num_steps: int) -> None:
    ladder = Ladder.load(EMOJI)
    other = ladder.for_steps(num_steps)
    assert other.actions.shape == (len(ladder), num_steps)
    assert not other.actions[0].any()
    assert not other.actions[:, : other.decision_steps[0] + 1].any()
    assert not other.actions[:, -1].any()
    assert len(other.decision_steps) == len(ladder.decision_steps), "a policy's stages keep their meaning"
    reuses, before = (other.actions > 0).sum(1), (ladder.actions > 0).sum(1)
    # as many in proportion, to the nearest, as long as there is room
    room = num_steps - 2 - other.decision_steps[0]
    assert reuses.tolist() == [min(round(count * num_steps / 20), room) for count in before.tolist()]
    costs = [0.1, 0.1]
    order = ladder.saved(costs).argsort(stable=True)
    assert (other.saved(costs)[order].diff() > -1e-9).all()
    for stage in range(len(ladder.decision_steps)):
        node = ladder.nodes(stage)
        assert torch.equal(other.nodes(stage)[node], other.nodes(stage)), "what acts alike until a decision still does"
    torch.testing.assert_close(other.saved(costs), ladder.saved(costs), atol=0.55 * 0.9 / num_steps + 1e-9, rtol=0)


def test_rungs_that_coincide_at_few_steps_are_one() -> None:
    few = Ladder.load(EMOJI).for_steps(12)
    kept = few.distinct()
    assert len(kept) < len(few)
    assert {tuple(rung) for rung in kept.actions.tolist()} == {tuple(rung) for rung in few.actions.tolist()}
    assert Ladder.from_dict(kept.to_dict()).decision_steps == few.decision_steps


def test_same_number_of_steps_is_the_ladder_itself() -> None:
    ladder = Ladder.load(EMOJI)
    assert ladder.for_steps(20) is ladder


def test_too_few_steps_for_the_decisions_are_named() -> None:
    with pytest.raises(LadderError, match=r"decisions need 10 steps or more, and this generation has 6"):
        Ladder.load(EMOJI).for_steps(6)


def test_stretch_by_hand() -> None:
    """Reuses keep their kinds and stay spread, on both sides of the first and the last."""
    rung = actions_of("0000001020")[0]
    doubled = stretch(rung, 20, torch.zeros(4, dtype=torch.int64))
    assert (doubled > 0).sum() == 4
    assert doubled[doubled > 0].tolist() == [1, 1, 2, 2]
    # the four stand at −¼, ¼, ¾ and 1¼ of the way from 6 to 8: at 5½, 6½, 7½ and 8½ of 10, whose middles are 12 to 18 of 20
    assert doubled.nonzero().flatten().tolist() == [12, 14, 16, 18]
    halved = stretch(actions_of("00000010101010101010")[0], 10, torch.zeros(3, dtype=torch.int64))
    # of seven reuses four stay: at 6¾, 10¼, 13¾ and 17¼ of 20
    assert halved.nonzero().flatten().tolist() == [3, 5, 7, 8]


def test_stretched_rungs_are_schedules() -> None:
    ladder = replace(build_ladder(), kinds=(Reuse(boundary=2, order=1), KINDS[1]))
    for num_steps in range(8, 41):
        other = ladder.for_steps(num_steps)
        assert ReuseSchedule(other.actions, other.kinds).num_steps == num_steps
