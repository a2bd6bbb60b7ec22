"""What a decider sees: predicted clean latents, features at a boundary, and what the model was told."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HISTORY = 4
"""Predicted clean latents that are kept: their last three changes tell most of how sensitive an image is."""
MIN_HISTORY = 2
"""Fewest of them with which a decider is asked: with two there is a change to see."""


@dataclass(frozen=True)
class PolicyState:
    """What a policy sees when it decides, between two denoising steps. `images` is the batch without guidance branches.

    Args:
        latents: `(images, …)`, the model's input at the coming step.
        clean: `(images, history, …)`, the predicted clean latents x̂₀ of the last steps, the newest last; `MIN_HISTORY` to `HISTORY`.
        features: `(images, positions, channels)`, the conditional branch's output of the boundary block when it last ran.
        feature_change: its change since it ran before, per change of noise level; zeros where it ran once only.
        prompt_embeds: `(images, tokens, width)` of the conditional branch; None for a model without prompts.
        prompt_mask: `(images, tokens)`, 1 for real tokens; None where there are no prompts.
        class_labels: int64 `(images,)`; None for a model without class labels.
        sigmas: `(num_steps,)`, the share of noise in the latents of every step, falling from 1 to 0.
        actions: int64 `(images, num_steps)`, the actions taken at the steps that are done; −1 for those still open,
            and for those before the first that ran, where a generation starts late (img2img).
        step: index of the coming step: the first that is open.
        grid: of latents that are packed as `(images, tokens, channels)`, the tokens' frames, height and width, where the model is
            told; else None.
    """

    latents: Tensor
    clean: Tensor
    features: Tensor
    feature_change: Tensor
    prompt_embeds: Tensor | None
    prompt_mask: Tensor | None
    class_labels: Tensor | None
    sigmas: Tensor
    actions: Tensor
    step: int
    grid: tuple[int, int, int] | None = None

    @property
    def num_steps(self) -> int:
        return len(self.sigmas)

    @property
    def num_images(self) -> int:
        return len(self.latents)

    def take(self, images: Sequence[int]) -> "PolicyState":
        """The state of some images, which may repeat."""
        index = torch.as_tensor(images, device=self.latents.device)
        values = {
            name: value[index] if name in _PER_IMAGE and value is not None else value for name, value in vars(self).items()
        }
        return PolicyState(**values)

    @staticmethod
    def cat(states: Sequence["PolicyState"]) -> "PolicyState":
        """Several batches before the same step as one; prompts are padded to the longest."""
        first = states[0]
        joined: dict[str, Any] = dict(vars(first))
        for name in _PER_IMAGE:
            values = [getattr(state, name) for state in states]
            if values[0] is not None:
                joined[name] = _cat_padded(values) if name.startswith("prompt") else torch.cat(values)
        return PolicyState(**joined)


_PER_IMAGE = (
    "latents", "clean", "features", "feature_change", "prompt_embeds", "prompt_mask", "class_labels", "actions"
)  # fmt: skip


def token_grid(inputs: Mapping[str, Any], latents: str) -> tuple[int, int, int] | None:
    """Frames, height and width of packed latents, as pipelines tell the model: sizes, shapes, or a position for every token.

    Args:
        inputs: of the forward call.
        latents: the argument that carries the latents.

    Returns:
        None where the latents are not packed, or the model is not told a grid of as many tokens.
    """
    packed = inputs[latents]
    if not isinstance(packed, Tensor) or packed.ndim != 3:
        return None
    shapes, positions = inputs.get("img_shapes"), inputs.get("img_ids")
    sizes: Sequence[Any] = [inputs.get(name) for name in ("num_frames", "height", "width")]
    if shapes is not None:
        sizes = shapes[0] if isinstance(shapes[0][0], int) else shapes[0][0]
    elif isinstance(positions, Tensor):
        places = positions.reshape(-1, positions.shape[-1])[:, :3]
        sizes = (places.amax(0) - places.amin(0) + 1).long().tolist()
    if not all(isinstance(size, int) for size in sizes) or math.prod(sizes) != packed.shape[1]:
        return None
    return tuple(sizes)


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat(
        [torch.cat([part, part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])], 1) for part in parts]
    )


@dataclass(frozen=True)
class NoiseScale:
    """How much signal and noise the latents hold at a noise level: x = α·x₀ + σ·ε.

    Args:
        is_flow: whether levels are those of a straight path, α = 1 − σ; else σ/α as of a variance-preserving diffusion, whose
            model inputs have α² + σ² = 1.
    """

    is_flow: bool

    @classmethod
    def of(cls, scheduler: Any, levels: Sequence[float]) -> "NoiseScale":
        """Reads it from a scheduler. Without one, or of one that has no ᾱ of a diffusion, levels of 1 at most are those of a flow."""
        config = getattr(scheduler, "config", {})
        named = "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
        highest = max(*levels, config.get("sigma_max") or 0.0)
        return cls(is_flow=named or (getattr(scheduler, "alphas_cumprod", None) is None and highest <= 1.0 + 1e-6))

    def split(self, level: float) -> tuple[float, float]:
        """α and σ at a level."""
        if self.is_flow:
            return 1.0 - level, level
        if math.isinf(level):  # a terminal signal-to-noise ratio of zero
            return 0.0, 1.0
        scale = (1.0 + level * level) ** -0.5
        return scale, level * scale

    def share(self, level: float) -> float:
        """The noise's share σ/(α + σ) of the latents: 1 is noise alone, 0 an image."""
        alpha, sigma = self.split(level)
        return sigma / (alpha + sigma)


