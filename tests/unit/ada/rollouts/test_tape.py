"""The tape: bounds worked out by hand, files that are broken or cannot be written, and steps that are replayed."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ladders import CASES, KINDS, STEPS, actions_of, build_frozen
from safetensors import safe_open
from torch import Tensor

from ada.rollouts import Case, FrozenPipeline, References, Tape
from ada.rollouts.driver import GivenSchedules
from ada.rollouts.fingerprints import parts_digest
from blockdance import PolicyState, ReuseSchedule

FIRST, SECOND, THIRD = CASES
RECORD_BYTES = 10 * 4


def record(number: int) -> dict[str, Tensor]:
    return {"outputs": torch.arange(8.0) + number, "reference": torch.full((2,), float(number))}


# --- what is kept, and what goes ---


def test_the_least_recently_used_goes_first() -> None:
    tape = Tape(2 * RECORD_BYTES)
    tape.put(FIRST, record(1))
    tape.put(SECOND, record(2))
    assert tape.num_bytes == 2 * RECORD_BYTES
    assert tape.get(FIRST) is not None
    tape.put(THIRD, record(3))
    assert tape.num_bytes == 2 * RECORD_BYTES
    assert tape.get(SECOND) is None
    kept = tape.get(FIRST)
    assert kept is not None
    assert torch.equal(kept["outputs"], torch.arange(8.0) + 1)
    tape.put(FIRST, record(1))
    assert tape.num_bytes == 2 * RECORD_BYTES, "a record that is put again counts once"


def test_what_memory_has_no_room_for_is_read_from_disk(tmp_path: Path) -> None:
    tape = Tape(RECORD_BYTES, tmp_path, {"base": 1})
    for number, case in enumerate(CASES):
        tape.put(case, record(number))
    assert tape.num_bytes == RECORD_BYTES
    for reader in (tape, Tape(RECORD_BYTES, tmp_path, {"base": 1})):
        for number, case in enumerate(CASES):
            found = reader.get(case)
            assert found is not None
            assert sorted(found) == ["outputs", "reference"]
            assert torch.equal(found["reference"], record(number)["reference"])
        assert reader.num_bytes == RECORD_BYTES
    assert Tape(RECORD_BYTES, tmp_path, {"base": 2}).get(FIRST) is None, "other settings are another folder"
    assert tape.get(Case(FIRST.prompt, 9)) is None
    assert tape.get(Case(FIRST.prompt, FIRST.seed, (("num_inference_steps", 30),))) is None


def test_files_are_bounded_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    unbounded = Tape(0, tmp_path / "size")
    unbounded.put(FIRST, record(1))
    assert unbounded.folder is not None
    (file,) = unbounded.folder.iterdir()
    tape = Tape(0, tmp_path, disk_bytes=2 * file.stat().st_size)
    tape.put(FIRST, record(1))
    tape.put(SECOND, record(2))
    assert tape.get(FIRST) is not None
    tape.put(THIRD, record(3))
    assert tape.folder is not None
    assert len(list(tape.folder.iterdir())) == 2
    assert tape.get(SECOND) is None
    assert tape.get(FIRST) is not None
    later = Tape(0, tmp_path, disk_bytes=file.stat().st_size)
    assert later.folder is not None
    assert len(list(later.folder.iterdir())) == 1, "what an earlier run left counts too"


def test_another_process_may_make_room_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files that go while a tape opens its folder, or one of them, were never there; what it keeps itself goes on."""
    Tape(0, tmp_path).put(FIRST, record(1))
    stat = Path.stat

    def stat_of_what_goes(file: Path, **options: bool) -> os.stat_result:
        found = stat(file, **options)
        if file.suffix == ".safetensors":
            file.unlink()
            return stat(file)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat_of_what_goes)
        tape = Tape(0, tmp_path)
    tape.put(FIRST, record(1))

    def open_what_goes(file: Path, *arguments: str) -> Any:
        file.unlink()
        return safe_open(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("ada.rollouts.tape.safe_open", open_what_goes)
        assert tape.get(FIRST) is None
    assert not caplog.records
    tape.put(FIRST, record(1))
    assert tape.get(FIRST) is not None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_broken_file_is_put_aside_with_one_message(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape(0, tmp_path)
    tape.put(FIRST, record(1))
    tape.put(SECOND, record(2))
    assert tape.folder is not None
    file = tape._file(FIRST)
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])  # safetensors reads it without a word
    file.write_bytes({"truncated": content[:-5], "flipped": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert tape.get(FIRST) is None
        assert tape.get(FIRST) is None
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert f"{file.name} cannot be read" in caplog.text
    assert file.with_suffix(".broken").is_file()
    assert tape.get(SECOND) is not None
    tape.put(FIRST, record(4))
    again = tape.get(FIRST)
    assert again is not None
    assert torch.equal(again["reference"], record(4)["reference"])


def test_a_place_that_cannot_be_written_costs_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape(2 * RECORD_BYTES, tmp_path)
    assert tape.folder is not None
    tape.folder.rmdir()
    tape.folder.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        tape.put(FIRST, record(1))
        tape.put(SECOND, record(2))
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert "goes on, with the tape in memory alone" in caplog.text
    assert tape.get(FIRST) is not None


def test_other_decoders_and_text_encoders_are_other_settings() -> None:
    pipeline = build_frozen().pipeline
    before = parts_digest(pipeline)
    assert sorted(before) == ["text_encoder", "transformer", "vae"]
    assert parts_digest(build_frozen().pipeline) == before
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(1.01)
    after = parts_digest(pipeline)
    assert [name for name in before if before[name] != after[name]] == ["vae"]


# --- what is replayed ---

DECISION_STEP = 4


def count_rows(frozen: FrozenPipeline) -> list[int]:
    """Rows that the first block runs in every call from now on."""
    rows: list[int] = []
    frozen.transformer.transformer_blocks[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def roll_out(frozen: FrozenPipeline, cases: list[Case], references: References | None) -> tuple[Tensor, PolicyState]:
    """Two schedules of each case, whose first steps come from the tape where there is one."""
    actions = actions_of("00000101", "00000110").repeat(len(cases), 1)
    plan = GivenSchedules(actions, KINDS, (DECISION_STEP,))
    rows = [case for case in cases for _ in range(2)]
    steps = None
    if references is not None:
        steps = references.steps([record for record in references.of(cases) for _ in range(2)])
    groups = [cases.index(case) for case in rows]
    images = frozen.generate([case.prompt for case in rows], [case.seed for case in rows], plan, groups, steps).images
    return images, plan.states[DECISION_STEP]


def test_rollouts_from_the_tape_are_those_without_it() -> None:
    frozen = build_frozen()
    references = References(frozen, Tape(2**20), KINDS, DECISION_STEP)
    expected, seen = roll_out(frozen, list(CASES), None)
    for _ in range(2):
        images, state = roll_out(frozen, list(CASES), references)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
        for name in ("clean", "features", "feature_change", "latents", "prompt_embeds"):
            torch.testing.assert_close(getattr(state, name), getattr(seen, name), rtol=0, atol=1e-4)
        assert torch.equal(state.actions, seen.actions)
    alone = frozen.generate([CASES[1].prompt], [CASES[1].seed], ReuseSchedule(torch.zeros(1, STEPS, dtype=torch.int64), KINDS))
    made = references.images(references.of([CASES[1]]))
    torch.testing.assert_close(made, alone.images, rtol=0, atol=1e-5)


def test_later_epochs_run_what_is_decided_only_and_are_bit_equal() -> None:
    frozen = build_frozen()
    references = References(frozen, Tape(2**20), KINDS, DECISION_STEP)
    first, _ = roll_out(frozen, list(CASES), references)
    rows = count_rows(frozen)
    second, _ = roll_out(frozen, list(CASES), references)
    assert torch.equal(first, second)
    # up to step 4 nothing runs; step 5 reuses; then each of three cases has a schedule that computes, in two branches
    assert rows == [6, 6]


def test_a_new_process_over_a_tape_that_has_everything_ends_as_the_first_one_did(tmp_path: Path) -> None:
    """It replays from its first batch on: steps that are computed in a batch round otherwise than those of the tape."""
    frozen = build_frozen()
    first, _ = roll_out(frozen, list(CASES), References(frozen, Tape(2**20, tmp_path), KINDS, DECISION_STEP))
    rows = count_rows(frozen)
    second, _ = roll_out(frozen, list(CASES), References(frozen, Tape(2**20, tmp_path), KINDS, DECISION_STEP))
    assert torch.equal(first, second)
    assert rows == [*[2] * STEPS, 6, 6], "one case is made again, which tells what outputs look like"


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    frozen = build_frozen()
    References(frozen, Tape(2**20, tmp_path), KINDS, DECISION_STEP).of([FIRST, SECOND])
    later = References(frozen, Tape(2**20, tmp_path), KINDS, DECISION_STEP)
    rows = count_rows(frozen)
    records = later.of([THIRD, FIRST, FIRST])
    assert rows == [2] * STEPS, "one image in two branches"
    assert records[1] is records[2]
    assert sorted(records[0]) == sorted(records[1])
    assert records[0]["0/call/0"].shape == (2, 1, 4, 8, 8)
