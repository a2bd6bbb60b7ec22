"""What a generation did, per image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockdance.call_shape import CallShape
from blockdance.cost import ForwardCost
from blockdance.generation import Generation
from blockdance.kinds import Kind
from blockdance.schedule import COMPUTE, LETTERS


@dataclass(frozen=True)
class BlockDanceReport:
    """What the last generation did.

    Args:
        actions: int64 `(images, num_steps)`, the actions really taken; −1 for steps that did not run.
        kinds: the kinds of reuse that the actions refer to.
        macs_computed: float64 `(images,)`, MACs of the denoising steps that ran, all guidance branches together. Where they depend on
            the length of an image's caption or on its size, it is counted in calls of its own: padding to another's is left out.
        macs_full: float64 `(images,)`, MACs of the same steps with every block computed.
        cache_bytes: bytes that the cache holds now.
        peak_cache_bytes: most bytes that it held.
        predicted_damage: `(images,)`, what the policy expected its last decision to do to each image, on the scale of its training (for an
            `ada` policy bounded, 0 to 1), NaN where it cannot tell, as between two rungs of a ladder; None where nothing that expects
            has decided.
    """

    actions: Tensor
    kinds: tuple[Kind, ...]
    macs_computed: Tensor
    macs_full: Tensor
    cache_bytes: int
    peak_cache_bytes: int
    predicted_damage: Tensor | None = None

    @property
    def compute_saved(self) -> Tensor:
        """Share of the denoising MACs saved per image: float64 `(images,)`."""
        return 1.0 - self.macs_computed / self.macs_full

    def __str__(self) -> str:
        lines = [
            f"BlockDance: {float(self.compute_saved.mean()):.1%} of the denoising MACs saved, "
            f"cache at most {self.peak_cache_bytes / 2**20:.2f} MiB"
        ]
        kinds = range(1, len(self.kinds) + 1)
        symbols = {-1: " ", COMPUTE: "█", **{kind: LETTERS[kind] if kind < len(LETTERS) else "+" for kind in kinds}}
        for image, (actions, saved) in enumerate(zip(self.actions.tolist(), self.compute_saved.tolist(), strict=True)):
            damage = math.nan if self.predicted_damage is None else float(self.predicted_damage[image])
            expected = f", damage {damage:.3f} expected" if math.isfinite(damage) else ""
            lines.append(f"  image {image}: {''.join(symbols[action] for action in actions)}  {saved:.1%} saved{expected}")
        legend = [f"{symbols[action]} = {kind}" for action, kind in enumerate(self.kinds, 1)]
        return "\n".join([*lines, "  █ computes; " + "; ".join(legend)])


def report_of(
    generation: Generation, kinds: Sequence[Kind], costs: Callable[[CallShape, int], Sequence[ForwardCost]]
) -> BlockDanceReport:
    """What one transformer did in a generation.

    Args:
        generation: what was kept of it.
        kinds: the kinds of reuse that its actions refer to.
        costs: MACs of every image's part of a forward call, for its shape and the number of images.
    """
    images = torch.arange(generation.num_images)
    computed = torch.zeros(generation.num_images, dtype=torch.float64)
    full = torch.zeros_like(computed)
    tables: dict[CallShape, Tensor] = {}  # calls of one branch share one object
    for call in generation.calls:
        if call.shape not in tables:
            parts = costs(call.shape, generation.num_images)
            tables[call.shape] = torch.stack([part.per_action(kinds) for part in parts])
        table = tables[call.shape]
        computed += table[images, torch.tensor(call.actions)]
        full += table[:, COMPUTE]
    return BlockDanceReport(
        torch.tensor(generation.taken), tuple(kinds), computed, full, generation.cache_bytes, generation.peak_cache_bytes,
        generation.predicted_damage,
    )  # fmt: skip


def joined(reports: Sequence[BlockDanceReport]) -> BlockDanceReport:
    """The reports of a generation's transformers, in the order in which they ran, as one: where several ran at a step, the largest
    action is shown, and of what was expected of the images, the newest."""
    if len(reports) == 1:
        return reports[0]
    return BlockDanceReport(
        torch.stack([report.actions for report in reports]).amax(0),
        max((report.kinds for report in reports), key=len),
        torch.stack([report.macs_computed for report in reports]).sum(0),
        torch.stack([report.macs_full for report in reports]).sum(0),
        sum(report.cache_bytes for report in reports),
        sum(report.peak_cache_bytes for report in reports),
        next((report.predicted_damage for report in reversed(reports) if report.predicted_damage is not None), None),
    )
