"""A small model of one transformer class, and inputs for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 4
"""Rows of the conformance test's batches. Inputs without a batch dimension have this first size where the model allows it, so
that a runtime which split them by mistake would be caught."""


def _one_timestep_per_row(rows: int, value: float) -> dict[str, Any]:
    return {"timestep": torch.full((rows,), value)}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build a small model of a transformer class of diffusers and call it.

    Args:
        model_class: the class.
        config: arguments of a small instance: four blocks or a few more in all, at least two in every list.
        inputs: for a number of rows, the forward call's keyword arguments but the timestep, random in every row.
        timestep: for a number of rows and a value in (0, 1), the keyword arguments that carry the timestep.
        spread: standard deviation of the random parameters; large enough that every block changes the output, small enough
            that nothing overflows.
    """

    model_class: type[nn.Module]
    config: Mapping[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    timestep: Callable[[int, float], dict[str, Any]] = field(default=_one_timestep_per_row)
    spread: float = 0.15

    @property
    def name(self) -> str:
        return self.model_class.__name__

    def build(self) -> nn.Module:
        """The model with random parameters everywhere: modulation layers that start at zero would hide what a block does."""
        torch.manual_seed(0)
        model = self.model_class(**self.config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=self.spread)
        return model.eval()

    def make_inputs(self, rows: int, seed: int = 1) -> dict[str, Any]:
        """Seeded inputs for `rows` rows."""
        torch.manual_seed(seed)
        return self.inputs(rows)


@torch.no_grad()
def call(model: nn.Module, family: Family, inputs: dict[str, Any], timestep: float, rows: int = BATCH) -> list[Tensor]:
    """One forward call; returns its output tensors, one after the other, each with the rows first."""
    output = model(**inputs, **family.timestep(rows, timestep), return_dict=False)
    first = output[0] if isinstance(output, tuple) else output
    return [torch.stack(list(first))] if isinstance(first, list) else [leaf for leaf in _leaves(output) if leaf is not None]


def _leaves(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]
