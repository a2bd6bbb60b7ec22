"""The threshold rule per image: by hand, in the pipeline, and fitted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart_pipeline

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.methods.base import Cases, generate
from ada.evaluation.methods.static import full_method
from ada.evaluation.methods.threshold import ThresholdRule, fit_threshold, movement, threshold_methods
from ada.rollouts import FrozenPipeline
from blockdance import PolicyState, Reuse, apply_blockdance

ARGUMENTS = {"guidance_scale": 2.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
KIND = Reuse(boundary=NUM_BLOCKS - 1)
STEPS = 8
CASES = Cases(["a", "b c", "d"], [1, 2, 3], 3)


@pytest.fixture
def subject(tmp_path: Path) -> FrozenPipeline:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    return FrozenPipeline(str(tmp_path / "pipeline"), STEPS, ARGUMENTS)


def state(clean: torch.Tensor, actions: list[list[int]], step: int) -> PolicyState:
    empty = torch.zeros(len(clean), 1, 1)
    return PolicyState(
        latents=clean[:, -1], clean=clean, features=empty, feature_change=empty, prompt_embeds=None, prompt_mask=None,
        class_labels=None, sigmas=torch.linspace(1, 0, len(actions[0])), actions=torch.tensor(actions), step=step,
    )  # fmt: skip


def clean_of(*values: float) -> torch.Tensor:
    """One image of a single latent: `(1, history, 1)`."""
    return torch.tensor(values)[None, :, None]


def test_movement_by_hand() -> None:
    """From 1 to 2 is a half of 2; from 2 to 1.6 a quarter of 1.6."""
    assert movement(clean_of(1.0, 2.0, 1.6)).tolist() == [pytest.approx([0.5, 0.25])]


@pytest.mark.parametrize(
    ("actions", "threshold", "reuses"),
    [
        ([0, 0, 0, -1, -1], 0.25, 1),  # the step before computed: its movement alone, 0.25
        ([0, 0, 0, -1, -1], 0.24, 0),
        ([0, 0, 1, -1, -1], 0.75, 1),  # one reuse since: 0.5 + 0.25
        ([0, 0, 1, -1, -1], 0.74, 0),
        ([0, 1, 1, -1, -1], 9.0, 0),  # two in a row are enough
    ],
)
def test_the_rule_by_hand(actions: list[int], threshold: float, reuses: int) -> None:
    decided = ThresholdRule(KIND, threshold).decide(state(clean_of(1.0, 2.0, 1.6), [actions], 3))
    assert decided.actions[0, 3] == reuses


def test_it_lies_between_full_compute_and_two_of_three_steps(subject: FrozenPipeline) -> None:
    def ran(threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        method = threshold_methods(subject, ["x"], [9], NUM_BLOCKS - 1)[0]
        method = replace(method, plan=ThresholdRule(KIND, threshold))
        found = run_batch(subject, method, CASES, slice(0, 3))
        assert found.report.actions is not None
        return found.generated.images, found.report.actions

    full = run_batch(subject, full_method(STEPS), CASES, slice(0, 3)).generated.images
    images, actions = ran(0.0)
    assert torch.equal(images, full)
    assert int(actions.sum()) == 0
    assert ran(1e9)[1].tolist() == [[0, 0, 0, 1, 1, 0, 1, 0]] * 3


def test_images_of_a_batch_decide_for_themselves(subject: FrozenPipeline) -> None:
    """With a threshold between their movements at the first decision two reuse and one computes, each as it does alone."""
    seen: list[torch.Tensor] = []
    with apply_blockdance(subject.pipeline, ThresholdRule(KIND, -1.0, seen)):
        generate(subject, CASES.prompts, CASES.seeds, STEPS)
    moved = torch.stack(seen, 1)
    assert moved.shape == (3, STEPS - 4)
    method = threshold_methods(subject, ["x"], [9], NUM_BLOCKS - 1)[0]
    method = replace(method, plan=ThresholdRule(KIND, float(moved[:, 0].sort().values[1:].mean())))
    together = run_batch(subject, method, CASES, slice(0, 3)).report.actions
    assert together is not None
    assert sorted(together[:, 3].tolist()) == [0, 1, 1]
    for place in range(3):
        alone = run_batch(subject, method, CASES, slice(place, place + 1)).report.actions
        assert torch.equal(alone, together[place : place + 1])


def test_the_fitted_threshold_reuses_as_often_as_asked() -> None:
    """Movements of 1, 2, 3, 4 hundredths: a quarter of 4 steps is one reuse, which 0.01 allows and less does not."""
    moved = torch.tensor([[0.01, 0.5, 0.5, 0.5], [0.01, 0.5, 0.5, 0.5]])
    assert fit_threshold(moved, 0.25, 4) == pytest.approx(0.01, rel=1e-3)


def test_the_levels_are_methods(subject: FrozenPipeline) -> None:
    methods = threshold_methods(subject, ["x", "y"], [9, 8], NUM_BLOCKS - 1)
    assert [method.name for method in methods] == [f"Threshold per image, {level}%" for level in (15, 25, 35)]
    thresholds = [method.plan.threshold for method in methods]  # type: ignore[attr-defined]
    assert thresholds == sorted(thresholds)
