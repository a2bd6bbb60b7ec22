"""Rollouts against the stock pipeline, the table on disk, the collector."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from ladders import ARGUMENTS, CASES, KINDS, RUNGS, STEPS, actions_of, build_frozen, build_ladder, build_reward
from safetensors import SafetensorError
from torch import Tensor, nn

from ada.rewards import PSNR, Reward, RewardError, WeightedReward
from ada.rollouts import Case, Collector, FrozenPipeline, SamplingLoop, Table, roll_out
from ada.schedules import Ladder
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


def test_macs_are_counted_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new shape of a call takes as long as some steps of the transformer to count."""

    def count(*_: object) -> None:
        raise AssertionError("counted")

    frozen, ladder = build_frozen(), build_ladder()
    monkeypatch.setattr("blockdance.cost._count_on_fake_tensors", count)
    roll_out(frozen, ["sun"], [1], ladder.actions[None], KINDS, (2, 4))
    generated = frozen.generate(["sun"], [1], ladder.schedule(torch.tensor([3])))
    with pytest.raises(AssertionError, match="counted"):
        print(generated.report)
    monkeypatch.undo()
    frozen.generate(["dog"], [2], ladder.schedule(torch.tensor([0])))
    assert generated.report.actions.tolist() == ladder.actions[3:4].tolist(), "its own, whatever ran since"


def test_a_call_that_passes_the_plan_by_is_named() -> None:
    loop = SamplingLoop(build_frozen().transformer, lambda prompts, generators: torch.zeros(len(prompts), 3), STEPS)
    with pytest.raises(ScheduleError, match="There is nothing to report yet"):
        FrozenPipeline(loop, STEPS).generate(["sun"], [1], build_ladder().schedule(torch.tensor([3])))


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


def test_weights_are_read_once_for_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, read = build_frozen(), []
    monkeypatch.setattr("ada.rollouts.pipeline.weights_digest", lambda model: read.append(model) or "0")
    collector = Collector(frozen, build_reward(), build_ladder(), None)
    collector.pipeline.with_settings(num_inference_steps=9).fingerprint()
    assert len(read) == 1


def test_fingerprint_tells_weights_steps_and_arguments_apart() -> None:
    frozen = build_frozen()
    same, other = build_frozen(), build_frozen()
    assert same.fingerprint() == frozen.fingerprint()
    assert frozen.with_settings(num_inference_steps=9).fingerprint() != frozen.fingerprint()
    with torch.no_grad():
        next(iter(other.transformer.parameters())).add_(0.1)
    assert other.fingerprint()["weights"] != frozen.fingerprint()["weights"]


# --- the table ---


def fill(table: Table, number: int) -> tuple[list[Case], Tensor, Tensor]:
    """Two schedules of each of two cases, and what is seen after one beginning."""
    cases = [Case(f"prompt {number} “ü”", number), Case("other", number)]
    damage, sights = torch.rand(4), torch.rand(2, 5)
    rows = [(case, schedule) for case in cases for schedule in ("00", "01")]
    table.add(rows, {"damage": damage}, [(case, "0") for case in cases], sights)
    return cases, damage, sights


def test_rows_survive_a_new_object(tmp_path: Path) -> None:
    table = Table(tmp_path, {"base": 1})
    cases, damage, sights = fill(table, 7)
    again = Table(tmp_path, {"base": 1})
    assert len(again) == 4
    assert torch.equal(again.values(cases[1], ["01", "00"], "damage"), damage[[3, 2]])
    assert torch.equal(again.sights(cases[0], ["0"]), sights[:1])
    assert not again.knows(Case("other", 8), "00")
    fill(table, 8)
    assert not again.knows(Case("other", 8), "00")
    again.reload()
    assert again.knows(Case("other", 8), "00")
    assert not again.knows(Case("other", 8), "11")
    assert again.has_seen(Case("other", 8), "0")
    assert not again.has_seen(Case("other", 8), "00")


