"""Rollouts against the stock pipeline, the table on disk, the collector."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from ladders import CASES, KINDS, RUNGS, STEPS, build_frozen, build_ladder, build_reward
from torch import Tensor

from ada.rewards import PSNR, RewardError, WeightedReward
from ada.rollouts import Case, Collector, FrozenPipeline, Table, roll_out
from ada.search import ScheduleSearch
from blockdance import ReuseSchedule, ScheduleError


def count_calls(frozen: FrozenPipeline) -> list[int]:
    calls: list[int] = []
    frozen.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


# --- rollouts ---


def test_rollout_is_what_each_schedule_gives_alone() -> None:
    frozen, ladder = build_frozen(), build_ladder()
    prompts, seeds = [case.prompt for case in CASES[:2]], [case.seed for case in CASES[:2]]
    rollout = roll_out(frozen, prompts, seeds, ladder.actions.expand(2, -1, -1), KINDS, (2, 4))
    assert rollout.images.shape == (2, len(RUNGS), 3, 16, 16)
    for rung in (0, 3, 4):
        alone = frozen.generate(prompts, seeds, ReuseSchedule(ladder.actions[[rung, rung]], KINDS)).images
        torch.testing.assert_close(rollout.images[:, rung], alone, atol=1e-4, rtol=0)
    assert (rollout.images[:, 4] - rollout.images[:, 0]).abs().max() > 1e-2
    assert sorted(rollout.states) == [2, 4]
    assert rollout.states[4].num_images == 2 * len(RUNGS)
    first, second = rollout.states[2], rollout.states[4]
    assert torch.equal(first.clean[0], first.clean[5]), "before the first decision all rungs are one image"
    assert torch.equal(second.clean[3], second.clean[4])
    assert not torch.equal(second.clean[3], second.clean[5])


class DrawsItself(DPMSolverMultistepScheduler):
    """A sampler whose noise comes from no generator."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        (moved,) = super().step(model_output, timestep, sample, *args, **kwargs)
        return (moved + 0.1 * torch.randn_like(moved),)


def test_a_stochastic_sampler_is_shared_exactly() -> None:
    """Its noise comes from each prompt's generator, so that rows of one prompt draw the same."""
    frozen, ladder = build_frozen(), build_ladder()
    config = frozen.pipeline.scheduler.config
    deterministic = roll_out(frozen, ["sun"], [1], ladder.actions[None], KINDS, (2, 4)).images
    frozen.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    rollout = roll_out(frozen, ["sun"], [1], ladder.actions[None], KINDS, (2, 4)).images
    assert (rollout - deterministic).abs().max() > 1e-2
    for rung in range(len(RUNGS)):
        alone = frozen.generate(["sun"], [1], ReuseSchedule(ladder.actions[[rung]], KINDS)).images
        torch.testing.assert_close(rollout[:, rung], alone, atol=1e-4, rtol=0)


def test_a_sampler_that_draws_numbers_of_its_own_is_refused() -> None:
    frozen = build_frozen()
    frozen.pipeline.scheduler = DrawsItself.from_config(frozen.pipeline.scheduler.config)
    with pytest.raises(ScheduleError, match="Its sampler DrawsItself may draw numbers of its own"):
        roll_out(frozen, ["sun"], [1], build_ladder().actions[None], KINDS, (2, 4))


def test_wrong_arguments_are_named() -> None:
    frozen = build_frozen()
    with pytest.raises(
        ValueError, match=r"PixArtAlphaPipeline takes no argument `guidance` in its call\. It takes .*guidance_scale"
    ):
        FrozenPipeline(frozen.pipeline, STEPS, {"guidance": 3.0})
    with pytest.raises(FileNotFoundError, match=r"checkpoints/none.*model_index"):
        FrozenPipeline("checkpoints/none")


def test_fingerprint_tells_weights_steps_and_arguments_apart() -> None:
    frozen = build_frozen()
    same, other = build_frozen(), build_frozen()
    assert same.fingerprint() == frozen.fingerprint()
    assert frozen.with_steps(9).fingerprint() != frozen.fingerprint()
    with torch.no_grad():
        next(iter(other.transformer.parameters())).add_(0.1)
    assert other.fingerprint()["weights"] != frozen.fingerprint()["weights"]


# --- the table ---


def fill(table: Table, number: int) -> tuple[list[Case], Tensor, Tensor]:
    cases = [Case(f"prompt {number} “ü”", number), Case("other", number)]
    damage, sights = torch.rand(2, 3), torch.rand(2, 4, 5)
    table.add(cases, {"damage": damage}, sights)
    return cases, damage, sights


