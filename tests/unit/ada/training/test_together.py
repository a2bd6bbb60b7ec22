"""What one process fails of, all hear of: also where the others wait in the middle of their work."""

from pathlib import Path

import pytest
import torch

from ada.rewards import WeightedReward
from ada.rewards.base import Reward
from ada.training.errors import OtherProcessError, agree, together


class Failing(Reward):
    """Fails on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, images: torch.Tensor, prompts: object, reference: object = None) -> torch.Tensor:
        if self.rank == 1:
            raise OSError("The disk is full.")
        return images.flatten(1).mean(1)


def _score(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    reward = WeightedReward({"mean": Failing(rank)}, {"mean": 1.0}, relative=False, normalisation={"mean": "running"})
    reward.before_sharing = agree
    images = torch.rand(2, 3, 8, 8)
    try:
        together(lambda: reward(images, ["a", "b"], images, update_statistics=True))
    except Exception as error:
        Path(folder, str(rank)).write_text(f"{type(error).__name__}: {error}")
    # those that go on must be in step
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total.item() == 2
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # starts two Python processes
def test_a_process_that_fails_before_statistics_are_shared_leaves_no_other_waiting(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_score, args=(str(tmp_path),), nprocs=2)
    told = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert told == ["OtherProcessError: Process 1 stopped: The disk is full.", "OSError: The disk is full."]


def test_one_process_alone_has_nobody_to_ask() -> None:
    agree()
    assert together(lambda: 7) == 7
    with pytest.raises(OtherProcessError):
        together(_raise)


def _raise() -> None:
    raise OtherProcessError("Process 1 stopped.")
