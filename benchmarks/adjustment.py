"""A scale and a shift of what is injected at reuse steps (Block Caching, arXiv 2312.03209), and two ways to fit them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ada.rollouts import Case, FrozenPipeline
from ada.schedules import Ladder
from blockdance import ReuseSchedule

Error = Callable[[Tensor, Tensor], Tensor]
"""Mean squared error of the guided prediction, of boundary outputs and computed ones `(branches, images, tokens, channels)`."""
Fit = Callable[[Tensor, Tensor, Error], tuple[Tensor, Tensor]]
"""Scale and shift `(branches, 1, 1, channels)` for what is injected, given what a computed step has in its place, and the error."""
LEARNING_RATE, NUM_UPDATES = 0.01, 60
"""Of descent; the held-out error falls no further by then."""
HELD = 4
"""Of this many images, the first is held out of descent: where it stops, and what both ways are said to remove, is measured on these."""


def least_squares(injected: Tensor, computed: Tensor, error: Error) -> tuple[Tensor, Tensor]:
    """The scale a and shift b of least Σ(a·injected + b − computed)², in every branch and channel by itself."""
    mean, wanted = (some.double().mean((1, 2), keepdim=True) for some in (injected, computed))
    spread = injected - mean
    scale = (spread * (computed - wanted)).sum((1, 2), keepdim=True) / spread.square().sum((1, 2), keepdim=True)
    return scale.float(), (wanted - scale * mean).float()


def descent(injected: Tensor, computed: Tensor, error: Error) -> tuple[Tensor, Tensor]:
    """Scale and shift that lessen the error of the guided prediction: Adam from 1 and 0 on, as far as it helps images held out."""
    learns = torch.arange(injected.shape[1]) % HELD > 0
    learnt, held = ((injected[:, some], computed[:, some]) for some in (learns, ~learns))
    scale = torch.ones_like(injected[:, :1, :1]).requires_grad_()
    shift = torch.zeros_like(scale).requires_grad_()
    optimizer = torch.optim.Adam([scale, shift], LEARNING_RATE)
    best = scale.detach().clone(), shift.detach().clone()
    least, unit = float(error(*held)), error(*learnt)
    for _ in range(NUM_UPDATES):
        with torch.enable_grad():
            loss = error(learnt[0] * scale + shift, learnt[1]) / unit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left = float(error(held[0] * scale + shift, held[1]))
        if left < least:
            least, best = left, (scale.detach().clone(), shift.detach().clone())
    return best


@dataclass
class Adjustment:
    """Adjusts what the head of a PixArt transformer is given at reuse steps after the last block.

    Args:
        model: the transformer.
        guidance_scale: of its pipeline.
        reuses: whether each step reuses.
        fit: the way to fit, to a batch whose second half are the twins of its first; None applies what was fitted.
        steps: what was fitted, by step.
        removed: by step, the share of the guided prediction's squared error that the fit removed.
    """

    model: Any
    guidance_scale: float
    reuses: Sequence[bool]
    fit: Fit | None = None
    steps: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    removed: list[float] = field(default_factory=list)

    @contextmanager
    def on(self) -> Iterator[None]:
        """For one generation."""
        steps, levels = enumerate(chain(self.reuses, repeat(False))), [Tensor()]
        known = self.model.adaln_single.register_forward_hook(lambda module, inputs, output: levels.append(output[1]))
        given = self.model.norm_out.register_forward_pre_hook(
            lambda module, rows: self._adjust(rows[0], *next(steps), levels[-1])
        )
        with known, given:
            yield

    def _adjust(self, given: Tensor, step: int, reuses: bool, level: Tensor) -> Tensor:
        if not reuses:
            return given
        rows = given.unflatten(0, (2, -1))
        if self.fit is not None:
            with torch.inference_mode(False), torch.no_grad():
                injected, computed = rows.clone().chunk(2, 1)
                error = self.error_at(level[0].clone())
                scale, shift = self.steps[step] = self.fit(injected, computed, error)
                before, target = injected[:, ::HELD], computed[:, ::HELD]
                self.removed.append(1 - float(error(before * scale + shift, target) / error(before, target)))
        scale, shift = self.steps[step]
        return (rows * scale + shift).flatten(0, 1)

    def error_at(self, level: Tensor) -> Error:
        """The error at a noise level, which the model has embedded."""
        scale = self.model.scale_shift_table[1] + level
        weight = self.model.proj_out.weight * (1 + scale)

        def error(outputs: Tensor, computed: Tensor) -> Tensor:
            wrong = (F.layer_norm(outputs, scale.shape, eps=1e-6) - F.layer_norm(computed, scale.shape, eps=1e-6)) @ weight.T
            return (wrong[0] + self.guidance_scale * (wrong[1] - wrong[0])).square().mean()

        return error


def fitted(pipeline: FrozenPipeline, ladder: Ladder, rung: int, cases: Sequence[Case], fit: Fit) -> Adjustment:
    """The adjustment of a rung, fitted to cases that run in one call.

    Raises:
        ValueError: the pipeline has a `max_rows`, by which the head would be given images apart from their twins.
    """
    if pipeline.max_rows is not None:
        raise ValueError(f"An image and its twin must run together: `max_rows` must be None; got {pipeline.max_rows}.")

    def follow(step: int, timestep: Any, latents: Tensor) -> None:
        latents[len(cases) :] = latents[: len(cases)]

    actions = ladder.actions[rung]
    twin = (actions == 0).long()
    twin[0] = 0
    both = torch.stack([actions, twin]).repeat_interleave(len(cases), 0)
    adjustment = Adjustment(pipeline.transformer, pipeline.arguments["guidance_scale"], (actions > 0).tolist(), fit)
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    with adjustment.on():
        pipeline.with_settings(callback=follow).generate(prompts * 2, seeds * 2, ReuseSchedule(both, ladder.kinds))
    adjustment.fit = None
    return adjustment
