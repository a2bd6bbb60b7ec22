"""Gradients that are no numbers stop a run before they reach the weights."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from ada.training.errors import RunError

PRECISION = "32-true"


def check_precision(precision: str) -> None:
    """Refuses precisions that scale gradients, which this training clips and checks as they are, that round the policy, or whose
    autocasting would reach into the frozen pipeline's rollouts and change images that tables and tapes keep.

    Raises:
        RunError: names the one that can be had.
    """
    if precision != PRECISION:
        raise RunError(
            f"`trainer.precision` must be {PRECISION}; got {precision}. The policy is small and gains nothing by another; what is frozen "
            "takes its own from the pipeline's settings, such as `dtype: float16`."
        )


class FiniteGradients(Callback):
    """Stops at a gradient that is no finite number; it has been summed over all processes, so all of them stop alike."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if not norm.isfinite():
            broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            raise RunError(
                f"A gradient of {', '.join(broken[:3])} is no finite number at step {trainer.global_step}; the weights before "
                "it are kept in the run's checkpoints. Lower `learning_rate`, and look at the rewards: one that is huge can do this."
            )
        if pl_module.automatic_optimization:
            pl_module.log("train/gradient_norm", norm)
