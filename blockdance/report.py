"""What a generation did, per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockdance.cost import CallShape, ForwardCost
from blockdance.generation import Generation
from blockdance.kinds import Kind
from blockdance.schedule import COMPUTE


@dataclass(frozen=True)
class BlockDanceReport:
    """What the last generation did.

    Args:
        actions: int64 `(images, num_steps)`, the actions really taken; −1 for steps that did not run.
        kinds: the kinds of reuse that the actions refer to.
        macs_computed: float64 `(images,)`, MACs of the denoising steps that ran, all guidance branches together.
        macs_full: float64 `(images,)`, MACs of the same steps with every block computed.
        cache_bytes: bytes that the cache holds now.
        peak_cache_bytes: most bytes that it held.
    """

    actions: Tensor
    kinds: tuple[Kind, ...]
    macs_computed: Tensor
    macs_full: Tensor
    cache_bytes: int
    peak_cache_bytes: int

    @property
    def compute_saved(self) -> Tensor:
        """Share of the denoising MACs saved per image: float64 `(images,)`."""
        return 1.0 - self.macs_computed / self.macs_full

    def __str__(self) -> str:
        lines = [
            f"BlockDance: {float(self.compute_saved.mean()):.1%} of the denoising MACs saved, "
            f"cache at most {self.peak_cache_bytes / 2**20:.2f} MiB"
        ]
        symbols = {-1: " ", COMPUTE: "█", **{action: str(action) for action in range(1, len(self.kinds) + 1)}}
        for image, (actions, saved) in enumerate(zip(self.actions.tolist(), self.compute_saved.tolist(), strict=True)):
            lines.append(f"  image {image}: {''.join(symbols[action] for action in actions)}  {saved:.1%} saved")
        legend = [f"{action} = {kind}" for action, kind in enumerate(self.kinds, 1)]
        return "\n".join([*lines, "  █ computes; " + "; ".join(legend)])


def report_of(generation: Generation, kinds: Sequence[Kind], cost: Callable[[CallShape], ForwardCost]) -> BlockDanceReport:
    """What one transformer did in a generation.

    Args:
        generation: what was kept of it.
        kinds: the kinds of reuse that its actions refer to.
        cost: MACs of a forward call of a shape.
    """
    computed = torch.zeros(generation.num_images, dtype=torch.float64)
    full = torch.zeros_like(computed)
    for call in generation.calls:
        per_image = cost(call.shape).per_action(kinds) / generation.num_images
        computed += per_image[call.actions]
        full += per_image[COMPUTE]
    return BlockDanceReport(
        torch.tensor(generation.taken), tuple(kinds), computed, full, generation.cache_bytes, generation.peak_cache_bytes
    )


def joined(reports: Sequence[BlockDanceReport]) -> BlockDanceReport:
    """The reports of a generation's transformers as one: where several ran at a step, the largest action is shown."""
    if len(reports) == 1:
        return reports[0]
    return BlockDanceReport(
        torch.stack([report.actions for report in reports]).amax(0),
        max((report.kinds for report in reports), key=len),
        torch.stack([report.macs_computed for report in reports]).sum(0),
        torch.stack([report.macs_full for report in reports]).sum(0),
        sum(report.cache_bytes for report in reports),
        sum(report.peak_cache_bytes for report in reports),
    )
