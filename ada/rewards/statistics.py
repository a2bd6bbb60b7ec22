"""Mean and deviation of values that arrive in batches, over all processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-12
"""A variance below this is that of one value repeated."""


class RunningStatistics:
    """Statistics of everything seen, the same in every process of a distributed run."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0.0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Adds values `(any,)`. In a distributed run every process must call this as often as the others."""
        exact = values.detach().to("cpu", torch.float64)
        sums = torch.stack([torch.tensor(float(len(exact)), dtype=torch.float64), exact.sum(), exact.square().sum()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = sums.to(values.device)
            torch.distributed.all_reduce(shared)
            sums = shared.cpu()
        count, total, squares = sums.tolist()
        self._count, self._sum, self._squares = self._count + count, self._sum + total, self._squares + squares

    @property
    def mean(self) -> float:
        """0 before anything was seen."""
        return self._sum / self._count if self._count else 0.0

    @property
    def deviation(self) -> float:
        """Square root of the variance; 1 while all values seen are one and the same."""
        if self._count < 2:
            return 1.0
        variance = self._squares / self._count - self.mean**2
        return variance**0.5 if variance > TINY else 1.0

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self._count, self._sum, self._squares]

    def load(self, state: Sequence[float]) -> None:
        """Takes up what `state` gave."""
        self._count, self._sum, self._squares = state
