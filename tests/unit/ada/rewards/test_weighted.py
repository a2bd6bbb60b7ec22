"""The base, differences to the reference, and the weighted sum, on cases worked out by hand."""

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ada.rewards import PSNR, Relative, Reward, RewardError, WeightedReward
from ada.rewards.statistics import RunningStatistics


class Brightness(Reward):
    """A user's reward: the mean of the pixels. Remembers how many images it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        assert len(images) == len(prompts) == len(reference)
        self.seen.append(len(images))
        return images.flatten(1).mean(1)


def grey(*levels: float) -> Tensor:
    """Images `(images, 3, 4, 4)` of one level each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 4).clone()


def test_relative_subtracts_the_reference_and_caps_the_gain() -> None:
    values = Relative(Brightness(), positive_cap=0.1)(grey(0.3, 0.55, 0.8), ["a", "b", "c"], grey(0.5, 0.5, 0.5))
    assert values.tolist() == pytest.approx([-0.2, 0.05, 0.1], abs=1e-6)


def test_a_groups_reference_is_scored_once() -> None:
    """Four images of one prompt, then two of another with an equal reference, then one with its own."""
    reward = Brightness()
    reference = grey(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25)
    images = grey(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0)
    values = Relative(reward, positive_cap=9.0)(images, ["a"] * 4 + ["b"] * 2 + ["c"], reference)
    assert values.tolist() == pytest.approx([-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, -0.25], abs=1e-6)
    assert reward.seen == [7, 3]


def test_a_reward_tells_what_it_holds() -> None:
    inner = ["PSNR", {"maximum": 60.0, "scale": 2.0}]
    assert Relative(PSNR(scale=2.0)).describe() == ["Relative", {"reward": inner, "positive_cap": 0.1}]
    weighted = WeightedReward({"psnr": PSNR(scale=2.0)}, {"psnr": 0.5}).describe()
    assert weighted["parts"] == {"psnr": inner}
    assert weighted["weights"] == {"psnr": 0.5}


class Bands(Brightness):
    """A user's reward with settings of all sorts."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        vars(self).update(settings)


def test_rewards_that_differ_in_a_setting_of_any_sort_are_told_apart() -> None:
    settings = [
        {"bands": [1, 2]}, {"bands": [1, 3]}, {"bands": (1, None, Path("a"))}, {"bands": {"low": PSNR()}}, {"bands": {"low": PSNR(2.0)}},
        {"file": Path("a")}, {"file": Path("b")}, {"is_sharp": True}, {"is_sharp": False}, {},
        {"target": torch.zeros(2)}, {"target": torch.ones(2)}, {"target": torch.zeros(2, 1)}, {"bands": [torch.ones(2)]},
    ]  # fmt: skip
    told = [json.dumps(Bands(**some).describe()) for some in settings]
    assert len(set(told)) == len(settings)
    assert told == [json.dumps(Bands(**some).describe()) for some in settings], "and equal ones are not"


def test_a_users_reward_is_told_by_its_module_and_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is edited, or has another's name, must not be given what is kept of the other."""
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (
        "from ada.rewards import Reward\n\n\nclass Contrast(Reward):\n    def __call__(self, images, prompts, reference):\n"
    )
    told = []
    for module, value in (("mine", "std"), ("mine", "amax"), ("theirs", "std")):
        (tmp_path / f"{module}.py").write_text(f"{source}        return images.flatten(1).{value}(1)\n")
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        told.append(importlib.import_module(module).Contrast().describe()[0])
    assert len(set(told)) == 3
    assert [name.partition(" ")[0] for name in told] == ["mine.Contrast", "mine.Contrast", "theirs.Contrast"]


def test_a_reward_that_reads_prompts_is_refused_where_there_are_class_labels() -> None:
    class Reads(PSNR):
        needs_text = True

    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(
        RewardError, match=r"`words` reads prompts, and these are none, such as 207: take one that looks at images alone"
    ):
        WeightedReward({"words": Reads()}, {"words": 1.0})(images, [207, 360], images)  # type: ignore[list-item]


def test_what_is_no_tensor_is_named() -> None:
    class Plain(Reward):
        def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
            return images.flatten(1).mean(1).tolist()

    with pytest.raises(RewardError, match="`plain` gave a list for 2 images; it must give a tensor of one value an image"):
        WeightedReward({"plain": Plain()}, {"plain": 1.0})(grey(0.1, 0.2), ["a", "b"], grey(0.1, 0.2))