def test_rows_survive_a_new_object(tmp_path: Path) -> None:
    table = Table(tmp_path, {"ladder": 1})
    cases, damage, sights = fill(table, 7)
    again = Table(tmp_path, {"ladder": 1})
    assert len(again) == 2
    assert torch.equal(again[cases[1]].values["damage"], damage[1])
    assert torch.equal(again[cases[0]].sights, sights[0])
    assert Case("other", 8) not in again
    fill(table, 8)
    assert Case("other", 8) not in again
    again.reload()
    assert Case("other", 8) in again


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    table, other = Table(tmp_path, {"ladder": 1}), Table(tmp_path, {"ladder": 2})
    fill(table, 7)
    other.reload()
    assert len(other) == 0
    assert table.folder != other.folder


def test_a_truncated_file_is_put_aside_and_the_rest_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = Table(tmp_path, {"ladder": 1})
    lost, _, _ = fill(table, 1)
    assert table.folder is not None
    (file,) = table.folder.glob("*.safetensors")
    kept, damage, _ = fill(table, 2)
    file.write_bytes(file.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        again = Table(tmp_path, {"ladder": 1})
    assert f"{file.name} cannot be read" in caplog.text
    assert "run again" in caplog.text
    assert lost[0] not in again
    assert torch.equal(again[kept[0]].values["damage"], damage[0])
    assert file.with_suffix(".broken").is_file()
    fill(again, 1)
    assert lost[0] in Table(tmp_path, {"ladder": 1})


@pytest.mark.parametrize("obstacle", ["gone", "file"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, obstacle: str) -> None:
    table = Table(tmp_path, {"ladder": 1})
    assert table.folder is not None
    (table.folder / "settings.json").unlink()
    table.folder.rmdir()
    if obstacle == "file":
        table.folder.write_text("in the way")
    with pytest.raises(OSError, match=r"rollouts could not be written to .*choose another folder"):
        fill(table, 1)
    assert len(table) == 0


# --- the collector ---


def test_second_fill_computes_nothing(tmp_path: Path) -> None:
    frozen = build_frozen()
    collector = Collector(frozen, build_reward(), build_ladder(), tmp_path, batch_size=2)
    calls, done = count_calls(frozen), list[int]()
    collector.fill([*CASES, CASES[0]], done.append)
    assert done == [2, 1]
    assert calls
    del calls[:]
    collector.fill(CASES)
    again = Collector(frozen, build_reward(), build_ladder(), tmp_path)
    again.fill(CASES)
    assert again.missing([*CASES, Case("new", 1)]) == [Case("new", 1)]
    assert not calls
    for case in CASES:
        assert torch.equal(again.table[case].values["damage"], collector.table[case].values["damage"])


def test_damage_is_what_the_reward_says_of_the_images() -> None:
    """Decibels below 60 of each rung's image against the first's, worked out from the images themselves."""
    frozen, ladder = build_frozen(), build_ladder()
    values, sights = Collector(frozen, build_reward(), ladder, None).run(CASES)
    damage = values["damage"]
    assert torch.equal(damage, values["psnr"][:, :1] - values["psnr"])
    assert damage[:, 0].tolist() == [0.0] * len(CASES)
    prompts, seeds = [case.prompt for case in CASES], [case.seed for case in CASES]
    images = roll_out(frozen, prompts, seeds, ladder.actions.expand(len(CASES), -1, -1), KINDS, (2, 4)).images
    error = (images - images[:, :1]).square().mean((2, 3, 4)).clamp(min=1e-6)
    torch.testing.assert_close(damage, 60 + 10 * error.log10(), atol=1e-3, rtol=0)
    assert (damage[:, 1:] > 1).all()
    assert sights.shape[:2] == (len(CASES), 4)
    assert not torch.allclose(sights[:, 1], sights[:, 3])


@pytest.mark.parametrize("settings", [{"normalisation": {"psnr": "running"}}, {"on_broken": "drop"}], ids=str)
def test_rewards_that_depend_on_other_images_are_refused(settings: dict[str, Any]) -> None:
    """Their values would be kept as if they were the image's own."""
    reward = WeightedReward({"psnr": PSNR()}, {"psnr": 1.0}, **settings)
    with pytest.raises(ValueError, match="scored once and kept"):
        Collector(build_frozen(), reward, build_ladder(), None)
    with pytest.raises(ValueError, match="scored once and kept"):
        ScheduleSearch(build_frozen(), reward, CASES, KINDS)


def test_images_that_are_no_numbers_are_named() -> None:
    frozen = build_frozen()
    with torch.no_grad():
        frozen.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    collector = Collector(frozen, build_reward(), build_ladder(), None)
    with pytest.raises(RewardError, match="a red apple"):
        collector.fill(CASES)
    assert len(collector.table) == 0