def predict_clean(before: Tensor, after: Tensor, levels: tuple[float, float], scale: NoiseScale) -> Tensor:
    """x̂₀ of the step that leads from the latents `before` to `after`.

    A deterministic first-order step keeps the model's predictions of image and noise, so both latents hold the same x̂₀ and ε̂: two
    equations, x = α·x̂₀ + σ·ε̂ at either level. With guidance it is the guided prediction, whatever the sampler calls it.

    Args:
        before, after: latents of equal shape.
        levels: their noise levels, which differ.
        scale: what the levels mean.
    """
    (alpha, sigma), (alpha_after, sigma_after) = scale.split(levels[0]), scale.split(levels[1])
    return (sigma * after.float() - sigma_after * before.float()) / (sigma * alpha_after - sigma_after * alpha)


class Observer:
    """Collects during a generation what a decider will see.

    A step that leads to its own noise level predicts nothing. Second-order schedulers (Heun, PNDM) take one after each first stage, which
    is the deterministic first-order step of which `predict_clean` speaks; the second corrects where it led.
    """

    def __init__(self) -> None:
        self.first_step = -1
        """The first step that was shown."""
        self._latents: Tensor | None = None
        self._step = -1
        self._clean: list[Tensor] = []

    def see(self, latents: Tensor, step: int, levels: Sequence[float], scale: NoiseScale) -> None:
        """Takes the latents before a step; called once a step."""
        if self._latents is not None and self._latents.shape == latents.shape and levels[step] != levels[self._step]:
            self._clean.append(predict_clean(self._latents, latents, (levels[self._step], levels[step]), scale))
            self._clean = self._clean[-HISTORY:]
        self.first_step = step if self.first_step < 0 else self.first_step
        self._latents, self._step = latents, step

    def restart(self) -> None:
        """Drops the latents, which something else than a step will change. Predictions that are too few for a decider go as well: it is
        as if the generation began at the next step."""
        self._latents = None
        if len(self._clean) < MIN_HISTORY:
            self._clean, self.first_step = [], -1

    def earliest_decision(self, levels: Sequence[float]) -> int:
        """The first step after which there are `MIN_HISTORY` predictions; the number of steps where there never will be."""
        predicting = [step for step in range(self.first_step, len(levels) - 1) if levels[step + 1] != levels[step]]
        return predicting[MIN_HISTORY - 1] if len(predicting) >= MIN_HISTORY else len(levels)

    def has_seen(self, step: int) -> bool:
        """Whether this step's latents were shown already: its other guidance branches have the same."""
        return step <= self._step

    @property
    def latents(self) -> Tensor:
        assert self._latents is not None, "`see` comes first"
        return self._latents

    @property
    def clean(self) -> Tensor | None:
        """`(images, history, …)`; None as long as there are fewer than `MIN_HISTORY` predictions."""
        return torch.stack(self._clean, 1) if len(self._clean) >= MIN_HISTORY else None
