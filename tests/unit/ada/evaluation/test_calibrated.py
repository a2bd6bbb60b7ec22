"""Calibrated and Block Caching schedules become methods, or rows that say why not."""

from pathlib import Path

import pytest
from conftest import build_pixart_pipeline

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.methods import static
from ada.evaluation.methods.base import Cases, NotApplicableError
from ada.evaluation.methods.static import full_method
from ada.rollouts import FrozenPipeline
from blockdance import BlockDanceConfig, ReuseSchedule

ARGUMENTS = {"guidance_scale": 2.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
CASES = Cases(["a", "b c"], [1, 2], 2)


@pytest.fixture
def subject(tmp_path: Path) -> FrozenPipeline:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    return FrozenPipeline(str(tmp_path / "pipeline"), 10, ARGUMENTS)


def test_they_run_and_save(subject: FrozenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances so wide that something is always reused."""
    monkeypatch.setattr(static, "TOLERANCES", (9.0,))
    monkeypatch.setattr(static, "THRESHOLDS", (9.0,))
    proposed, cached = static.calibrated_methods(subject, ["d"], [5])
    assert isinstance(proposed.plan, BlockDanceConfig)
    assert isinstance(cached.plan, ReuseSchedule)
    full = run_batch(subject, full_method(10), CASES, slice(0, 2)).generated
    for method in (proposed, cached):
        ran = run_batch(subject, method, CASES, slice(0, 2))
        generated, report = ran.generated, ran.report
        assert report.actions is not None
        assert (report.actions > 0).any()
        assert not generated.images.equal(full.images)


def test_a_tolerance_that_nothing_meets_is_a_row_with_the_reason(
    subject: FrozenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "TOLERANCES", (1e-9,))
    monkeypatch.setattr(static, "THRESHOLDS", (1e-9,))
    for method in static.calibrated_methods(subject, ["d"], [5]):
        with pytest.raises(NotApplicableError, match="the smallest"):
            run_batch(subject, method, CASES, slice(0, 2))


def test_calibration_is_told_of_prompts_as_the_pipeline_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    frozen = FrozenPipeline(
        build_pixart_pipeline(), 10, ARGUMENTS, inputs=lambda names: {"prompt": asked.append(names) or ["d"]}
    )
    static.calibrated_methods(frozen, ["a picture's name"], [5])
    assert asked == [["a picture's name"]]


def test_the_middle_values_run_by_default(subject: FrozenPipeline) -> None:
    methods = static.calibrated_methods(subject, ["d"], [5])
    assert len(methods) == 6
    assert [method.name for method in methods if method.main] == ["Calibrated, tolerance 0.1", "Block Caching, δ 0.2"]
