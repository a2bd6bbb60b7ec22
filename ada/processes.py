"""Work shared by processes of one thread each: on a CPU they do more than one process of as many threads, which wait for each other."""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

MOST_PROCESSES = 8
Task = TypeVar("Task")
Result = TypeVar("Result")


def num_processes(device: torch.device, wanted: int | None = None) -> int:
    """As many as are wanted; by default as many as torch has threads, 8 at most, and one on an accelerator, and where a process cannot
    be forked safely.

    Raises:
        ValueError: several are wanted on an accelerator, which does not survive a fork.
    """
    if device.type != "cpu" and (wanted or 1) > 1:
        raise ValueError(
            f"{wanted} processes are asked for, and on {device.type} one is all that can share it: leave the number out."
        )
    default = min(torch.get_num_threads(), MOST_PROCESSES) if device.type == "cpu" and sys.platform == "linux" else 1
    return wanted or default


def work_off(groups: Sequence[Sequence[Task]], work: Callable[[Task], Result], processes: int) -> Iterator[Result]:
    """Does tasks and gives their results as they come.

    A process stays with a group, whose tasks need something in common that takes time to make; when nothing of it is left it begins
    another, and in the end helps with those that others have begun.

    Args:
        groups: the tasks; those of a group are begun in their order.
        work: does one. It runs in forked copies of this process: only results and errors have to be picklable.
        processes: how many copies; with 1 it runs here.

    Raises:
        ChildProcessError: a process was killed.
        Exception: what `work` raises.
    """
    processes = min(processes, sum(map(len, groups)))
    if processes <= 1:
        for group in groups:
            yield from map(work, group)
        return
    context = get_context("fork")
    begun, workers, ends = context.Array("i", len(groups)), list[Any](), dict[Any, Any]()
    try:
        for _ in range(processes):
            here, there = context.Pipe(duplex=False)
            workers.append(context.Process(target=_serve, args=(groups, work, begun, there), daemon=True))
            workers[-1].start()
            there.close()  # so that the pipe ends with the process
            ends[here] = workers[-1]
        while ends:
            for end in list[Any](wait(list(ends))):
                try:
                    result, error, where = pickle.loads(end.recv_bytes())
                except EOFError:
                    worker = ends.pop(end)
                    worker.join()
                    if worker.exitcode:
                        raise ChildProcessError(
                            f"A process ended with exit code {worker.exitcode}. If memory ran out (−9), take fewer processes: "
                            "`rollout_processes` of the training data, `processes` of an evaluation or a search."
                        ) from None
                    continue
                if error is not None:
                    raise error from RuntimeError(f"In another process:\n{where}")
                yield result
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _serve(groups: Sequence[Sequence[Task]], work: Callable[[Task], Any], begun: Any, results: Connection) -> None:
    """What a process does until nothing is left, or whoever started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with this, whatever that one does with it
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn of the fork
    parent, group = os.getppid(), -1
    while os.getppid() == parent:
        with begun.get_lock():
            left = [place for place, tasks in enumerate(groups) if begun[place] < len(tasks)]
            if not left:
                return
            group = min(left, key=lambda place: (place != group, begun[place] > 0))
            task = groups[group][begun[group]]
            begun[group] += 1
        # not `send`, by which a tensor lives no longer than this process
        try:
            answer, failed = pickle.dumps((work(task), None, "")), False
        except Exception as error:
            answer, failed = pickle.dumps((None, _portable(error), traceback.format_exc())), True
        results.send_bytes(answer)
        if failed:
            return


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
