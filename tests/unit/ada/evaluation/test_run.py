"""Measuring through the stock pipeline: a reference in disguise, a method planted to be worse, fewer steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NUM_BLOCKS, build_clip_folder, build_pixart_pipeline

from ada.backbone import Backbone
from ada.evaluation.methods import BatchReport, Method, Planned, unchanged
from ada.evaluation.metrics import default_metrics
from ada.evaluation.run import Cases, Record, Survey, measure
from ada.policy import AdaPolicy
from blockdance import Reuse, ReuseSchedule, full_compute

STEPS = 6
CASES = Cases(["a", "b c", "d", "e f", "g"], [11, 12, 13, 14, 15], 2)


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    return Backbone(str(tmp_path / "pipeline"), num_inference_steps=STEPS, guidance_scale=2.0, max_sequence_length=8)


def method(name: str, accelerate: Any, steps: int = STEPS) -> Method:
    return Method(name=name, family=name, label=name, num_inference_steps=steps, accelerate=accelerate, note="")


def run(backbone: Backbone, tmp_path: Path, *methods: Method, kept: tuple[int, ...] = ()) -> list[Record]:
    metrics = default_metrics(str(build_clip_folder(tmp_path / "scorer")))
    return measure(backbone, [method("full", unchanged), *methods], CASES, metrics, kept=kept)


def test_the_reference_in_disguise_is_equal(backbone: Backbone, tmp_path: Path) -> None:
    reference, disguised = run(backbone, tmp_path, method("disguised", Planned(full_compute(1, STEPS))), kept=(0, 3, 4))
    assert disguised.per_prompt["perceptual_distance"] == [0.0] * 5
    assert disguised.per_prompt["ssim"] == pytest.approx([1.0] * 5)
    assert disguised.per_prompt["quality"] == reference.per_prompt["quality"]
    assert disguised.per_prompt["compute_saved"] == [0.0] * 5
    assert all(torch.equal(disguised.images[place], reference.images[place]) for place in (0, 3, 4))
    difference = disguised.result(reference).estimates["quality_difference"]
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_a_planted_worse_method_is_worse(backbone: Backbone, tmp_path: Path) -> None:
    """Everything from the second step on reuses the first step's last block."""
    worse = ReuseSchedule(torch.tensor([[0] + [1] * (STEPS - 1)]), (Reuse(boundary=NUM_BLOCKS - 1),))
    reference, planted = run(backbone, tmp_path, method("worse", Planned(worse)))
    estimates = planted.result(reference).estimates
    assert estimates["ssim_difference"].high is not None
    assert estimates["ssim_difference"].high < 0
    assert min(planted.per_prompt["perceptual_distance"]) > 0
    assert min(planted.per_prompt["compute_saved"]) > 0.5


def test_fewer_steps_save_exactly_their_share(backbone: Backbone, tmp_path: Path) -> None:
    _, fewer = run(backbone, tmp_path, method("fewer", unchanged, steps=4))
    assert fewer.per_prompt["compute_saved"] == pytest.approx([1 / 3] * 5)
    assert max(fewer.per_prompt["ssim"]) < 1


def test_every_prompt_takes_its_own_row_of_a_schedule(backbone: Backbone, tmp_path: Path) -> None:
    """Prompt 0 computes everything, prompt 4 reuses most; batches of two must not mix them up."""
    rows = [[0, 0, 0, *(int(place > step) for step in range(1, STEPS - 2))] for place in range(5)]
    schedule = ReuseSchedule(torch.tensor(rows), (Reuse(boundary=2),))
    _, scheduled = run(backbone, tmp_path, method("rows", Planned(schedule)))
    assert scheduled.actions == rows
    assert scheduled.per_prompt["ssim"][:2] == pytest.approx([1.0, 1.0])
    assert max(scheduled.per_prompt["ssim"][2:]) < 1


def test_batches_are_timed_in_turns_after_a_warm_up(backbone: Backbone, tmp_path: Path) -> None:
    """Two full batches are timed, the smaller last one is not; methods alternate."""
    calls: list[tuple[str, int]] = []

    def noted(name: str) -> Any:
        @contextmanager
        def accelerate(pipeline: Any, images: slice) -> Iterator[Callable[[], BatchReport]]:
            calls.append((name, images.start))
            with unchanged(pipeline, images) as report:
                yield report

        return accelerate

    records = run(backbone, tmp_path, method("one", noted("one")), method("two", noted("two")))
    assert calls == [(name, start) for start in (0, 0, 2, 4) for name in ("one", "two")]
    assert [len(record.seconds_per_image) for record in records] == [2, 2, 2]
    assert [len(record.per_prompt["ssim"]) for record in records] == [5, 5, 5]


def test_images_do_not_depend_on_the_batch_size(backbone: Backbone, tmp_path: Path) -> None:
    metrics = default_metrics(str(build_clip_folder(tmp_path / "scorer")))
    whole, single = (
        measure(backbone, [method("full", unchanged)], Cases(CASES.prompts, CASES.seeds, size), metrics, kept=range(5))[0]
        for size in (5, 1)
    )
    for place in range(5):
        torch.testing.assert_close(whole.images[place], single.images[place], atol=1e-4, rtol=0)


def test_the_survey_foretells_what_ada_does_at_every_weight(backbone: Backbone, tmp_path: Path) -> None:
    kinds = (Reuse(boundary=3, order=1), Reuse(boundary=1, order=0))
    policy = AdaPolicy.for_transformer(
        backbone.transformer, backbone.feature_width(), kinds, backbone.action_costs(kinds),
        prefix=0.2, forced_tail=0.1, hidden_size=16, num_heads=2, quality_weight_range=(0.1, 100.0),
    )  # fmt: skip
    torch.manual_seed(4)  # one at which λ tips some decisions
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.5)
    survey = Survey(policy, (0.1, 100.0))
    assert list(survey.run(backbone, CASES)) == [1, 2, 3]
    decisions = survey.decisions()
    assert not torch.equal(decisions[0.1].actions, decisions[100.0].actions)
    for weight, schedule in decisions.items():
        _, record = run(backbone, tmp_path, method("ada", Planned(policy.with_options(quality_weight=weight))))
        assert record.actions == schedule.actions.tolist()
