"""Progress in a log file."""

import io

import pytest
from rich.console import Console

from ada import progress as module
from ada.progress import progress


def test_a_log_file_gets_lines_with_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four seconds each: a line when more than ten have passed, and one at the end; none before a part is done."""
    clock = iter([0.0, 0.0, 4.0, 8.0, 12.0, 16.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with progress("Measuring", 4, Console(file=file)) as advance:
        advance(0, "first")
        for name in ("second", "third", "fourth"):
            advance(1, name)
        advance(1)
    assert file.getvalue().splitlines() == [
        "Measuring: 3 of 4 (fourth), 12 s, about 4 s left",
        "Measuring: 4 of 4, 16 s, about 0 s left",
    ]


def test_nothing_is_foretold_from_the_first_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred parts the first takes a minute, the second a second."""
    clock = iter([0.0, 60.0, 61.0, 80.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with progress("Measuring", 100, Console(file=file)) as advance:
        for done in (1, 1, 18):
            advance(done)
    assert file.getvalue().splitlines() == [
        "Measuring: 1 of 100, 60 s",
        "Measuring: 20 of 100, 80 s, about 320 s left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    with progress("Measuring", 2, Console(file=file, force_terminal=True, width=120)) as advance:
        advance(1, "the second")
        advance(1)
    assert "2/2" in file.getvalue()
