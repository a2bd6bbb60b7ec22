"""What a policy reads of a state: numbers without parameters, the same in training and in inference."""

import torch
from torch import Tensor
from torch.nn import functional as F

from blockdance import PolicyState

NUM_CHANGES = 3
NUM_PATCHES = 4
NUM_SIGNS = 5 * NUM_CHANGES + 5
"""Scalars of `signs`."""


def describe(state: PolicyState) -> Tensor:
    """Everything that is read of a state: `(images, NUM_SIGNS + pooled widths)`, float32."""
    parts = [signs(state), pooled(state.features), pooled(state.feature_change)]
    if state.prompt_embeds is not None:
        assert state.prompt_mask is not None
        mask = state.prompt_mask.float()[..., None]
        parts.append((state.prompt_embeds.float() * mask).sum(1) / mask.sum(1).clamp(min=1))
    return torch.cat(parts, 1)


def signs(state: PolicyState) -> Tensor:
    """The scalars that foretell best how much an image can spare, in logarithms: `(images, NUM_SIGNS)`.

    Of each of the last three changes of the predicted clean latents, per change of noise level: root mean square, mean, largest
    value, largest patch, spread over patches. Of x̂₀ itself: deviation, and of its patches. Of the boundary feature: mean, largest and
    deviation over positions of its relative change per noise level.
    """
    clean = state.clean.float()
    levels = state.sigmas.tolist()
    changes = []
    for age in range(NUM_CHANGES):
        newer = max(clean.shape[1] - 1 - age, 1)
        step = state.step - clean.shape[1] + newer
        changes.append((clean[:, newer] - clean[:, newer - 1]) / max(abs(levels[step - 1] - levels[step]), 1e-6))
    moved = torch.cat(changes)  # all at once: on small models most of the time goes into calling operations
    size, square = moved.flatten(1).abs(), moved.square()
    energy = patches(square, state.grid)
    of_changes = [square.flatten(1).mean(1).sqrt(), size.mean(1), size.amax(1), energy.amax(1).sqrt(), energy.std(1).sqrt()]
    found = list(torch.stack(of_changes).unflatten(1, (NUM_CHANGES, -1)).transpose(0, 1).flatten(0, 1))
    newest = clean[:, -1]
    found += [newest.flatten(1).std(1), patches(newest.square(), state.grid).std(1).sqrt()]
    relative = state.feature_change.float().norm(dim=-1) / state.features.float().norm(dim=-1).clamp(min=1e-6)
    found += [relative.mean(1), relative.amax(1), relative.std(1)]
    return torch.stack(found, 1).clamp(min=1e-8).log()


def patches(values: Tensor, grid: tuple[int, int, int] | None = None) -> Tensor:
    """Means over a grid of `NUM_PATCHES`² patches, `(images, patches)`.

    Images and videos are cut in height and width; what has two dimensions (audio, tokens without a known grid) along both of them.

    Args:
        values: `(images, …)`: channels and frames before height and width; or `(images, tokens, channels)`.
        grid: the tokens' frames, height and width, where values are packed.
    """
    if grid is not None:
        values = values.mean(2).unflatten(1, grid)
    merged = values.flatten(1, -3).mean(1, keepdim=True) if values.ndim > 3 else values[:, None]
    return F.adaptive_avg_pool2d(merged, NUM_PATCHES).flatten(1)


def pooled(tokens: Tensor) -> Tensor:
    """Mean and deviation over the positions of `(images, positions, channels)`: `(images, 2 · channels)`."""
    tokens = tokens.float()
    return torch.cat([tokens.mean(1), tokens.std(1)], 1)
