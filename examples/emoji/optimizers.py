"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer that Lightning can drive."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR


class ChainedOptimizer(Optimizer):
    """Several optimizers over disjoint parameters, stepped together; learning-rate schedules see all their groups."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        # the groups must be the very dicts of the inner optimizers: a schedule writes `lr` into them
        self.param_groups = groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def build_optimizer(
    model: nn.Module, learning_rate: float, matrix_learning_rate: float, weight_decay: float = 0.0
) -> Optimizer:
    """AdamW for every parameter, or, with a `matrix_learning_rate`, Muon for the two-dimensional weights of the blocks."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inside = ("block" in name or "layers" in name) and parameter.ndim == 2 and "table" not in name and "bias" not in name
        (matrices if inside and matrix_learning_rate else rest).append(parameter)
    adamw = AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    if not matrices:
        return adamw
    muon = Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", ns_steps=4)
    return ChainedOptimizer([muon, adamw])


def trapezoidal_schedule(optimizer: Optimizer, warmup: int, decay: int, steps: int) -> LambdaLR:
    """Linear warm-up, a constant learning rate, and a linear decay to zero over the last `decay` of `steps` steps."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1), max(0.0, (steps - step) / max(decay, 1))))