def test_names_that_tables_need_are_refused() -> None:
    with pytest.raises(ValueError, match="must not name a part 'damage', under which something else is kept"):
        WeightedReward({"damage": PSNR()}, {"damage": 1.0})


def test_weighted_sum_is_relative_and_capped_by_default() -> None:
    """Brightness becomes a difference and cannot gain; PSNR compares with the reference anyway and stays."""
    images, reference = grey(0.4, 0.7), grey(0.5, 0.5)
    result = WeightedReward({"bright": Brightness(), "psnr": PSNR()}, {"bright": 2.0, "psnr": 0.1})(
        images, ["a", "b"], reference
    )
    psnr = [20.0, -20 * torch.tensor(0.2).log10().item()]
    assert result.parts["bright"].tolist() == pytest.approx([-0.1, 0.2], abs=1e-6), "parts show what the cap hides"
    assert result.parts["psnr"].tolist() == pytest.approx(psnr, abs=1e-4)
    assert result.total.tolist() == pytest.approx([2 * -0.1 + 0.1 * psnr[0], 0.1 * psnr[1]], abs=1e-5)
    assert result.kept.tolist() == [True, True]
    absolute = WeightedReward({"bright": Brightness()}, {"bright": 2.0}, relative=False)(images, ["a", "b"], reference)
    assert absolute.total.tolist() == pytest.approx([0.8, 1.4])
    looser = WeightedReward({"bright": Brightness()}, {"bright": 2.0}, positive_cap=0.05)(images, ["a", "b"], reference)
    assert looser.total.tolist() == pytest.approx([-0.2, 0.1], abs=1e-6)


def test_running_normalisation_divides_by_the_deviation_of_all_training_batches() -> None:
    reward = WeightedReward({"bright": Brightness()}, {"bright": 3.0}, normalisation={"bright": "running"})
    first = reward(grey(0.2, 0.4), ["a", "b"], grey(0.5, 0.5), update_statistics=True)
    deviation = torch.tensor([-0.3, -0.1]).std(correction=0)  # 0.1
    assert first.total.tolist() == pytest.approx([3 * -0.3 / deviation.item(), 3 * -0.1 / deviation.item()], rel=1e-4)
    reward(grey(0.9), ["a"], grey(0.5), update_statistics=True)
    deviation = torch.tensor([-0.3, -0.1, 0.4]).std(correction=0)
    validation = reward(grey(0.1), ["a"], grey(0.5))
    again = reward(grey(0.1), ["a"], grey(0.5))
    assert validation.total.item() == again.total.item() == pytest.approx(3 * -0.4 / deviation.item(), rel=1e-4)
    assert validation.parts["bright"].item() == pytest.approx(-0.4, abs=1e-6), "parts are logged raw"


def test_reference_normalisation_divides_by_the_deviation_between_references() -> None:
    images, reference = grey(0.1, 0.2, 0.3), grey(0.2, 0.4, 0.9)
    deviation = torch.tensor([0.2, 0.4, 0.9]).std(correction=0).item()
    relative = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, normalisation={"bright": "reference"})
    result = relative(images, ["a", "b", "c"], reference, update_statistics=True)
    assert result.total.tolist() == pytest.approx([-0.1 / deviation, -0.2 / deviation, -0.6 / deviation], rel=1e-4)
    absolute = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, relative=False, normalisation={"bright": "reference"})
    result = absolute(images, ["a", "b", "c"], reference, update_statistics=True)
    assert result.total.tolist() == pytest.approx([(value - 0.5) / deviation for value in (0.1, 0.2, 0.3)], rel=1e-4)


def test_statistics_of_batches_are_those_of_all_values_and_survive_a_checkpoint() -> None:
    values = torch.randn(100) * 3 + 5
    statistics, resumed = RunningStatistics(), RunningStatistics()
    assert (statistics.mean, statistics.deviation) == (0.0, 1.0)
    for batch in values[:70].split(9):
        statistics.update(batch)
    resumed.load(statistics.state())
    resumed.update(values[70:])
    assert resumed.mean == pytest.approx(values.double().mean().item())
    assert resumed.deviation == pytest.approx(values.double().std(correction=0).item())
    constant = RunningStatistics()
    constant.update(torch.full((5,), 0.3))
    assert constant.deviation == 1.0

    reward = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, normalisation={"bright": "running"})
    reward(grey(0.2, 0.4), ["a", "b"], grey(0.5, 0.5), update_statistics=True)
    other = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, normalisation={"bright": "running"})
    other.load_state(reward.state())
    batch = (grey(0.1), ["a"], grey(0.5))
    assert other(*batch).total.item() == reward(*batch).total.item() != pytest.approx(-0.4)


