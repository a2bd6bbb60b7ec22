"""One seed reaches everything that is random, and training shares no noise with what it is judged on."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ladders import build_frozen, build_ladder, build_reward
from training_runs import build_models, write_config, write_ladder_config

import train
from ada.evaluation.measure.metrics import Column, Metric
from ada.evaluation.methods import Cases
from ada.evaluation.request import Request
from ada.noise import SEARCH
from ada.rewards import PSNR
from ada.rollouts import Collector
from ada.training import RolloutDataModule, RunError, StepTraining, TrainingCLI
from ada.training.sampling import Sampler


@pytest.fixture
def data(tmp_path: Path) -> RolloutDataModule:
    build_ladder().save(tmp_path / "ladder.json")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{split} {number}"}) for number in range(40)))
    return RolloutDataModule(
        build_frozen(), build_reward(), str(tmp_path / "ladder.json"), str(tmp_path), validation_split="validation",
        noise_seeds=3, table=None, seed=2,
    )  # fmt: skip


def test_training_and_validation_share_no_noise(data: RolloutDataModule) -> None:
    train, held_out = ([case.seed for case in data.cases(split)] for split in ("train", "validation"))
    assert len(set(train)) == len(set(held_out)) == 120, "nor does a caption share another's"
    assert not set(train) & set(held_out)
    data.seed = 3
    others = {case.seed for split in ("train", "validation") for case in data.cases(split)}
    assert not others & {*train, *held_out}
    assert not noises(train) & noises(held_out)


def noises(seeds: Collection[int]) -> set[float]:
    """What generators of these seeds draw first; seeds that differ may draw the same."""
    return {float(torch.randn((), generator=torch.Generator().manual_seed(seed))) for seed in seeds}


@pytest.mark.parametrize("prompts", [range(40), [f"train {number}" for number in range(40)]], ids=["labels", "texts"])
def test_an_evaluation_shares_no_noise_with_training(data: RolloutDataModule, prompts: Sequence[str | int]) -> None:
    """Class labels are few: a policy is trained, searched for and judged on the same ones."""
    learnt = {case.seed for split in ("train", "validation") for case in data.cases(split)}
    metrics = {"perceptual_distance": Metric(PSNR(), Column("Distance"))}
    request = Request(
        prompts=prompts, indices=range(40), metrics=metrics, embed=lambda images: images, seed=data.seed, seeds=3
    )  # fmt: skip
    judged = set(request.cases.seeds)
    chosen = set(Cases.of(prompts, range(40), 1, data.seed, use=SEARCH).seeds)
    assert not noises(learnt) & noises(judged)
    assert not noises(learnt | judged) & noises(chosen)


def test_the_papers_training_and_validation_share_no_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise: dict[str, set[int]] = {"train": set(), "validation": set()}
    roll_out = Sampler.roll_out

    def record(self: Sampler, policy: Any, prompts: Sequence[str], seeds: Sequence[int], *args: Any) -> Any:
        for prompt, seed in zip(prompts, seeds, strict=True):
            noise[prompt.split()[1]].add(seed)
        return roll_out(self, policy, prompts, seeds, *args)

    monkeypatch.setattr(Sampler, "roll_out", record)
    config = write_config(tmp_path, build_models(tmp_path / "models"))
    train.main(["--config", str(config), "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"])
    assert (len(noise["train"]), len(noise["validation"])) == (6, 3), "as many as there are prompts"
    assert not noise["train"] & noise["validation"]


def test_processes_without_a_table_in_common_are_refused_before_anything_is_run(data: RolloutDataModule) -> None:
    data.trainer = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(RunError, match=r"`data\.table` is null, and 2 processes .*Give it a folder"):
        data.setup("fit")


def test_rollouts_that_other_processes_keep_elsewhere_are_missed(
    data: RolloutDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on two machines whose tables lie on a disk of their own each."""
    monkeypatch.setattr(Collector, "fill", lambda *_: None)
    data.collector.table.folder = tmp_path / "table"
    alike = SimpleNamespace(root_device=torch.device("cpu"), barrier=lambda name: None, reduce=lambda value, reduce_op: value)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=alike, loggers=[])
    with pytest.raises(
        RunError, match=r"240 captions that other processes rolled out are not in .*table: give `data\.table` a folder"
    ):
        data.setup("fit")


@pytest.mark.parametrize(("column", "named"), [("caption", None), ("description", "description")])
def test_the_column_is_found_or_named(tmp_path: Path, column: str, named: str | None) -> None:
    """As `load_prompts` does it: of the usual names none has to be told."""
    build_ladder().save(tmp_path / "ladder.json")
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": 1, column: "x"}))
    data = RolloutDataModule(
        build_frozen(), build_reward(), str(tmp_path / "ladder.json"), str(tmp_path), column=named, table=None
    )
    assert [case.prompt for case in data.cases("train")] == ["x"]


def test_the_seed_of_the_command_line_reaches_network_noise_and_order(tmp_path: Path) -> None:
    models = build_models(tmp_path / "models")
    config = str(write_config(tmp_path, models))

    def build(*more: str) -> tuple[StepTraining, int]:
        cli = TrainingCLI(["--config", config, "--trainer.logger", "false", *more])
        cli.model.prepare("a")
        return cli.model, cli.datamodule.seed

    one, one_order = build("--seed_everything", "1")
    two, two_order = build("--seed_everything", "2")
    own, own_order = build("--seed_everything", "2", "--model.init_args.seed", "1", "--data.init_args.seed", "5")
    assert (one.seed, one_order, two.seed, two_order, own.seed, own_order) == (1, 1, 2, 2, 1, 5)
    assert not torch.equal(one.policy.positions, two.policy.positions)
    assert torch.equal(one.policy.positions, own.policy.positions)


def test_it_reaches_the_rollouts_of_a_ladder(tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, build_models(tmp_path / "models")))
    found = []
    for seed in (0, 1):
        cli = TrainingCLI(["--config", config, "--trainer.logger", "false", "--seed_everything", str(seed)])
        assert cli.model.seed == seed
        found.append({case.seed for case in cli.datamodule.cases("train")})
    assert not found[0] & found[1]
