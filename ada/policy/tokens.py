"""Features and latents of any size as equally many tokens, averaged over the places where they lie."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

NUM_IMAGE_TOKENS = 64
POOLS: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
"""By the number of dimensions."""


def pool_on_grid(values: Tensor) -> Tensor:
    """Averages over neighbours: an image is cut into 8 × 8 patches, a video into 4 × 4 × 4, a sequence into 64 stretches.

    Args:
        values: `(images, channels, …)`, with one to three dimensions of places.

    Returns:
        `(images, NUM_IMAGE_TOKENS, channels)`.
    """
    dimensions = values.ndim - 2
    return POOLS[dimensions](values, [round(NUM_IMAGE_TOKENS ** (1 / dimensions))] * dimensions).flatten(2).transpose(1, 2)


def pool_in_raster_order(tokens: Tensor) -> Tensor:
    """Averages `(images, positions, channels)` over stretches of positions, as policies did before they knew of grids."""
    if tokens.shape[1] == NUM_IMAGE_TOKENS:
        return tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), NUM_IMAGE_TOKENS).transpose(1, 2)


def places_of(latents: Tensor, channels: int, grid: tuple[int, int, int] | None) -> Tensor:
    """Latents of whatever layout as `(images, channels, …)`: height and width, and before them frames where there are some.

    Args:
        latents: with their channels before the places, after them (packed, as `(images, tokens, channels)`), or between frames and height.
        channels: how many.
        grid: the tokens' frames, height and width, where latents are packed and the model is told.
    """
    shape = tuple(latents.shape[1:])
    if grid is not None:
        latents = latents.transpose(1, 2).unflatten(2, grid)
    elif shape[0] != channels and channels in shape:
        latents = latents.movedim(shape.index(channels) + 1, 1)
    return latents.squeeze(2) if latents.ndim == 5 and latents.shape[2] == 1 else latents


def grid_of_positions(positions: int, places: tuple[int, ...]) -> tuple[int, ...]:
    """How a transformer's positions lie: on the grid of the latents, or on that of square patches of them. Where neither has as many
    (audio, or an image's tokens among others), they are a sequence.

    Args:
        positions: how many.
        places: of the latents: height and width, and before them frames where there are some.
    """
    if len(places) > 1:
        *frames, height, width = places
        for patch in range(1, min(height, width) + 1):
            grid = (*frames, height // patch, width // patch)
            if height % patch == width % patch == 0 and math.prod(grid) == positions:
                return grid
    return (positions,)


def image_tokens(features: Tensor, change: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, their change and latents, `(images, NUM_IMAGE_TOKENS, channels)` each.

    Args:
        features, change: `(images, positions, channels)`.
        latents: as `places_of` gives them.
    """
    grid = grid_of_positions(features.shape[1], tuple(latents.shape[2:]))
    on_grid = [pool_on_grid(tokens.transpose(1, 2).unflatten(2, grid)) for tokens in (features, change)]
    return on_grid[0], on_grid[1], pool_on_grid(latents)


def raster_tokens(features: Tensor, change: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `image_tokens` gives to policies that were trained on raster order: latents `(images, channels, …, height, width)`."""
    side = math.isqrt(NUM_IMAGE_TOKENS)
    pooled = F.adaptive_avg_pool2d(latents.flatten(2, -2), side).flatten(2).transpose(1, 2)
    return pool_in_raster_order(features), pool_in_raster_order(change), pooled
