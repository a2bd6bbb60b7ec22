"""Scripts that no other test runs: what they import is there."""

import sys
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/emoji/*.py"), ROOT / "docs" / "figures.py"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_a_script_loads(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python SCRIPT` does up to its `main`, with its own folder on the path; and it says what it is."""
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    assert run_path(str(script))["__doc__"]
