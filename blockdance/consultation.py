"""What passes between a running generation and a decider: what it is shown, when it is asked, what its answer changes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from blockdance.errors import ScheduleError
from blockdance.generation import Generation
from blockdance.kinds import Kind
from blockdance.layouts import BlockLayout
from blockdance.observation import NoiseScale, PolicyState, token_grid
from blockdance.pieces import RowSet
from blockdance.plan import Decider, Movable
from blockdance.schedule import COMPUTE, ReuseSchedule
from blockdance.state import ReuseState
from blockdance.steps import FUSED_GUIDANCE, Location, StepTracker


class Consultation:
    """Shows a decider what it wants to see of every generation, and asks it.

    Args:
        decider: decides.
        layout: which rows and arguments of a call are the conditional images' own.
        steps: tells the number of steps and their noise levels.
        pipeline: whose scheduler tells what those levels mean; None for a transformer alone.
    """

    def __init__(self, decider: Decider, layout: BlockLayout, steps: StepTracker, pipeline: Any) -> None:
        self._decider, self._layout, self._steps, self._pipeline = decider, layout, steps, pipeline

    @property
    def boundary(self) -> int:
        """The block whose output the decider sees."""
        return self._decider.kinds[0].boundary

    def look(self, generation: Generation, state: ReuseState, place: Location, inputs: dict[str, Any]) -> None:
        """Shows the observer of a decider the latents of every step, those of the conditional rows."""
        if generation.observer.has_seen(place.step):
            return
        rows = self._conditional_rows(state)
        latents = inputs[self._layout.latents]
        chosen = rows.copy(latents) if isinstance(latents, Tensor) else _stack(latents, rows.rows)
        generation.observer.see(chosen, place.step, self._steps.sigmas, self._noise_scale())

    def decide(self, generation: Generation, step: int) -> None:
        """Asks a decider before the first step after each of its decision steps."""
        if generation.observed is None or step <= generation.observed["step"]:
            return
        seen = generation.observed | {"step": step}
        generation.observed = None
        clean, latents = generation.observer.clean, generation.observer.latents
        if clean is None:
            return  # the latents changed their size since: there is nothing to compare them with
        done = torch.tensor(generation.taken)
        scale = self._noise_scale()
        levels = torch.tensor([scale.share(level) for level in self._steps.sigmas])
        decided = self._decider_on(latents.device).decide(
            PolicyState(latents=latents, clean=clean, sigmas=levels.to(latents.device), actions=done.to(latents.device), **seen)
        )
        if decided.num_steps != self._steps.num_steps:
            raise ScheduleError(
                f"{type(self._decider).__name__}.decide returned {decided.num_steps} steps of actions; this generation has "
                f"{self._steps.num_steps}."
            )
        if decided.batch_size not in (1, generation.num_images):
            raise ScheduleError(
                f"{type(self._decider).__name__}.decide returned actions for {decided.batch_size} images; this generation has "
                f"{generation.num_images}. Return a row for each image that `state` shows, or one for all."
            )
        if tuple(decided.kinds) != tuple(self._decider.kinds):
            raise ScheduleError(
                f"{type(self._decider).__name__}.decide returned actions of the kinds {_listed(decided.kinds)}, but its `kinds` are "
                f"{_listed(self._decider.kinds)}: their numbers would mean others. Return `ReuseSchedule(actions, self.kinds)`."
            )
        decided = decided.expand(generation.num_images)
        actions = decided.actions.cpu()
        is_done = torch.arange(self._steps.num_steps) < step
        generation.schedule = ReuseSchedule(torch.where(is_done, done.clamp(min=COMPUTE), actions), decided.kinds)
        if decided.predicted_damage is not None:
            generation.predicted_damage = decided.predicted_damage.cpu()

    def _decider_on(self, device: torch.device) -> Decider:
        """The decider on the device of what it sees: a copy, made once, since others may use the one that was given elsewhere."""
        if isinstance(self._decider, Movable):
            self._decider = self._decider.on(device)
        return self._decider

    def observe(self, generation: Generation, state: ReuseState, place: Location, inputs: dict[str, Any]) -> None:
        """Keeps after a decision step what a decider will see, from the conditional rows."""
        if not place.is_first or not _is_conditional(place.branch) or not self._is_due(generation, place.step):
            return
        rows = self._conditional_rows(state)

        def select(name: str) -> Any:
            value = inputs.get(name)
            return value if value is None else rows.copy(value)

        embeds, mask = select("encoder_hidden_states"), select("encoder_attention_mask")
        if embeds is not None and mask is None:
            mask = embeds.new_ones(embeds.shape[:2])
        cache = state.output_of(self.boundary)
        features, change = (
            _as_tokens(value, len(rows), self._layout.batch_dim)
            for value in cache.newest_and_rate(self._layout.image_index, rows)
        )
        generation.observed = {
            "grid": token_grid(inputs, self._layout.latents),
            "prompt_embeds": embeds,
            "prompt_mask": mask,
            "class_labels": select("class_labels"),
            "features": features,
            "feature_change": change,
            "step": place.step,
        }

    def _is_due(self, generation: Generation, step: int) -> bool:
        """Whether a decider is asked after this step: after each of its decision steps at which there is enough to see. A generation
        that starts so late (img2img) that none is left asks it once, as early as it can."""
        earliest = generation.observer.earliest_decision(self._steps.sigmas)
        steps = [due for due in self._decider.decision_steps(self._steps.num_steps) if due >= earliest]
        return step in (steps or [earliest])

    def _conditional_rows(self, state: ReuseState) -> RowSet:
        """Fused guidance orders rows [uncond, cond] or [cond, uncond]; rows with perturbed attention come after them."""
        is_perturbed = getattr(self._pipeline, "do_perturbed_attention_guidance", False) is True
        branch = max(0, state.num_branches - 1 - is_perturbed) if self._layout.cond_last else 0
        return _consecutive(branch * state.num_images, state.num_images, state.num_rows)

    def _noise_scale(self) -> NoiseScale:
        return NoiseScale.of(getattr(self._pipeline, "scheduler", None), self._steps.sigmas)


def _listed(kinds: Sequence[Kind]) -> str:
    return "; ".join(map(str, kinds)) or "none"


def _is_conditional(name: str) -> bool:
    """Whether a call of this name has the image's own condition. Pipelines call it `cond`, guiders `pred_cond`; `uncond` is not it, nor
    are the conditional ones whose blocks or attention guiders perturb (`pred_cond_skip`, `pred_cond_stg`, `pred_cond_seg`)."""
    plain = name.removeprefix("pred_")
    return plain == FUSED_GUIDANCE or not plain.startswith(("uncond", "cond_"))


@lru_cache(maxsize=64)
def _consecutive(first: int, count: int, num_rows: int) -> RowSet:
    return RowSet(range(first, first + count), num_rows)


def _as_tokens(features: Tensor, num_images: int, batch_dim: int) -> Tensor:
    """A block's output as `(images, positions, channels)`, whether frames are folded into the batch or positions have dimensions."""
    rows_first = features.movedim(batch_dim, 0)
    return rows_first.reshape(num_images, -1, features.shape[-1])


def _stack(latents: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """A list with one tensor per image as one tensor."""
    chosen = [latents[row] for row in rows]
    if len({image.shape for image in chosen}) > 1:
        raise ScheduleError(
            "A policy decides about images of one size; this batch mixes sizes. Run them in batches of their own."
        )
    return torch.stack(chosen)
