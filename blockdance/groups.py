"""Images of a batch that have the same prompt and noise: what they share is computed once."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockdance.errors import ScheduleError
from blockdance.generation import Generation
from blockdance.layouts import BlockLayout
from blockdance.pieces import RowSet

ROUNDING = 0.01
"""Of the largest value. Noise that a sampler draws is many times as large."""


class Groups:
    """Which images of a batch are one image as long as their actions are equal.

    Args:
        numbers: a number for each image; images of one number have the same prompt and noise.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def twins(self, generation: Generation, step: int) -> list[int]:
        """For each image the first of its group that has taken the same actions up to this step."""
        keys = [(group, tuple(taken[: step + 1])) for group, taken in zip(self._numbers, generation.taken, strict=True)]
        return _first_equal(keys)

    def repeat_after(self, part: int, num_rows: int) -> bool:
        """Whether rows `part` apart are said to be images of one group, and so no guidance branches of one image."""
        return len(self) == num_rows and self._numbers[part:] == self._numbers[:-part]

    def check(
        self, inputs: Mapping[str, Any], layout: BlockLayout, generation: Generation, step: int, num_rows: int, sampler: str
    ) -> None:
        """Checks at a generation's first two steps that images of one group which took the same actions are given the same: at the first
        by the pipeline, at the second by its sampler.

        Args:
            inputs: of the forward call.
            layout: which of them have no rows.
            generation: tells the images, and their actions so far.
            step: of the call.
            num_rows: rows of the call: images times guidance branches.
            sampler: what the message calls it.

        Raises:
            ScheduleError: another number of images; or images of one group that differ, and in what.
        """
        num_images = generation.num_images
        if len(self) != num_images:
            raise ScheduleError(f"`groups` names {len(self)} images, but the batch has {num_images}.")
        firsts = self.twins(generation, step - 1)
        rows = RowSet([branch + first for branch in range(0, num_rows, num_images) for first in firsts], num_rows)
        is_first = all(action < 0 for actions in generation.taken for action in actions)
        for name, value in inputs.items():
            tensors = [] if name in layout.shared_arguments else tree_leaves(value)
            for tensor in (leaf for leaf in tensors if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == num_rows):
                same = tensor.equal if is_first else partial(_are_close, tensor)
                if not same(rows.take(tensor)):
                    raise ScheduleError(
                        f"Images of one group must have the same prompt and noise, but the pipeline gives them another `{name}`. "
                        f"{'It' if is_first else f'Its sampler {sampler}'} may draw numbers of its own that do not come from `generator`; "
                        "then two calls differ, and schedules cannot be compared."
                    )


def _are_close(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are equal but for how their rows were rounded; what is no number differs from nothing."""
    if not one.is_floating_point():
        return one.equal(other)
    return not bool(((one - other).abs() > ROUNDING * one.abs().nan_to_num().amax()).any())


def _first_equal(keys: Sequence[Any]) -> list[int]:
    first: dict[Any, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]
