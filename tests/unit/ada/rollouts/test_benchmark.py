"""`benchmarks/rollouts.py` and `benchmarks/policy_overhead.py` measure what they say."""

import argparse
import json
from pathlib import Path

import pytest
from conftest import build_clip_folder, build_pixart_pipeline
from ladders import build_ladder
from rich.table import Table

from benchmarks.policy_overhead import full_size_table
from benchmarks.rollouts import (
    FIRST,
    KNOWN,
    LADDER,
    ONE_BY_ONE,
    READ,
    TAPED,
    Workload,
    ladder_cost,
    main,
    memory_table,
    paper_cost,
    speed_table,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("models")
    build_pixart_pipeline().save_pretrained(folder / "pipeline")
    (folder / "validation.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in ("a dog", "sun")))
    scorer = build_clip_folder(folder / "scorer")
    options = {"model": folder / "pipeline", "scorer": scorer, "source": folder}
    sizes = {"steps": 8, "prompts": 2, "group": 3, "device": "cpu", "cpu_time": True}
    return Workload(argparse.Namespace(**{name: str(place) for name, place in options.items()} | sizes), folder / "tables")


def rows_of(table: Table) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in zip(*(column.cells for column in table.columns), strict=True)}  # type: ignore[misc]


def test_every_way_is_timed_and_gives_the_same_rewards(work: Workload) -> None:
    found = rows_of(speed_table(work, 2))
    assert list(found) == [ONE_BY_ONE, LADDER, FIRST, TAPED, KNOWN, READ]
    denoised = {way: float(cells[4]) for way, cells in found.items()}
    assert denoised[ONE_BY_ONE] > denoised[TAPED] > denoised[READ] == 0
    decoded = {way: float(cells[5]) for way, cells in found.items()}
    assert decoded[TAPED] > decoded[KNOWN] == decoded[READ] == 0
    assert work.quality[ONE_BY_ONE].shape == (6,)
    assert len(set(work.quality[ONE_BY_ONE].tolist())) > 1


def test_steps_are_those_that_run(work: Workload) -> None:
    """Counted in blocks that ran, for all ways of one round; a row of guidance is half of an image's step."""
    blocks = work.pipeline.transformer.transformer_blocks
    rows: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]))) for block in blocks]
    for way, run in work.ways().items():
        run()
        assert sum(rows) / 2 / len(blocks) / work.num_rollouts == pytest.approx(work.steps()[way])
        rows.clear()
    for hook in hooks:
        hook.remove()


def test_six_schedules_at_once_hold_more_memory_than_one_image(work: Workload) -> None:
    table = memory_table(work)
    found = {call: float(cells[0]) for call, cells in rows_of(table).items()}
    assert found.keys() == {"one plain call", TAPED}
    assert 0 < found["one plain call"] < found[TAPED] < 100
    parts = [work.pipeline.pipeline.transformer, work.pipeline.pipeline.vae, work.pipeline.pipeline.text_encoder]
    weights = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    assert str(table.title).endswith(f"{weights / 2**20:.1f} MiB")


def test_ladder_cost_by_hand() -> None:
    """Over four blocks the kinds cost 1/4 and 2/4 of a step; the rungs take 8, 7.25, 7, 6.5, 6 and 5.75 steps alone. Together, step by
    step: three common ones, then 1.25, 2.25, 3.75 and 2.75, and six last ones."""
    assert ladder_cost(build_ladder(), 4) == {"alone": 40.5 / 8, "shared": 19 / 8, "images": 6}


def test_the_configuration_states_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("configs/pixart_alpha.yaml").read_text()
    command = text.partition("(`python ")[2].partition("`)")[0].split()
    assert command[0] == "benchmarks/rollouts.py"
    monkeypatch.setattr("sys.argv", command)
    main()
    printed = capsys.readouterr().out.replace(",", " ")
    assert "take 6.71 images" in printed
    for number in ("13.04", "2 256", "15 143", "1 893", "36 096", "4 512", "372 500", "46 562", "1 010 000"):
        assert number in text
        assert number in printed


def test_the_papers_cost_by_hand() -> None:
    """Of 20 steps, 9 come from the tape; of the other 11, 10 are decided and cost 5/8 on average, as a reuse runs 7 of 28 blocks."""
    cost = paper_cost()
    assert cost["shared"] == pytest.approx((1 + 10 * (1 + 7 / 28) / 2) / 20)
    assert cost["images"] == 10_000 * 100 + 10_000


def test_the_cost_of_a_policy_is_counted() -> None:
    """At full size, of policies that are not trained; what a generation takes beside them is thousands of times more."""
    rows = rows_of(full_size_table("cpu", 0))
    assert len(rows) == 3
    assert all(float(cells[3].rstrip("%")) < 0.1 for cells in rows.values())
