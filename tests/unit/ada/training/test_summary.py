"""What a run says at its end."""

from pathlib import Path

import pytest

from ada.policy import Curve
from ada.training import LevelOutcome, Outcome
from ada.training.summary import print_files, print_history, print_outcome, verdict

CURVE = Curve([1.0, 2.0], [0.5, 0.0], [0.1] * 2, [0.1] * 2)


def level(saved: float, low: float, high: float) -> LevelOutcome:
    return LevelOutcome(saved, 0.0611, 0.0722, 0.0133, ((low + high) / 2, low, high), 0.012, 0.034, 0.25, 3, 0.5)


LEVELS = (level(0.15, 0.01, 0.02), level(0.2, -0.01, 0.02), level(0.3, -0.03, -0.01))


def test_every_level_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(Outcome(LEVELS, CURVE, 240, 240, 8), 240, 12.34)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert rows == [
        ["15%", "0.0611", "0.0722", "0.0133", "+0.0150 (+0.0100 … +0.0200)", "25%", "1.2%, mixture 3.4%", "better"],
        ["20%", "0.0611", "0.0722", "0.0133", "+0.0050 (-0.0100 … +0.0200)", "25%", "1.2%, mixture 3.4%", "level"],
        ["30%", "0.0611", "0.0722", "0.0133", "-0.0200 (-0.0300 … -0.0100)", "25%", "1.2%, mixture 3.4%", "worse"],
    ]
    heads = printed[: printed.index("15%")]
    assert heads.index("policy") < heads.index("mixture of static") < heads.index("oracle")
    assert "240 images, each decided by the one of 8 policies that did not see it" in printed
    assert "Learnt from 240 images in 12.3 minutes" in printed


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (
            LEVELS,
            "The policy beats every mixture of static schedules at 15% saved, interval clear of zero. It is worse at 30%.",
        ),
        (LEVELS[:1], "The policy beats every mixture of static schedules at 15% saved, interval clear of zero."),
        (
            LEVELS[1:2],
            "The policy beats the mixture of static schedules nowhere with an interval clear of zero: more captions may help.",
        ),
        ((), "The policy saves nothing: it learnt nothing. More training captions, or a ladder with gentler rungs, may help."),
    ],
    ids=["better and worse", "better", "level", "saves nothing"],
)
def test_a_verdict_claims_what_is_clear_of_zero(levels: tuple[LevelOutcome, ...], words: str) -> None:
    assert verdict(Outcome(levels, CURVE, 240, 240)) == words


def test_a_handful_of_images_judges_nothing() -> None:
    assert (
        verdict(Outcome(LEVELS, CURVE, 200, 2))
        == "2 captions are too few to judge a policy by: 20 or more, better 240, say something."
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_that_validated_nothing_says_so(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_history([{"rollouts": 0.0, "reward": 0.5, "quality": -0.1, "compute_saved": 0.25}] * rows, 3.0)
    assert "Nothing was validated after the start; the last weights are exported." in capsys.readouterr().out


def test_levels_that_a_user_does_not_get_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    jumping = Curve([1.0, 1.1, 2.0, 2.1], [0.42, 0.37, 0.34, 0.0], [0.0] * 4, [0.0] * 4)
    print_outcome(Outcome((level(0.2, 0.01, 0.02), level(0.35, 0.01, 0.02)), jumping, 240, 240), 240, 1.0)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not reached: 10%, 15%, 25%, 30%, 40%, 45%, 50%. On average the policy saves 0% to 42%, by λ;" in printed
    assert "Judged by a draw between two λ: 20% (a user gets 34%), as nearly all images change at once" in printed


def test_the_best_validation_is_set_beside_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    history = [
        {"rollouts": 32.0 * place, "reward": reward, "quality": -0.1, "compute_saved": 0.25}
        for place, reward in enumerate((0.5, 0.3, 0.4, 0.35))
    ]
    print_history(history, 3.0)
    assert (
        "The best, after 64 rollouts, is exported: its validation reward is 0.1000 below the start's."
        in capsys.readouterr().out
    )


def test_files_come_with_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_files(Path("runs/mine"), "python evaluate.py --policy runs/mine/policy")
    assert "Compare it with everything else: python evaluate.py --policy runs/mine/policy\n" in capsys.readouterr().out
