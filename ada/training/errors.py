"""What can be wrong with a run, said in one line."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ada.data import PromptsError
from ada.rewards import RewardError
from ada.schedules import LadderError
from blockdance import BlockDanceError

Result = TypeVar("Result")


class RunError(ValueError):
    """A run that cannot begin or go on: its settings, its folder or its numbers; says what to do."""


class OtherProcessError(RunError):
    """Another process has failed, which all of them know."""


class NothingLearntError(RuntimeError):
    """A policy that does not beat the mixture of static schedules, where it was required to."""


EXPECTED_ERRORS = (
    OSError, BlockDanceError, LadderError, PromptsError, RewardError, RunError, NothingLearntError, MisconfigurationException,
)  # fmt: skip
"""Errors whose message is all that a person needs."""


def together(work: Callable[[], Result]) -> Result:
    """Does a part of a rank's own work; where it fails on one rank, all of them raise, so that none waits for ever.

    Every rank has to call it equally often; work that waits for the others on its way calls `agree` right before. With one process it is
    a plain call.

    Raises:
        OtherProcessError: on the other ranks, with the message of the first one that failed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return work()
    failure: Exception | None = None
    result: Any = None
    try:
        result = work()
    except OtherProcessError:
        raise  # it came from within, where all were told
    except Exception as error:
        failure = error
    messages: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(messages, None if failure is None else f"{failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise OtherProcessError(f"Process {rank} stopped: {message}")
    return result  # type: ignore[no-any-return]


def agree() -> None:
    """Within the work of `together`: waits until every rank has come as far, or one has failed on its way.

    Raises:
        OtherProcessError: one has.
    """
    together(lambda: None)
