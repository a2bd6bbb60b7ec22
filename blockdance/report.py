"""What a generation did, per image."""

from dataclasses import dataclass

from torch import Tensor

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
