"""Pictures of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL.Image import Image as Picture
from torch import Tensor

from ada.grid import Row, draw_grid, save_grid
from ada.policy import LadderPolicy, StepPolicy
from ada.rollouts import FrozenPipeline
from ada.training.outcome import Outcome
from ada.training.sampling import SampledRollout
from blockdance import Reuse, full_compute


def reuse_probability(logits: Tensor, steps: Sequence[int], kinds: Sequence[Reuse]) -> Figure:
    """Probability of every kind of reuse per step, stacked, from a small to a large quality weight.

    Args:
        logits: `(images, quality weights, decisions, actions)`.
        steps: the decided steps.
        kinds: the kinds of reuse.
    """
    probabilities = logits.float().softmax(-1).mean(0).cpu()
    titles = ["smallest λ", "middle λ", "largest λ"]
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    axes = figure.subplots(1, len(probabilities), sharey=True, squeeze=False)[0]
    for axis, title, rows in zip(axes, titles, probabilities, strict=True):
        bottom = torch.zeros(len(steps))
        for action, kind in enumerate(kinds, 1):
            axis.bar(steps, rows[:, action], bottom=bottom, label=str(kind))
            bottom = bottom + rows[:, action]
        axis.set(title=title, xlabel="denoising step", ylim=(0, 1))
    axes[0].set_ylabel("probability of reuse")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=len(kinds))
    return figure


@dataclass(frozen=True)
class RolloutPictures:
    """What a policy decides on some prompts, and what that does to their images; nothing else of the rollout is held.

    Args:
        probabilities: of every kind of reuse per step.
        grid: the images below their references, with the differences; None of what is no picture.
    """

    probabilities: Figure
    grid: Picture | None

    @classmethod
    def of(cls, rollout: SampledRollout, policy: StepPolicy, num_steps: int) -> "RolloutPictures":
        """Of a rollout.

        Args:
            rollout: with its images, every prompt three times, at the smallest, middle and largest λ; images are pictured at the
                middle one.
            policy: decided.
            num_steps: of the generation.
        """
        logits, steps = rollout.logits.unflatten(0, (-1, 3)), list(policy.decided_steps(num_steps))
        assert rollout.images is not None, "they were asked for"
        grid = None
        if rollout.images.ndim == 5 and rollout.images.shape[2] == 3:
            images = {"every step": rollout.reference[1::3][:8].cpu(), "policy": rollout.images[1::3, 0][:8].cpu()}
            untitled = [""] * len(images["policy"])
            grid = draw_grid([Row(title, list(shown), untitled) for title, shown in images.items()], untitled)
        return cls(reuse_probability(logits, steps, policy.kinds), grid)

    def write(self, folder: Path) -> None:
        """Into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.probabilities.savefig(folder / "reuse_probability.png", dpi=120)
        if self.grid is not None:
            self.grid.save(folder / "reference_and_reuse.png")

    def show(self, board: Any, global_step: int) -> None:
        """On TensorBoard.

        Args:
            board: a TensorBoard writer.
            global_step: where the run is.
        """
        board.add_figure("validation/reuse_probability", self.probabilities, global_step)
        if self.grid is not None:
            board.add_image("validation/reference_and_reuse", np.asarray(self.grid), global_step, dataformats="HWC")


def draw_outcome(outcome: Outcome, saved: Tensor, damage: Tensor) -> Figure:
    """Damage against compute saved: policy with its interval, mixture of static schedules, oracle, and every rung by itself.

    Args:
        outcome: of held-out cases.
        saved: share of the compute that each rung saves, `(rungs,)`.
        damage: mean bounded damage of each rung on the same cases, `(rungs,)`.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(saved, damage, s=16, color="#999999", label="each static schedule", zorder=2)
    levels = [level.saved for level in outcome.levels]
    axis.plot(
        levels,
        [level.mixture for level in outcome.levels],
        color="#555555",
        linestyle="--",
        label="best mixture of static schedules",
    )
    ours = [level.policy for level in outcome.levels]
    low = [level.mixture - level.advantage[2] for level in outcome.levels]
    high = [level.mixture - level.advantage[1] for level in outcome.levels]
    axis.fill_between(levels, low, high, color="#0072B2", alpha=0.2, linewidth=0, label="95 % of the difference to the mixture")
    axis.plot(levels, ours, color="#0072B2", marker="o", label="policy")
    axis.plot(levels, [level.oracle for level in outcome.levels], color="#D55E00", linestyle=":", label="oracle, by hindsight")
    axis.set(
        xlabel="compute saved, mean over images", ylabel="damage d/(d + τ), lower is better", xlim=(0, None), ylim=(0, None)
    )
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


def picture_decisions(
    pipeline: FrozenPipeline,
    policy: LadderPolicy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    mean_compute: float,
    path: Path,
) -> None:
    """Held-out captions as the policy draws them in the stock pipeline, beside every step computed; each with what it saved."""
    plain = full_compute(1, pipeline.num_inference_steps)
    shape = pipeline.generate(prompts[:1], seeds[:1], plain).images.shape
    if len(shape) != 4 or shape[1] != 3:
        return  # videos, audio and latents have no picture here
    reference = pipeline.generate(prompts, seeds, plain)
    ours = pipeline.generate(prompts, seeds, policy.with_options(mean_compute=mean_compute))
    rows = [
        Row("every step", list(reference.images.cpu()), [""] * len(prompts)),
        Row("policy", list(ours.images.cpu()), [f"{share:.0%} saved" for share in ours.report.compute_saved.tolist()]),
    ]
    save_grid(rows, [str(prompt) for prompt in prompts], path)
