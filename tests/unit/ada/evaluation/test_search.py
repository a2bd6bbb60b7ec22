"""The sample of schedules and the best static one of it."""

from pathlib import Path

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart_pipeline

from ada.backbone import Backbone
from ada.evaluation.measure.run import run_batch
from ada.evaluation.methods.base import Planned, full_method, planned_method
from ada.evaluation.search import (
    Offer,
    best_static,
    offering_policy,
    run_schedules,
    sample_schedules,
    static_methods,
)
from ada.evaluation.subject import Cases, Subject
from ada.rollout import Denoiser
from blockdance import ForwardCost, Reuse, ReuseSchedule

COST = ForwardCost(400.0, (100.0,) * NUM_BLOCKS)
KINDS = (Reuse(boundary=3), Reuse(boundary=1, order=1))


def sampled(count: int) -> Offer:
    return sample_schedules(KINDS, range(3, 8), 8, count, COST, torch.Generator().manual_seed(0))


def test_the_sample_is_different_valid_and_starts_with_full_compute() -> None:
    offer = sampled(100)
    assert offer.actions.shape == (100, 8)
    assert offer.actions[0].tolist() == [0] * 8
    assert len(offer.actions.unique(dim=0)) == 100
    assert not offer.actions[:, :3].any()
    ReuseSchedule(offer.actions, offer.kinds)
    both = ((offer.actions == 1).any(1) & (offer.actions == 2).any(1)).float().mean()
    assert 0.2 < float(both) < 0.8
    # block 3 is everything, block 1 half: 1 of 8 steps each
    assert offer.saved[offer.actions.tolist().index([0, 0, 0, 0, 1, 0, 1, 0])] == pytest.approx(2 / 8)


def test_a_small_space_is_listed_whole() -> None:
    """Two decided steps and two kinds: nine schedules."""
    offer = sample_schedules(KINDS, range(3, 5), 5, 1000, COST, torch.Generator().manual_seed(0))
    assert len(offer.actions) == 9


def test_best_static_by_hand() -> None:
    saved = torch.tensor([0.0, 0.2, 0.3, 0.3])
    errors = torch.tensor([[0.0, 1.0, 5.0, 2.0], [0.0, 2.0, 1.0, 3.0]])
    assert best_static(saved, errors, 0.1) == 1
    assert best_static(saved, errors, 0.25) == 3
    assert best_static(saved, errors, 0.4) is None


def test_a_schedule_that_is_best_twice_is_one_method() -> None:
    offer = Offer(torch.tensor([[0, 0, 0], [0, 0, 1]]), (Reuse(boundary=3),), torch.tensor([0.0, 1 / 3]))
    methods = static_methods(offer, torch.tensor([[0.0, 0.5]]), (0.1, 0.2), "2 prompts")
    assert [method.name for method in methods] == ["Best static schedule, 33%"]
    plan = methods[0].accelerate
    assert isinstance(plan, Planned)
    assert isinstance(plan.plan, ReuseSchedule)
    assert plan.plan.actions.tolist() == [[0, 0, 1]]


def test_schedules_from_the_shared_prefix_equal_the_pipeline(tmp_path: Path) -> None:
    """Latent distances of three schedules, once with shared prefixes in small pieces, once through the stock pipeline."""
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    backbone = Backbone(str(tmp_path / "pipeline"), num_inference_steps=6, guidance_scale=2.0, max_sequence_length=8)
    actions = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1], [0, 0, 0, 2, 2, 0]])
    denoiser = Denoiser(backbone, offering_policy(backbone, KINDS), seed=7)
    found = run_schedules(denoiser, ["a", "b c"], [0, 5], actions, {}, most_rows=2)["latent_distance"]
    assert float(found[:, 0].max()) < 1e-6
    subject, cases = Subject.of(backbone), Cases.of(["a", "b c"], [0, 5], 2, seed=7)
    reference = run_batch(subject, full_method(6), cases, slice(0, 2)).generated.latents
    for column in (1, 2):
        method = planned_method(
            f"schedule {column}", "", "static", "", 6, ReuseSchedule(actions[column : column + 1], KINDS), ""
        )
        latents = run_batch(subject, method, cases, slice(0, 2)).generated.latents
        expected = (latents - reference).norm(dim=1) / reference.norm(dim=1)
        torch.testing.assert_close(found[:, column], expected, rtol=1e-3, atol=1e-5)
        assert float(expected.min()) > 1e-3
