"""How much features change from step to step, and what is proposed from it: boundary, range and N, or a Block Caching schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from blockdance.cost import ForwardCost
from blockdance.errors import ScheduleError
from blockdance.schedule import BlockDanceConfig, ReuseSchedule, block_caching, step_range

DEFAULT_TOLERANCE = 0.1
INTERVALS = (2, 3, 4)
"""N of BlockDance-N (section 4.2)."""


@dataclass(frozen=True)
class FeatureChange:
    """How every block's output differs from the step before; NaN at the first step, and at steps that the transformer did not run.
    Guidance branches of an image are averaged.

    Args:
        cosine: float32 `(images, num_steps, num_blocks)`, cosine similarity of the outputs (BlockDance, figure 2).
        output_change: the same shape, relative L1 change ‖o_s − o_{s−1}‖₁ / ‖o_s‖₁ of the outputs.
        block_change: the same shape, relative L1 change of what the block adds, output minus input (Block Caching, section 3.2).
        cost: MACs of one forward call.
    """

    cosine: Tensor
    output_change: Tensor
    block_change: Tensor
    cost: ForwardCost

    def __post_init__(self) -> None:
        assert self.cosine.shape == self.output_change.shape == self.block_change.shape

    @property
    def num_steps(self) -> int:
        return self.cosine.shape[1]

    @property
    def steps_run(self) -> range:
        """The steps that the transformer ran: of two transformers each runs a part."""
        seen = (~self.cosine[0].isnan()).any(1).nonzero().flatten().tolist()
        return range(seen[0] - 1, seen[-1] + 1)

    def saved(self, schedule: ReuseSchedule) -> float:
        """Share of the MACs of the steps that ran."""
        ran = self.steps_run
        return float(self.cost.compute_saved(schedule.actions[:, ran.start : ran.stop], schedule.kinds))

    def propose(self, tolerance: float, intervals: Sequence[int] = INTERVALS, reuse_end: float = 0.95) -> BlockDanceConfig:
        """The BlockDance-N that saves most while what it injects stays within a tolerance.

        A reuse step injects the output of the last computed step; by the triangle inequality it is off by at most the sum of the
        changes since. Every boundary, N and start of the range is tried; the mean over images is compared with the tolerance.

        Args:
            tolerance: largest relative L1 error of the injected features.
            intervals: the N to choose from.
            reuse_end: end of the range, as a fraction of the steps.

        Raises:
            ScheduleError: nothing stays within the tolerance, it is not positive and finite, or the transformer ran fewer than three steps.
        """
        if not 0 < tolerance < math.inf:
            raise ScheduleError(f"`tolerance` must be positive and finite: features always change a little; got {tolerance}.")
        if len(self.steps_run) < 3:
            raise ScheduleError(
                f"Of the {len(self.steps_run)} denoising steps that the transformer ran, BlockDance-N reuses none: the first, and the "
                "first of every group, compute. Take three or more."
            )
        changes = self.output_change.mean(0).double()
        best, best_saved = None, 0.0
        end = min(reuse_end, self.steps_run.stop / self.num_steps)
        for boundary in range(changes.shape[1]):
            for interval in intervals:
                start = self._earliest_start(changes[:, boundary], interval, tolerance, end)
                if start is None:
                    continue
                config = BlockDanceConfig(interval=interval, boundary=boundary, reuse_range=(start, end))
                saved = self.saved(config.schedule(self.num_steps, changes.shape[1]))
                if saved > best_saved:
                    best, best_saved = config, saved
        if best is None:
            smallest = float(changes[~changes.isnan()].min())
            raise ScheduleError(
                f"No schedule keeps the injected features within a tolerance of {tolerance:g}: the smallest relative change of any "
                f"block between two steps is {smallest:.3g}. Allow more, or take more denoising steps."
            )
        return best

    def _earliest_start(self, changes: Tensor, interval: int, tolerance: float, end: float) -> float | None:
        """The earliest start of the range from which no reuse step exceeds the tolerance, as a fraction of the steps."""
        _, last = step_range(self.num_steps, (0.0, end))
        earliest = None
        for first in range(last - 2, self.steps_run.start, -1):
            errors = [
                float(changes[step - (step - first) % interval + 1 : step + 1].sum())
                for step in range(first, last)
                if (step - first) % interval
            ]
            if max(errors) > tolerance:
                break
            earliest = first / self.num_steps
        return earliest

    def block_caching(self, threshold: float) -> ReuseSchedule:
        """Block Caching's automatic schedule for a threshold δ, from the mean over images."""
        return block_caching(self.block_change.mean(0), threshold)
