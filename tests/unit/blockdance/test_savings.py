"""A plan that saves nothing is said, with the reason."""

import warnings

import pytest
import torch
from families import FAMILIES
from families.base import Family
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockLayout,
    Plan,
    Reuse,
    ReuseSchedule,
    apply_blockdance,
    full_compute,
    register_layout,
)


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = hidden_states + block(hidden_states) * timestep[:, None]
        return hidden_states


class Entangled(Adding):
    """Its rows cannot run apart."""


register_layout(Adding, BlockLayout(lists=("blocks",)))
register_layout(Entangled, BlockLayout(lists=("blocks",), splits_rows=lambda inputs: False, note="Rows share a position."))


@torch.no_grad()
def generate(model: nn.Module, plan: Plan, steps: int) -> None:
    with apply_blockdance(model, plan, num_inference_steps=steps, guidance_branches=1):
        for step in range(steps):
            model(torch.randn(2, 2), torch.full((2,), float(steps - step)))


def test_too_few_steps() -> None:
    with pytest.warns(UserWarning, match=r"saved nothing .* of 2 steps, `reuse_range` .*from 1 to before 2.*Take more steps"):
        generate(Adding(), BlockDanceConfig(), 2)


def test_a_batch_that_cannot_be_split() -> None:
    plan = ReuseSchedule(torch.tensor([[0, 1, 0], [0, 0, 1]]), (Reuse(boundary=1),))
    with pytest.warns(UserWarning, match=r"steps 1, 2 were to reuse, .*cannot run them apart. Rows share a position"):
        generate(Entangled(), plan, 3)


def test_a_boundary_that_never_runs() -> None:
    """For a single frame, Latte leaves its temporal blocks out."""
    family: Family = next(family for family in FAMILIES if family.name == "LatteTransformer3DModel")
    model = family.build()
    latents = torch.randn(1, *family.make_inputs(1)["hidden_states"].shape[1:])[:, :, :1]
    prompt = family.make_inputs(1)["encoder_hidden_states"]
    plan = BlockDanceConfig(interval=2, reuse_range=(0, 1), boundary=1)

    def run() -> None:
        with apply_blockdance(model, plan, num_inference_steps=4), torch.no_grad():
            for timestep in (4, 3, 2, 1):
                model(
                    latents, encoder_hidden_states=prompt, timestep=torch.tensor([timestep]), enable_temporal_attentions=False
                )

    with pytest.warns(UserWarning, match=r"after block 1, order 0.* the model left these blocks out"):
        run()


@pytest.mark.parametrize("plan", [BlockDanceConfig(reuse_range=(0, 1)), full_compute(1, 6)])
def test_nothing_is_said_where_something_is_saved_or_nothing_was_to_be(plan: Plan) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        generate(Adding(), plan, 6)
    assert [str(warning.message) for warning in said] == []
