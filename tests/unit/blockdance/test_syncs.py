"""A GPU never waits for BlockDance after the first call, whatever scheduler counts the steps and however the rows are mixed."""

from typing import Any

import pytest
import torch
from conftest import build_pixart

from benchmarks.sync_counting import SCHEDULERS, SchedulerLoop, SyncCounter, count, plans
from blockdance import BlockDanceConfig, apply_blockdance

BATCH = 6
PLANS = plans(BATCH, boundary=2)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.__name__)
def test_later_calls_wait_for_nothing(scheduler: Any, name: str) -> None:
    inputs = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "encoder_attention_mask": torch.ones(BATCH, 5)}
    loop = SchedulerLoop(build_pixart(), inputs, torch.randn(BATCH, 4, 8, 8), scheduler(), 6)
    _, later = count(loop, PLANS[name])
    assert later == 0


def test_guidance_branches_are_seen_in_one_comparison() -> None:
    """Three images with two branches each."""
    model = build_pixart()
    apply_blockdance(model, BlockDanceConfig(boundary=2), num_inference_steps=4)
    inputs = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "encoder_attention_mask": torch.ones(BATCH, 5)}
    with torch.no_grad(), SyncCounter() as counter:
        model(torch.randn(BATCH // 2, 4, 8, 8).repeat(2, 1, 1, 1), timestep=torch.full((BATCH,), 0.9), **inputs)
    assert counter.counts["equal"] == 1


def test_the_counter_sees_what_makes_a_gpu_wait() -> None:
    with SyncCounter() as counter:
        tensor = torch.tensor([1.0, 2.0])
        float(tensor.max())
        torch.equal(tensor, tensor)
        tensor.tolist()
        tensor[tensor > 1]
    assert counter.counts == {"tensor of numbers": 1, "item": 1, "equal": 1, "tolist": 1, "index of a mask": 1}
