"""The static search, and the command line around it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_pixart_pipeline

from ada.__main__ import main
from ada.rewards import SSIM, WeightedReward
from ada.rollouts import Case, FrozenPipeline
from ada.schedules import Ladder, LadderError
from ada.search import ScheduleSearch
from blockdance import Reuse

KINDS = (Reuse(boundary=3), Reuse(boundary=2, order=1, weight=0.5))
CASES = [Case("a dog", 1), Case("b", 2), Case("c d", 3)]


def make_search(folder: Path | None = None, processes: int = 1, first: float = 0.35) -> ScheduleSearch:
    arguments = {"max_sequence_length": 12, "use_resolution_binning": False}
    pipeline = FrozenPipeline(build_pixart_pipeline(), 8, arguments)
    reward = WeightedReward({"ssim": SSIM()}, {"ssim": 1.0})
    return ScheduleSearch(
        pipeline, reward, CASES, KINDS, visible=0.05, first=first, folder=folder, batch_size=2, processes=processes,
        report=lambda _: None,
    )  # fmt: skip


def count_calls(search: ScheduleSearch) -> list[int]:
    calls: list[int] = []
    search.pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_one_reuse_is_put_where_it_harms_least() -> None:
    search = make_search()
    every = [
        tuple(action if step == place else 0 for step in range(8)) for place in search.open for action in (1, 2)
    ]  # all schedules of one reuse
    search.measure(every)
    found = search.best(1)
    assert search.score(found) == min(search.score(schedule) for schedule in every)


def test_moves_change_one_reuse_or_one_kind() -> None:
    search = make_search()
    moves = search._moves((0, 0, 0, 1, 0, 1, 0, 0))
    assert (0, 0, 0, 0, 1, 1, 0, 0) in moves
    assert (0, 0, 0, 1, 0, 0, 1, 0) in moves
    assert (0, 0, 0, 1, 1, 0, 0, 0) in moves
    assert (0, 0, 0, 2, 0, 1, 0, 0) in moves
    assert all(sum(map(bool, move)) == 2 for move in moves)
    assert all(not any(move[: search.open.start]) and not move[-1] for move in moves), "nothing outside the range"


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    first = make_search(tmp_path)
    found = first.best(2)
    again = make_search(tmp_path)
    calls = count_calls(again)
    assert again.best(2) == found
    assert not calls, "every result was on disk"


def test_a_search_that_was_stopped_ends_with_the_same_ladder_and_loses_one_call(tmp_path: Path) -> None:
    straight = make_search(tmp_path / "straight")
    all_calls = count_calls(straight)
    expected = straight.ladder(most_saved=0.25)

    stopped = make_search(tmp_path / "stopped")
    calls = count_calls(stopped)

    def stop(*_: object) -> None:
        if len(calls) == len(all_calls) // 2:
            raise KeyboardInterrupt

    stopped.pipeline.transformer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.ladder(most_saved=0.25)
    resumed = make_search(tmp_path / "stopped")
    later_calls = count_calls(resumed)
    assert torch.equal(resumed.ladder(most_saved=0.25).actions, expected.actions)
    one_call = 2 * 8 * 2  # at most two actions at each of eight steps, and rows beyond `max_rows` apart
    assert len(all_calls) <= len(calls) + len(later_calls) <= len(all_calls) + one_call


def test_a_broken_file_is_put_aside_and_its_schedules_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = make_search(tmp_path).best(1)
    files = sorted(tmp_path.glob("*/*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    again = make_search(tmp_path)
    assert "cannot be read" in caplog.text
    calls = count_calls(again)
    assert again.best(1) == found
    assert calls
    assert files[0].with_suffix(".broken").is_file()
    assert all(file.is_file() for file in files[1:])


def test_progress_ends_where_it_said_it_would(capsys: pytest.CaptureFixture[str]) -> None:
    """Two numbers of reused steps, of two calls each for the start and three rounds of moves."""
    make_search().ladder(most_saved=0.25)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Searching")]
    assert lines[-1].startswith("Searching schedules, calls of the pipeline: 16 of 16")


def test_a_policy_decides_just_before_the_first_step_that_may_reuse() -> None:
    search = make_search(first=0.5)
    assert search.open.start == 4
    assert search.ladder(most_saved=0.15).decision_steps == (3, 5)


def test_several_processes_find_the_same_ladder() -> None:
    alone, together = (make_search(processes=processes).ladder(most_saved=0.4) for processes in (1, 2))
    assert alone.to_dict() == together.to_dict()


def test_only_those_that_do_best_on_a_part_of_the_captions_run_on_all() -> None:
    """Three cases, of which the first is the part."""
    search = make_search()
    search.best(2)
    tried = {name for name in search.table._values[CASES[0]] if name.strip("0")}
    finalists = {name for name in search.table._values[CASES[1]] if name.strip("0")}
    assert finalists < tried


def test_rungs_of_a_ladder_move_as_long_as_that_helps_and_meet() -> None:
    search = make_search()
    ends = [(0, 0, 0, 1, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 1, 0)]
    search.measure(ends)
    worse = max(ends, key=search.score)
    found = search.improved(Ladder(torch.tensor([(0,) * 8, worse]), KINDS, (2, 4)))
    assert found.decision_steps == (2, 4)
    none, better = (tuple(rung) for rung in found.actions.tolist())
    assert not any(none)
    moves = search._moves(better)
    search.measure(moves)
    assert search.score(better) < search.score(worse)
    assert search.score(better) <= min(map(search.score, moves))
    together = search.improved(Ladder(torch.tensor([none, better, worse]), KINDS, (2, 4)))
    assert together.actions.tolist() == found.actions.tolist(), "both end at the same schedule, which is one rung"


def test_a_ladder_of_other_kinds_is_not_moved() -> None:
    ladder = Ladder(torch.tensor([[0] * 8, [0, 0, 0, 1, 0, 0, 0, 0]]), (Reuse(boundary=1),), (2,))
    with pytest.raises(LadderError, match="the search is of 8 and"):
        make_search().improved(ladder)


def test_a_ladder_saves_more_and_more_and_offers_ways_back() -> None:
    ladder = make_search().ladder(most_saved=0.4)
    reused = (ladder.actions > 0).sum(1).tolist()
    assert reused[0] == 0
    assert reused == sorted(reused)
    assert set(reused) >= {0, 1, 2, 3}
    assert ladder.decision_steps[0] == 2
    saved = ladder.saved([0.1, 0.2])
    assert float(saved[0]) == 0
    assert float(saved.max()) > 0.25


def test_a_search_that_cannot_be_is_refused_before_anything_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in {
        "visible_damage": "visible damage must be positive; got 0",
        "most_saved": "of the 8 at least; got 0",
    }.items():
        assert main([*search_command(tmp_path), f"--{option}", "0"]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`most_saved` must be a share of the steps.* got 1\.5"):
        make_search().ladder(1.5)
    with pytest.raises(ValueError, match="None of the 8 steps may reuse: the first 7 and the last compute"):
        make_search(first=0.9).ladder()


def test_an_interrupted_search_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScheduleSearch, "ladder", interrupt)
    with pytest.raises(SystemExit) as error:
        main(search_command(tmp_path))
    assert error.value.code == 130
    assert f"kept in {tmp_path / 'search'}; the same command goes on from there" in capsys.readouterr().err


def test_commands_show_what_a_policy_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3]
    assert main(["show", "--policy", str(root / "checkpoints" / "ada-emoji")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("LadderPolicy, ")
    assert "for PixArtTransformer2DModel with 16 blocks" in shown
    assert main(["show", "--policy", str(tmp_path / "nothing-here")]) == 1
    assert f"error: No policy in {tmp_path / 'nothing-here'}" in capsys.readouterr().err


def test_pull_of_a_folder_writes_the_same_policy(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    assert main(["pull", "--policy", str(root / "checkpoints" / "ada-emoji"), "--folder", str(tmp_path / "copy")]) == 0
    name = "model.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (root / "checkpoints" / "ada-emoji" / name).read_bytes()


def test_the_search_configuration_is_one_that_the_command_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search_command(tmp_path)) == 0, capsys.readouterr().err
    ladder = Ladder.load(tmp_path / "ladder.json")
    assert [kind.boundary for kind in ladder.kinds] == [3, 3], "the model's last block"
    assert torch.equal(ladder.actions[0], torch.zeros(8, dtype=torch.int64))


def test_a_search_runs_on_the_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = list[torch.device]()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu", 0))
    for each in (FrozenPipeline, WeightedReward):
        monkeypatch.setattr(each, "to", lambda self, device: moved.append(device))
    assert main(search_command(tmp_path)) == 0
    assert moved == [torch.device("cpu", 0)] * 2


def test_boundaries_and_weights_on_offer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offered = ["--boundaries", "[2, 3]", "--weights", "[0.5, 1.0]"]
    assert main([*search_command(tmp_path), *offered]) == 0, capsys.readouterr().err
    kinds = Ladder.load(tmp_path / "ladder.json").kinds
    assert [(kind.boundary, kind.order, kind.weight) for kind in kinds] == [
        (boundary, order, weight) for boundary in (2, 3) for order, weight in ((0, 1.0), (1, 0.5), (1, 1.0))
    ]


def search_command(tmp_path: Path) -> list[str]:
    """configs/search.yaml as it is, but for the pipeline's size, the reward's model and the number of captions."""
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    (tmp_path / "captions.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    root = Path(__file__).parents[3]
    ssim = {"rewards": {"ssim": {"class_path": "ada.rewards.SSIM"}}, "weights": {"ssim": 1.0}}
    reward = {"class_path": "ada.rewards.WeightedReward", "init_args": ssim}
    return [
        "search", "--config", str(root / "configs" / "search.yaml"),
        "--pipeline.init_args.model", str(tmp_path / "pipeline"), "--pipeline.init_args.num_inference_steps", "8",
        "--reward", json.dumps(reward),
        "--source", str(tmp_path / "captions.jsonl"), "--split", "train", "--limit", "2", "--most_saved", "0.25",
        "--output", str(tmp_path / "ladder.json"), "--folder", str(tmp_path / "search"),
    ]  # fmt: skip
