"""Work that processes share: everything is done once, groups stay together, and what fails in a process fails here."""

import os
import signal
import time
from collections import defaultdict
from multiprocessing import get_context

import pytest
import torch

from ada.processes import num_processes, work_off

GROUPS = [[(group, task) for task in range(4)] for group in range(3)]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_done_once(processes: int) -> None:
    both = get_context("fork").Barrier(processes, timeout=60)

    def work(task: tuple[int, int]) -> tuple[tuple[int, int], int]:
        both.wait()
        return task, os.getpid()

    done = list(work_off(GROUPS, work, processes))
    assert sorted(task for task, _ in done) == [task for group in GROUPS for task in group]
    workers = {process for _, process in done}
    assert len(workers) == processes
    assert (os.getpid() in workers) == (processes == 1)


def test_each_process_begins_with_a_group_of_its_own_and_helps_in_the_end() -> None:
    both = get_context("fork").Barrier(2, timeout=60)

    def work(task: tuple[int, int]) -> tuple[int, int]:
        both.wait()  # in step with each other
        return task[0], os.getpid()

    begun = defaultdict(list)
    for group, process in work_off(GROUPS, work, 2):
        begun[process].append(group)
    firsts = [groups[:4] for groups in begun.values()]
    assert sorted(firsts) == [[0] * 4, [1] * 4]
    assert [groups[4:] for groups in begun.values()] == [[2, 2]] * 2


def test_tensors_outlive_the_process_that_sends_them() -> None:
    done = list(work_off([range(4)], lambda number: torch.full((10_000,), number), 2))
    assert sorted(int(each.sum()) for each in done) == [0, 10_000, 20_000, 30_000]


def test_one_task_needs_no_other_process() -> None:
    assert list(work_off([["alone"]], lambda task: os.getpid(), 2)) == [os.getpid()]


def test_processes_end_with_the_work_though_this_one_handles_sigterm() -> None:
    """As a training run does, which finishes its step first."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    both = get_context("fork").Barrier(2, timeout=60)

    def work(task: int) -> None:
        both.wait()
        if task:
            raise OSError("The disk is full.")
        time.sleep(120)

    try:
        started = time.monotonic()
        with pytest.raises(OSError, match="The disk is full"):
            list(work_off([[0], [1]], work, 2))
        assert time.monotonic() - started < 60
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_in_a_process_is_an_error_here() -> None:
    def work(task: tuple[int, int]) -> None:
        raise OSError(f"The disk is full at {task[1]}.")

    with pytest.raises(OSError, match="The disk is full at") as caught:
        list(work_off(GROUPS[:1], work, 2))
    assert "in work" in str(caught.value.__cause__)  # where it was raised


class FailedAtError(Exception):
    """Cannot be made anew from its message alone, as unpickling does."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"{what} at {place}.")


def test_an_error_that_cannot_be_sent_says_what_it_said() -> None:
    def work(task: tuple[int, int]) -> None:
        raise FailedAtError(task[1], "Nothing was drawn")

    with pytest.raises(RuntimeError, match=r"FailedAtError: Nothing was drawn at \d") as caught:
        list(work_off(GROUPS[:1], work, 2))
    assert "in work" in str(caught.value.__cause__)


def test_an_accelerator_has_one_process() -> None:
    assert num_processes(torch.device("cuda")) == num_processes(torch.device("cuda"), 1) == 1
    assert num_processes(torch.device("cpu"), 3) == 3
    with pytest.raises(ValueError, match="3 processes are asked for, and on cuda one is all"):
        num_processes(torch.device("cuda"), 3)


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(ChildProcessError, match="ended with exit code 7"):
        list(work_off(GROUPS[:1], lambda task: os._exit(7), 2))
