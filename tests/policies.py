"""Small random policies for tests."""

from dataclasses import asdict

import torch

from ada.policy import BaseModel, StepPolicy
from ada.rollouts import FrozenPipeline, probe
from blockdance import Reuse

KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=1, order=0))


def build_step_policy(frozen: FrozenPipeline) -> StepPolicy:
    """A random policy at which λ tips some decisions."""
    found = probe(frozen, KINDS, "a")
    policy = StepPolicy(
        base_model=asdict(BaseModel.of(frozen.transformer)), feature_width=found.state.features.shape[-1],
        kinds=[asdict(kind) for kind in KINDS], action_costs=[1.0, *found.reuse_costs], prefix=0.2, forced_tail=0.1,
        hidden_size=16, num_heads=2, quality_weight_range=(0.5, 8.0),
    )  # fmt: skip
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.5)
    return policy.eval()
