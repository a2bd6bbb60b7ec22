"""Which steps reuse: schedules of actions, and the training-free BlockDance-N. Pure tensors."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blockdance.errors import ScheduleError
from blockdance.kinds import BlockReuse, Kind, Reuse

COMPUTE = 0
LETTERS = string.digits + string.ascii_letters
"""How actions are written, a letter each."""
PAPER_BOUNDARY = 20 / 28  # BlockDance section 3.3: block 20 of PixArt-α's and DiT-XL/2's 28


@dataclass(frozen=True)
class ReuseSchedule:
    """One action per image and denoising step.

    Args:
        actions: int64 `(batch, num_steps)`; 0 computes, `k` reuses as `kinds[k - 1]` says. A batch of 1 serves any batch.
        kinds: the kinds of reuse that the actions refer to.
        predicted_damage: `(batch,)`, what a decider expects its actions to do to each image; None where it expects nothing.

    Raises:
        ScheduleError: for a wrong shape, dtype or action; for a first step that reuses; for an extrapolation (order 1)
            with fewer than two computed steps before it; and for a `predicted_damage` of another number of images.
    """

    actions: Tensor
    kinds: tuple[Kind, ...]
    predicted_damage: Tensor | None = None

    def __post_init__(self) -> None:
        actions = self.actions
        if actions.ndim != 2 or 0 in actions.shape:
            raise ScheduleError(f"`actions` must have the shape (batch, num_steps); got {tuple(actions.shape)}.")
        if actions.dtype != torch.int64:
            raise ScheduleError(f"`actions` must be int64; got {actions.dtype}.")
        low, high = int(actions.min()), int(actions.max())
        if low < 0 or high > len(self.kinds):
            raise ScheduleError(
                f"`actions` must lie between 0 (compute) and {len(self.kinds)}, the number of `kinds`; got {low} to {high}."
            )
        damage = self.predicted_damage
        if damage is not None and damage.shape != actions.shape[:1]:
            raise ScheduleError(
                f"`predicted_damage` must have one value per row of `actions`, {len(actions)}; got the shape {tuple(damage.shape)}."
            )
        computed_before = (actions == COMPUTE).cumsum(1)
        needed = torch.tensor([0, *(kind.order + 1 for kind in self.kinds)], device=actions.device)[actions]
        broken = ((actions != COMPUTE) & (computed_before < needed)).nonzero()
        if len(broken):
            image, step = broken[0].tolist()
            raise ScheduleError(
                f"Step {step} of image {image} reuses with {int(computed_before[image, step])} computed steps before it, but "
                f"its kind of reuse needs {int(needed[image, step])}. Let the first steps compute (action 0)."
            )

    @property
    def batch_size(self) -> int:
        return self.actions.shape[0]

    @property
    def num_steps(self) -> int:
        return self.actions.shape[1]

    def expand(self, batch_size: int) -> "ReuseSchedule":
        """Repeats a schedule for one image over a batch; a schedule that already has this batch size is returned as it is."""
        if self.batch_size == batch_size:
            return self
        if self.batch_size != 1:
            raise ScheduleError(
                f"The schedule is for {self.batch_size} images, but the batch has {batch_size}. Give one row of actions per "
                "image, or a single row for all."
            )
        damage = None if self.predicted_damage is None else self.predicted_damage.expand(batch_size)
        return ReuseSchedule(self.actions.expand(batch_size, -1), self.kinds, damage)


def full_compute(batch_size: int, num_steps: int) -> ReuseSchedule:
    """Every step of every image computes."""
    return ReuseSchedule(torch.zeros(batch_size, num_steps, dtype=torch.int64), ())


def step_range(num_steps: int, reuse_range: Sequence[float]) -> tuple[int, int]:
    """First step (inclusive) and last (exclusive) of a range given in fractions of the steps: 40–95 % of 20 is 8 to 19."""
    return round(reuse_range[0] * num_steps), round(reuse_range[1] * num_steps)


def blockdance_n(num_steps: int, interval: int, kind: Reuse, reuse_range: tuple[float, float] = (0.4, 0.95)) -> ReuseSchedule:
    """BlockDance-N (section 3.3): inside the range, of every group of N steps the first computes and the others reuse. An extrapolation
    needs two computed steps, so the range begins at the second step then at the earliest."""
    first, last = step_range(num_steps, reuse_range)
    first = max(first, kind.order)
    actions = [int(first <= step < last and (step - first) % interval > 0) for step in range(num_steps)]
    return ReuseSchedule(torch.tensor([actions]), (kind,))


def block_caching(changes: Tensor, threshold: float) -> ReuseSchedule:
    """Block Caching's automatic schedule (arXiv 2312.03209, section 3.3): a block is reused while the sum of its changes since it last
    ran stays within a threshold δ.

    Args:
        changes: `(num_steps, num_blocks)`, relative L1 change of what each block adds, against the step before; the first step's is
            not read, and steps with NaN compute.
        threshold: δ.

    Raises:
        ScheduleError: with this threshold nothing would be reused.
    """
    num_steps, num_blocks = changes.shape
    since = torch.zeros(num_blocks, dtype=torch.float64)
    kinds: list[BlockReuse] = []
    actions = [COMPUTE]
    for step in range(1, num_steps):
        since += changes[step].double().cpu()
        reused = since <= threshold
        since[~reused] = 0.0
        if not reused.any():
            actions.append(COMPUTE)
            continue
        kind = BlockReuse(blocks=tuple(reused.nonzero().flatten().tolist()))
        if kind not in kinds:
            kinds.append(kind)
        actions.append(kinds.index(kind) + 1)
    if not kinds:
        raise ScheduleError(
            f"With a threshold of {threshold:g} no block would ever be reused: the smallest change of any block between two steps is "
            f"{float(changes[1:].nan_to_num(nan=torch.inf).min()):.3g}."
        )
    return ReuseSchedule(torch.tensor([actions]), tuple(kinds))


def random_schedule(
    batch_size: int,
    num_steps: int,
    num_reused: float,
    kind: Reuse,
    generator: torch.Generator,
    reuse_range: tuple[float, float] = (0.4, 0.95),
) -> ReuseSchedule:
    """Reuses `num_reused` uniformly drawn steps of the range per image; a fractional count is met on average.

    The first step of the range always computes, as in BlockDance-N.
    """
    first, last = step_range(num_steps, reuse_range)
    candidates = last - first - 1
    if not 0 <= num_reused <= candidates:
        raise ScheduleError(f"`num_reused` must lie between 0 and the {candidates} steps on offer; got {num_reused}.")
    dither = torch.rand(batch_size, 1, generator=generator)
    counts = torch.floor(num_reused + dither).clamp(max=candidates)
    ranks = torch.rand(batch_size, candidates, generator=generator).argsort(1).argsort(1)
    actions = torch.zeros(batch_size, num_steps, dtype=torch.int64)
    actions[:, first + 1 : last] = (ranks < counts).long()
    return ReuseSchedule(actions, (kind,))


@dataclass(frozen=True, kw_only=True)
class BlockDanceConfig:
    """Training-free BlockDance-N, for any number of steps and blocks. The defaults are the paper's on PixArt-α."""

    interval: int = 2
    """N: of every group of N steps the first computes, the other N − 1 reuse."""
    reuse_range: tuple[float, float] = (0.4, 0.95)
    """Fractions of the denoising steps between which steps may reuse."""
    boundary: int | None = None
    """Last block that a reuse step skips; by default the paper's 20 of 28, scaled to the model's number of blocks."""
    order: Literal[0, 1] = 0
    """0 injects the cached output as it is (the paper), 1 extrapolates it linearly in the noise level."""
    weight: float = 1.0
    """Share of the extrapolation that is applied."""

    def __post_init__(self) -> None:
        if self.interval < 2:
            raise ScheduleError(f"`interval` must be 2 or more: with 1 no step would reuse; got {self.interval}.")
        start, end = self.reuse_range
        if not 0 <= start < end <= 1:
            raise ScheduleError(f"`reuse_range` must be two fractions with 0 ≤ start < end ≤ 1; got {self.reuse_range}.")

    def kind(self, num_blocks: int) -> Reuse:
        """The kind of reuse on a model of `num_blocks` blocks."""
        boundary = min(num_blocks - 1, round(PAPER_BOUNDARY * num_blocks)) if self.boundary is None else self.boundary
        return Reuse(boundary=boundary, order=self.order, weight=self.weight)

    def schedule(self, num_steps: int, num_blocks: int) -> ReuseSchedule:
        """The schedule for `num_steps` denoising steps, for any batch."""
        return blockdance_n(num_steps, self.interval, self.kind(num_blocks), self.reuse_range)
