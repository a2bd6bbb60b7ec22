"""Rows of a batch: taken out, put in their places and joined again, against plain indexing."""

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockdance.pieces import RowSet
from blockdance.rows import RowPlan


class Index(TorchDispatchMode):
    """Counts the kernels that copy rows."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.copies += function not in (torch.ops.aten.slice.Tensor, torch.ops.aten.split_with_sizes.default)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("rows", list(product(range(3), repeat=3)), ids=str)
@pytest.mark.parametrize("frames", [1, 2])
def test_taken_rows_are_those_of_indexing(rows: tuple[int, ...], frames: int) -> None:
    tensor = torch.arange(3 * frames * 2).view(3 * frames, 2)
    expected = tensor.view(3, frames, 2)[list(rows)].flatten(0, 1)
    assert torch.equal(RowSet(rows, 3).take(tensor), expected)
    assert torch.equal(RowSet(rows, 3).take(tensor.T.contiguous(), dim=1), expected.T)
    copy = RowSet(rows, 3).copy(tensor)
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_contiguous_rows_are_narrowed_and_others_take_one_kernel() -> None:
    tensor = torch.randn(8, 2)
    with Index() as index:
        taken = RowSet([2, 3, 4], 8).take(tensor)
    assert index.copies == 0
    assert taken.data_ptr() == tensor[2].data_ptr()
    with Index() as index:
        RowSet([0, 2, 3, 6], 8).take(tensor)
    assert index.copies == 1


class Output(NamedTuple):
    """What some models return instead of a tuple."""

    sample: Tensor
    kind: str


ACTIONS = list(product(range(2), repeat=4))
TWINS = [None, [0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 0, 1], [0, 1, 2, 0]]


@pytest.mark.parametrize("twins", TWINS, ids=str)
@pytest.mark.parametrize("branches", [1, 2])
def test_every_row_gets_what_its_first_twin_of_the_same_action_computed(twins: list[int] | None, branches: int) -> None:
    """Rows of a class hold the class's number; a group adds 100 for its action."""
    for actions in ACTIONS:
        classes = twins or [0, 1, 2, 3]
        inputs = torch.tensor([10.0 * branch + number for branch in range(branches) for number in classes])[:, None]
        step = RowPlan(actions, twins, branches)
        outputs = [group.rows.take(inputs) + 100 * group.action for group in step.groups]
        expected = inputs + 100 * torch.tensor(actions).repeat(branches)[:, None]
        assert torch.equal(step.join(outputs), expected)
        assert step.join([list(output) for output in outputs]) == list(expected)
        named = step.join([Output(output, "eps") for output in outputs])
        assert torch.equal(named.sample, expected)
        assert named.kind == "eps"
        buffer = torch.full_like(inputs, -1.0)
        for group, output in zip(step.groups, outputs, strict=True):
            group.placement.put(buffer, output)
            # of one class and action only one row runs
            classes_run = [classes[row % 4] for row in group.rows.rows]
            assert len(set(zip(classes_run, (row // 4 for row in group.rows.rows), strict=True))) == len(group.rows)
        assert torch.equal(buffer, expected)


def test_no_group_has_more_rows_than_allowed() -> None:
    plan = RowPlan([0, 0, 1, 0, 0], None, num_branches=2, max_rows=4)
    assert [group.rows.rows for group in plan.groups] == [(0, 1, 5, 6), (2, 7), (3, 4, 8, 9)]
    rows = torch.arange(10.0)[:, None]
    assert torch.equal(plan.join([group.rows.take(rows) for group in plan.groups]), rows)
