"""Steps that are replayed from a recording, in stock pipelines: nothing runs, and the images are the same to the bit, also of steps that
begin from what the recorded ones left."""

from typing import Any

import pytest
import torch
from integration.pipelines import CASES, generate

from ada.rollouts.references import TapedSteps
from blockdance import Reuse, ReuseSchedule, apply_blockdance, find_layout
from blockdance.layouts import blocks_of

LISTS = {"z_image"}
"""Models whose outputs are lists of images: they are computed."""
RECORDED = 4
ACTIONS = [[0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 1, 2]]
KINDS = (Reuse(boundary=1), Reuse(boundary=2, order=1))


@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_run_nothing_and_change_nothing(name: str) -> None:
    case = CASES[name]
    pipeline = case.build()
    pipeline.set_progress_bar_config(disable=True)
    calls: list[int] = []
    first_block = blocks_of(pipeline.transformer, find_layout(pipeline.transformer))[0]
    first_block.register_forward_pre_hook(lambda *_: calls.append(1))
    forms: dict[Any, Any] = {}
    records: list[dict[str, torch.Tensor]] = [{}, {}]
    schedule = ReuseSchedule(torch.tensor(ACTIONS), KINDS)
    images, counts = [], []
    for _ in range(2):
        with apply_blockdance(pipeline, schedule, recording=TapedSteps(records, RECORDED, forms)):
            images.append(generate(case, pipeline))
        counts.append(len(calls))
        calls.clear()
    assert torch.equal(images[0], images[1])
    if name in LISTS:
        assert counts[0] == counts[1]
    else:
        assert counts[0] - counts[1] == RECORDED * case.calls