def test_what_is_known_stays_as_it_was(tmp_path: Path) -> None:
    """Another batch rounds otherwise: what a run has begun with must not change under it."""
    table = Table(tmp_path, {"base": 1})
    cases, damage, _ = fill(table, 7)
    table.add([(cases[0], "00"), (cases[0], "11")], {"damage": torch.tensor([9.0, 0.5])})
    for one in (table, Table(tmp_path, {"base": 1})):
        assert one.values(cases[0], ["00", "11"], "damage").tolist() == [float(damage[0]), 0.5]


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    table, other = Table(tmp_path, {"base": 1}), Table(tmp_path, {"base": 2})
    fill(table, 7)
    other.reload()
    assert len(other) == 0
    assert table.folder != other.folder


def test_a_truncated_file_is_put_aside_and_the_rest_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = Table(tmp_path, {"base": 1})
    lost, _, _ = fill(table, 1)
    assert table.folder is not None
    (file,) = table.folder.glob("*.safetensors")
    kept, damage, _ = fill(table, 2)
    file.write_bytes(file.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        again = Table(tmp_path, {"base": 1})
    assert f"{file.name} cannot be read" in caplog.text
    assert "run again" in caplog.text
    assert not again.knows(lost[0], "00")
    assert torch.equal(again.values(kept[0], ["00", "01"], "damage"), damage[:2])
    assert file.with_suffix(".broken").is_file()
    fill(again, 1)
    assert Table(tmp_path, {"base": 1}).knows(lost[0], "00")


def test_a_broken_file_that_another_process_puts_aside_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(tmp_path, {"base": 1})
    fill(table, 1)
    assert table.folder is not None
    (file,) = table.folder.glob("*.safetensors")
    file.write_bytes(b"")

    def put_aside(broken: Path, *_: object) -> None:
        broken.unlink()
        raise SafetensorError("truncated")

    monkeypatch.setattr("ada.rollouts.table.safe_open", put_aside)
    assert len(Table(tmp_path, {"base": 1})) == 0


@pytest.mark.parametrize("obstacle", ["gone", "file"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, obstacle: str) -> None:
    table = Table(tmp_path, {"base": 1})
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
    collector = Collector(frozen, build_reward(), build_ladder(), tmp_path, batch_size=2, processes=1)
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
    assert torch.equal(again.values(CASES, "damage"), collector.values(CASES, "damage"))
    assert torch.equal(again.sights(CASES), collector.sights(CASES))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_nothing_is_taken_from_before_a_part_was_retrained(tmp_path: Path, part: str) -> None:
    frozen = build_frozen()
    Collector(frozen, build_reward(), build_ladder(), tmp_path, processes=1).fill(CASES)
    parameter = list(frozen.pipeline.components[part].parameters())[-1]
    with torch.no_grad():
        parameter.mul_(1.01).add_(1e-3)
    retrained = FrozenPipeline(frozen.pipeline, STEPS, ARGUMENTS)
    assert Collector(retrained, build_reward(), build_ladder(), tmp_path).missing(CASES) == CASES


def test_a_ladder_that_changes_by_a_rung_runs_that_rung_alone(tmp_path: Path) -> None:
    """And the reference, which its damage is measured against; its decision is seen already."""
    frozen = build_frozen()
    before = Collector(frozen, build_reward(), build_ladder(), tmp_path, batch_size=2)
    before.fill(CASES)
    rungs = (*RUNGS[:4], "00010220", RUNGS[5])
    changed = Collector(frozen, build_reward(), Ladder(actions_of(*rungs), KINDS, (2, 4)), tmp_path)
    assert changed.missing(CASES) == CASES
    rows: list[int] = []
    frozen.transformer.transformer_blocks[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    changed.fill(CASES)
    # rows of guidance: three cases as one, then reference and rung apart from their first difference on; reuse skips this block
    assert rows[:STEPS] == [6, 6, 6, 6, 12, 6, 6, 12]
    others = [0, 1, 2, 3, 5]
    assert torch.equal(changed.values(CASES, "damage")[:, others], before.values(CASES, "damage")[:, others])
    alone = Collector(frozen, build_reward(), changed.ladder, None)
    alone.fill(CASES)
    torch.testing.assert_close(changed.values(CASES, "damage"), alone.values(CASES, "damage"), atol=1e-2, rtol=0)
    torch.testing.assert_close(changed.sights(CASES), alone.sights(CASES), atol=1e-4, rtol=0)
    deeper = Collector(frozen, build_reward(), Ladder(actions_of(*rungs), KINDS, (2, 5)), tmp_path)
    assert deeper.missing(CASES) == CASES, "what is seen after another step is not known"


def test_a_search_and_a_ladder_share_their_rollouts(tmp_path: Path) -> None:
    frozen = build_frozen()
    collector = Collector(frozen, build_reward(), build_ladder(), tmp_path)
    collector.fill(CASES)
    search = ScheduleSearch(frozen, build_reward(), CASES, KINDS, folder=tmp_path, report=lambda _: None)
    calls = count_calls(frozen)
    search.measure([tuple(rung) for rung in build_ladder().actions.tolist()])
    assert not calls
    search.measure([(0, 0, 0, 1, 0, 1, 0, 0)])
    assert calls
    collector.table.reload()
    assert all(collector.table.knows(case, "00010100") for case in CASES)


def test_a_scorer_retrained_in_place_takes_nothing_from_its_former_self(tmp_path: Path) -> None:
    """Settings alone do not tell it: it was loaded from the same folder."""

    class Learnt(Reward):
        def __init__(self) -> None:
            self.network = nn.Linear(3, 1)

        def __call__(self, images: Tensor, prompts: list[str], reference: Tensor) -> Tensor:
            return self.network(images.mean((2, 3)))[:, 0]

    scorer = Learnt()
    frozen, reward, ladder = build_frozen(), WeightedReward({"learnt": scorer}, {"learnt": 1.0}), build_ladder()
    Collector(frozen, reward, ladder, tmp_path).fill(CASES[:1])
    before = Collector(frozen, reward, ladder, tmp_path)
    assert not before.missing(CASES[:1])
    described = reward.describe()
    with torch.no_grad():
        scorer.network.weight *= 1.5
    after = Collector(frozen, reward, ladder, tmp_path)
    assert reward.describe() == described
    assert after.missing(CASES[:1])
    assert after.identity != before.identity


def test_processes_share_the_batches(tmp_path: Path) -> None:
    """What two processes find is what one does, and is kept and told by the one that asked."""
    alone, shared = (
        Collector(build_frozen(), build_reward(), build_ladder(), tmp_path / str(count), batch_size=1, processes=count)
        for count in (1, 2)
    )
    calls, done = count_calls(shared.pipeline), list[int]()
    alone.fill(CASES)
    shared.fill(CASES, done.append)
    assert done == [1] * len(CASES)
    assert not calls, "the other processes did it"
    torch.testing.assert_close(shared.values(CASES, "damage"), alone.values(CASES, "damage"), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(shared.sights(CASES), alone.sights(CASES), atol=1e-4, rtol=1e-4)


def test_damage_is_what_the_reward_says_of_the_images() -> None:
    """Decibels below 60 of each rung's image against the first's, worked out from the images themselves."""
    frozen, ladder = build_frozen(), build_ladder()
    collector = Collector(frozen, build_reward(), ladder, None)
    collector.fill(CASES)
    damage, psnr, sights = collector.values(CASES, "damage"), collector.values(CASES, "psnr"), collector.sights(CASES)
    assert torch.equal(damage, psnr[:, :1] - psnr)
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


def test_a_sight_that_is_no_number_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(build_frozen(), build_reward(), build_ladder(), tmp_path)
    monkeypatch.setattr("ada.rollouts.collect.describe", lambda state: torch.full((state.num_images, 3), torch.nan))
    with pytest.raises(RewardError, match=r"a policy sees of the prompts \['dog'\] is no finite number"):
        collector.fill(CASES[1:2])
    assert not list(tmp_path.glob("*/*.safetensors"))
