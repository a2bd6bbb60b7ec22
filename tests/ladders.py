"""A small ladder over the small PixArt pipeline, that the tests of policies, rollouts and training share."""

import torch
from conftest import build_pixart_pipeline

from ada.rewards import PSNR, WeightedReward
from ada.rollouts import Case, FrozenPipeline
from ada.schedules import Ladder
from blockdance import Reuse

STEPS = 8
ARGUMENTS = {"guidance_scale": 3.0, "max_sequence_length": 12, "use_resolution_binning": False, "clean_caption": False}
KINDS = (Reuse(boundary=2), Reuse(boundary=1, order=1, weight=0.5))
RUNGS = ("00000000", "00000010", "00000220", "00010010", "00010120", "00011010")
CASES = [Case("a red apple", 1), Case("dog", 2), Case("the sun over the sea", 3)]


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