def test_nan_names_part_prompt_and_image() -> None:
    reward = WeightedReward({"bright": Brightness()}, {"bright": 1.0})
    images, broken = grey(0.5, 0.5), grey(0.5, 0.5)
    broken[1, 0, 0, 0] = torch.inf
    with pytest.raises(RewardError, match=r"`bright` gave inf for image 1 of the batch, prompt 'a cat'"):
        reward(broken, ["a dog", "a cat"], images)
    with pytest.raises(RewardError, match=r"`bright` gave -inf for the reference of image 1 of the batch, prompt 'a cat'"):
        reward(images, ["a dog", "a cat"], broken)


def test_dropping_leaves_the_image_out(caplog: pytest.LogCaptureFixture) -> None:
    """The dropped image takes the mean of the kept ones of its prompt, so that no mean and no baseline notices it."""
    reward = WeightedReward(
        {"bright": Brightness()}, {"bright": 2.0}, relative=False, normalisation={"bright": "running"}, on_broken="drop"
    )
    images = grey(0.2, torch.nan, 0.6, 0.8)
    with caplog.at_level(logging.WARNING):
        result = reward(images, ["a", "a", "a", "b"], images, update_statistics=True)
    assert "`bright` gave nan for image 1 of the batch, prompt 'a'. The image is left out." in caplog.text
    assert result.kept.tolist() == [True, False, True, True]
    assert result.parts["bright"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    kept = torch.tensor([0.2, 0.6, 0.8])
    expected = 2 * (kept - kept.mean()) / kept.std(correction=0)
    assert result.total[result.kept].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert result.total[1].item() == pytest.approx(expected[:2].mean().item(), abs=1e-5)
    with pytest.raises(RewardError, match="None of the 2 images"):
        reward(grey(torch.nan, torch.nan), ["a", "b"], grey(0.5, 0.5))


def test_a_reward_of_another_shape_is_named() -> None:
    class Pixels(Reward):
        def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
            return images.flatten(1)

    with pytest.raises(RewardError, match=r"`pixels` gave the shape \(2, 48\) for 2 images"):
        WeightedReward({"pixels": Pixels()}, {"pixels": 1.0})(grey(0.1, 0.2), ["a", "b"], grey(0.1, 0.2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"dark": 1.0}}, "same parts"),
        ({"positive_cap": -0.1}, "`positive_cap` must be 0 or more; got -0.1"),
        ({"on_broken": "ignore"}, "'stop' or 'drop'; got 'ignore'"),
        ({"normalisation": {"dark": "running"}}, "names 'dark', which is none of the parts"),
        ({"normalisation": {"bright": "mean"}}, "'running' or 'reference'; got 'mean'"),
        ({"normalisation": {"psnr": "reference"}}, "'psnr' cannot be 'reference'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"rewards": {"bright": Brightness(), "psnr": PSNR()}, "weights": {"bright": 1.0, "psnr": 1.0}}
    with pytest.raises(ValueError, match=message):
        WeightedReward(**(usual | settings))  # type: ignore[arg-type]


def _count_together(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    reward = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, normalisation={"bright": "running"})
    levels = [(0.1, 0.2), (0.3, 0.4)][rank]
    reward(grey(*levels), ["a", "b"], grey(0.5, 0.5), update_statistics=True)
    Path(folder, f"{rank}.json").write_text(json.dumps(reward.state()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # starts two Python processes
def test_two_processes_share_their_statistics(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_count_together, args=(str(tmp_path),), nprocs=2)
    alone = WeightedReward({"bright": Brightness()}, {"bright": 1.0}, normalisation={"bright": "running"})
    alone(grey(0.1, 0.2, 0.3, 0.4), ["a", "b", "c", "d"], grey(0.5, 0.5, 0.5, 0.5), update_statistics=True)
    for rank in (0, 1):
        state = json.loads((tmp_path / f"{rank}.json").read_text())
        assert state["bright"] == pytest.approx(alone.state()["bright"])
