"""`benchmarks/rewards.py` measures every learnt reward, through the files of its published format."""

import argparse

import pytest

from benchmarks.rewards import REWARDS, measure


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_measured(name: str) -> None:
    found = measure(name, argparse.Namespace(size="small", images=2, side=40, device="cpu", repeats=1))
    assert found["alone"] > 0
    assert found["batched"] > 0
    assert min(found["peak_alone"], found["peak_batched"]) > 50, "MiB of this process"
