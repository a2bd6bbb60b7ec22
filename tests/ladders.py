"""A small ladder over the small PixArt pipeline, that the tests of policies, rollouts and training share."""

from dataclasses import asdict

import torch
from conftest import build_pixart_pipeline
from torch import Tensor

from ada.policy import BaseModel, LadderPolicy
from ada.rewards import PSNR, WeightedReward
from ada.rollouts import Case, Collector, FrozenPipeline
from ada.schedules import Ladder
from blockdance import Reuse

STEPS = 8
ARGUMENTS = {"guidance_scale": 3.0, "max_sequence_length": 12, "use_resolution_binning": False, "clean_caption": False}
KINDS = (Reuse(boundary=2), Reuse(boundary=1, order=1, weight=0.5))
RUNGS = ("00000000", "00000010", "00000220", "00010010", "00010120", "00011010")
CASES = [Case("a red apple", 1), Case("dog", 2), Case("the sun over the sea", 3)]
MORE_CASES = [*CASES, Case("a", 4), Case("sun and sea", 5), Case("red", 6), Case("the dog", 7), Case("apple", 8)]
COSTS = [0.3, 0.6]


def actions_of(*rungs: str) -> torch.Tensor:
    """Schedules written as strings of digits: int64 `(rungs, steps)`."""
    return torch.tensor([[int(action) for action in rung] for rung in rungs])


def build_ladder() -> Ladder:
    """Six rungs; after step 2 it is decided about steps 3 and 4 (00, 10 or 11), after step 4 about the rest."""
    return Ladder(actions_of(*RUNGS), KINDS, (2, 4))


def build_frozen(**options: object) -> FrozenPipeline:
    return FrozenPipeline(build_pixart_pipeline(), STEPS, ARGUMENTS, **options)  # type: ignore[arg-type]


def build_reward() -> WeightedReward:
    """Decibels lost: 0 for the reference, at most 60."""
    return WeightedReward({"psnr": PSNR()}, {"psnr": 1.0})


def build_policy(collector: Collector, sights: Tensor, **options: object) -> LadderPolicy:
    """Random coefficients, and rungs whose damage grows: so that images differ in what they are given."""
    torch.manual_seed(2)
    policy = LadderPolicy(
        base_model=asdict(BaseModel.of(collector.pipeline.transformer)), ladder=collector.ladder.to_dict(), reuse_costs=COSTS,
        sight_width=sights.shape[-1], num_components=3, quality_weight_range=(0.1, 10.0), **options,  # type: ignore[arg-type]
    )  # fmt: skip
    damage = torch.tensor([0.001, 0.02, 0.05, 0.08, 0.15, 0.3]).expand(len(sights), -1)
    policy.calibrate(sights, collector.tree.nodes[:, 0], damage)
    with torch.no_grad():
        # the second look says the contrary, so that both looks count
        direction = torch.randn(policy.coefficients.shape[1]) * 0.5
        policy.coefficients.copy_(direction[None, :, None] * torch.tensor([1.0, -1.0])[:, None, None])
    return policy.eval()
