import pytest
import torch

from blockdance import BlockDanceConfig, Reuse, ReuseSchedule, ScheduleError, blockdance_n, full_compute, random_schedule

KIND = Reuse(boundary=2)


@pytest.mark.parametrize(
    ("interval", "reused"),
    [
        (2, [9, 11, 13, 15, 17]),
        (3, [9, 10, 12, 13, 15, 16, 18]),
        (4, [9, 10, 11, 13, 14, 15, 17, 18]),
    ],
)
def test_blockdance_n_reuses_the_papers_steps(interval: int, reused: list[int]) -> None:
    """20 steps, range 40–95 %: steps 8 to 18 in groups of N, the first of each group computes."""
    actions = blockdance_n(20, interval, KIND).actions
    assert actions[0].nonzero().flatten().tolist() == reused


def test_an_extrapolation_waits_for_its_second_computed_step() -> None:
    """From the very start BlockDance-2 reuses every second step; what extrapolates begins a step later."""
    given, extrapolated = (blockdance_n(6, 2, Reuse(boundary=2, order=order), (0.0, 1.0)) for order in (0, 1))
    assert given.actions.tolist() == [[0, 1, 0, 1, 0, 1]]
    assert extrapolated.actions.tolist() == [[0, 0, 1, 0, 1, 0]]


def test_default_boundary_scales_the_papers_20_of_28() -> None:
    assert BlockDanceConfig().kind(28).boundary == 20
    assert BlockDanceConfig().kind(16).boundary == 11
    assert BlockDanceConfig().kind(1).boundary == 0
    assert BlockDanceConfig(boundary=15).kind(16).boundary == 15


def test_random_schedule_meets_its_count() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = random_schedule(64, 20, 4, KIND, generator).actions
    assert exact.sum(1).tolist() == [4] * 64
    assert exact[:, :9].sum() == 0
    assert exact[:, 19].sum() == 0
    assert (exact.float().mean(0)[9:19] > 0.2).all()
    fractional = random_schedule(4000, 20, 4.25, KIND, generator).actions.sum(1).float()
    assert set(fractional.tolist()) == {4.0, 5.0}
    assert abs(fractional.mean().item() - 4.25) < 0.03


@pytest.mark.parametrize(
    ("actions", "kinds", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), (KIND,), "shape"),
        (torch.zeros(1, 4), (KIND,), "int64"),
        (torch.tensor([[0, 2]]), (KIND,), "between 0"),
        (torch.tensor([[0, 1], [1, 0]]), (KIND,), "Step 0 of image 1"),
        (torch.tensor([[0, 1]]), (Reuse(boundary=2, order=1),), "needs 2"),
    ],
)
def test_wrong_schedules_are_named(actions: torch.Tensor, kinds: tuple[Reuse, ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        ReuseSchedule(actions, kinds)


def test_what_is_expected_is_of_every_row() -> None:
    actions = torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(ScheduleError, match=r"one value per row of `actions`, 2; got the shape \(1,\)"):
        ReuseSchedule(actions, (KIND,), torch.tensor([0.1]))
    expanded = ReuseSchedule(actions[:1], (KIND,), torch.tensor([0.1])).expand(3)
    assert expanded.predicted_damage is not None
    assert torch.equal(expanded.predicted_damage, torch.full((3,), 0.1))


def test_expand_serves_one_or_the_same_batch() -> None:
    one = blockdance_n(6, 2, KIND)
    assert one.expand(3).actions.shape == (3, 6)
    with pytest.raises(ScheduleError, match="2 images, but the batch has 3"):
        full_compute(2, 6).expand(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"interval": 1}, "interval"), ({"reuse_range": (0.9, 0.2)}, "reuse_range")],
)
def test_wrong_config_is_named(options: dict, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        BlockDanceConfig(**options)
