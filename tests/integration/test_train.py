"""`train.py` on a small random PixArt pipeline: it trains, resumes, exports, and its policy runs in a stock pipeline."""

import copy
import gc
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import build_models, write_config, write_ladder_config, write_trainer

import ada.training.ladder as ladder_training
import train
from ada import AdaPolicy, reinforce
from ada.reinforce import AdvantageKind
from ada.rewards import RewardError
from ada.rewards.damage import bounded_damage
from ada.training import LadderTraining, NothingLearntError, RunError, StepTraining
from ada.training.sampling import SampledRollout
from blockdance import apply_blockdance


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_models(tmp_path_factory.mktemp("models"))


def test_a_ladder_policy_trains_exports_and_serves_a_stock_pipeline(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_ladder_config(tmp_path, models))
    module = train.main(["--config", config])
    printed, run = capsys.readouterr().out, tmp_path / "run"
    assert "mixture of static" in printed
    assert "Rolling out 5 schedules on training captions: 6 of 6" in printed
    outcome = json.loads((run / "policy" / "outcome.json").read_text())
    assert 0.2 in [level["saved"] for level in outcome["levels"]], "the ladder saves up to 35 %"
    written = {"config.json", "model.safetensors", "README.md", "outcome.json", "training.json", "outcome.png", "decisions.png"}
    assert {file.name for file in (run / "policy").iterdir()} == written
    assert outcome["num_cases"] == 6, "all captions, by cross-fitting"
    assert (run / "pictures" / "decisions.png").stat().st_size > 1000
    scalars = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    assert {"validation/advantage", "train/gradient_norm"} <= scalars
    assert {"validation/distinct_schedules", "validation/regret_to_static"} <= scalars
    assert "rollouts/images_per_second_training" in scalars
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    policy = AdaPolicy.from_pretrained(run / "policy")
    for name, tensor in module.policy.state_dict().items():
        assert torch.equal(policy.state_dict()[name], tensor)
    exported, learnt = copy.deepcopy(policy), module.data.train_data.tensors
    stages = module.tree.nodes[:, 0]
    predicted = exported.log_odds(exported.inputs(learnt[0], stages), stages)
    exported.measure_errors(predicted, stages, bounded_damage(learnt[1], module.data.visible_damage))
    torch.testing.assert_close(policy.error_variance, exported.error_variance, msg="how far the critic is off at the end")
    assert policy.error_variance.max() > 0
    pipeline = DiffusionPipeline.from_pretrained(models["pipeline"])
    pipeline.set_progress_bar_config(disable=True)
    handle = apply_blockdance(pipeline, policy.with_options(compute=0.65))
    pipeline(["a dog", "a cat"], num_inference_steps=8, use_resolution_binning=False)
    assert (handle.report().actions > 0).sum(1).tolist() == [3, 3], "the rung nearest to 65 % reuses three of eight steps"


def test_how_far_the_critic_is_off_is_measured_where_it_is_read(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    judged: list[LadderTraining] = []
    measure, judge = LadderTraining.measure_errors, LadderTraining.judged
    monkeypatch.setattr(LadderTraining, "judged", lambda module: judged.append(module) or judge(module))

    def count(module: LadderTraining) -> None:
        measured.append(module.global_step)
        measure(module)

    monkeypatch.setattr(LadderTraining, "measure_errors", count)
    command = ["--config", str(write_ladder_config(tmp_path, models)), "--data.init_args.batch_size", "2"]
    module = train.main([*command, "--trainer.max_epochs", "2"])
    assert measured == [3, 6, 6], "after each epoch's three batches, and at the end"
    assert len(judged) == 2, "after the last epoch for what is logged, and once for what is said and kept"
    errors = module.policy.error_variance.clone()
    measure(module)
    assert torch.equal(module.policy.error_variance, errors)
    measured.clear()
    more = ["--trainer.max_epochs", "2", "--model.init_args.policy_gradient_weight", "1.0"]
    train.main([*command, *more, "--trainer.default_root_dir", str(tmp_path / "other")])
    assert measured == [1, 2, 3, 4, 5, 6, 6], "the policy gradient reckons with them at every batch"


def test_what_came_of_a_run_is_said_before_pictures_are_made(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room for a picture")

    monkeypatch.setattr("ada.training.run.draw_outcome", fail)
    with pytest.raises(OSError, match="no room for a picture"):
        train.main(["--config", str(write_ladder_config(tmp_path, models)), "--trainer.max_epochs", "1"])
    assert "Learnt from 6 images" in capsys.readouterr().out


def test_rollouts_are_run_once(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_ladder_config(tmp_path, models))
    first = train.main(["--config", config])
    capsys.readouterr()
    second = train.main(["--config", config, "--trainer.default_root_dir", str(tmp_path / "second")])
    assert "Rolling out" not in capsys.readouterr().out
    for name, tensor in first.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], tensor)


@pytest.mark.slow  # the embedded model
def test_the_default_run_says_nothing_but_what_is_of_the_run(tmp_path: Path) -> None:
    """`python train.py` as a user gives it, on two captions: no tips, warnings or bars of libraries on either stream."""
    small = ["--data.init_args.train_limit", "2", "--model.init_args.folds", "2", "--trainer.max_epochs", "3"]
    places = ["--trainer.default_root_dir", str(tmp_path / "run"), "--data.init_args.table", str(tmp_path / "tables")]
    command = [sys.executable, "train.py", *small, *places, "--trainer.logger.init_args.save_dir", str(tmp_path / "run")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == "", "where libraries warn and draw bars"
    assert finished.stdout.startswith("Rolling out 16 schedules on training captions")
    assert not re.search(r"(?i)warning|deprecat|💡|https?://|it/s|\d%\|", finished.stdout)


def test_a_folder_of_another_run_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models))
    train.main(["--config", config])
    with pytest.raises(RunError, match=r"model\.init_args\.prior_cases: 24\.0 → 2\.0"):
        train.main(["--config", config, "--model.init_args.prior_cases", "2.0"])
    with pytest.raises(RunError, match=r"trainer\.max_epochs: 20 → 10"):  # over which the learning rate falls
        train.main(["--config", config, "--trainer.max_epochs", "10"])


def test_one_caption_is_too_few_to_be_judged_on_others(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models, train_limit=1))
    with pytest.raises(RunError, match=r"there is one in all\. Give more captions \(`data\.train_limit`\)"):
        train.main(["--config", config])
    module = train.main(["--config", config, "--data.init_args.validation_split", "validation"])
    assert all(tensor.isfinite().all() for tensor in module.policy.state_dict().values())


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_an_offloaded_pipeline_trains_the_same_policy(models: dict[str, str], tmp_path: Path, offload: str) -> None:
    config = str(write_ladder_config(tmp_path, models))
    expected = train.main(["--config", config])
    more = ["--data.init_args.pipeline.init_args.offload", offload, "--data.init_args.table", str(tmp_path / "other")]
    module = train.main(["--config", config, "--trainer.default_root_dir", str(tmp_path / "other"), *more])
    assert module.data.pipeline.offload == offload
    assert [folder.name for folder in (tmp_path / "other").glob("*/settings.json")] == ["settings.json"]
    for name, tensor in expected.policy.state_dict().items():
        assert torch.equal(module.policy.state_dict()[name], tensor)


def test_a_policy_that_gains_nothing_fails_where_a_gain_is_required(models: dict[str, str], tmp_path: Path) -> None:
    config = str(write_ladder_config(tmp_path, models))
    with pytest.raises(NothingLearntError, match="does not beat"):
        train.main(["--config", config, "--require_gain", "true"])
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file(), "nothing is lost"


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}


def test_trains_logs_exports_and_serves_a_stock_pipeline(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = train.main(["--config", str(write_config(tmp_path, models)), "--trainer.enable_progress_bar", "true"])
    run, printed = tmp_path / "run", capsys.readouterr().out
    assert "Greedy decisions on held-out prompts" in printed
    assert "Epoch 4 of 4, step 8 of 8: reward" in printed, "lines, where there is no terminal"
    assert {file.name for file in (run / "policy").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "training.json",
    }
    assert (run / "pictures" / "reference_and_reuse.png").stat().st_size > 200
    assert [row["rollouts"] for row in module.validation_history] == [0, 2, 4, 6, 8]

    logged = EventAccumulator(str(run)).Reload()
    scalars, images = set(logged.Tags()["scalars"]), set(logged.Tags()["images"])
    wanted = (
        "reward",
        "quality",
        "compute_saved",
        "entropy",
        "advantage_spread",
        "gradient_norm",
        "ratio_mean",
        "approximate_kl",
        "clip_fraction",
        "zero_spread",
        "distinct_schedules",
        "images_per_second",
        "quality/clip",
        "quality/ssim",
    )
    assert {f"train/{name}" for name in wanted} <= scalars
    assert "validation/regret_to_static" in scalars
    assert [event.value for event in logged.Scalars("train/ratio_mean")] == pytest.approx([1.0] * 8, abs=1e-4)
    assert {"validation/reuse_probability", "validation/reference_and_reuse"} <= images

    policy = AdaPolicy.from_pretrained(run / "policy")
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in weights(module).items())
    pipeline = DiffusionPipeline.from_pretrained(models["pipeline"])
    pipeline.set_progress_bar_config(disable=True)
    # two steps that the policy wants most, so that the saving is known whatever it learnt
    handle = apply_blockdance(pipeline, policy.with_options(compute=0.8))
    pipeline(["a dog", "a cat"], num_inference_steps=8, use_resolution_binning=False)
    assert (handle.report().actions > 0).sum(1).min() >= 1


def test_nothing_of_a_validation_pass_is_kept_beyond_its_pictures(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of all tensors that live after each of three batches and after their pass, but for the tape, which has bounds of its own."""
    held: dict[str, list[int]] = {"validation_step": [], "on_validation_epoch_end": []}

    def measure_after(name: str) -> None:
        original = getattr(StepTraining, name)

        @wraps(original)  # Lightning looks at what a step takes
        def call(self: StepTraining, *args: Any) -> None:
            original(self, *args)
            gc.collect()
            # a tensor of another type may be one of torch's compiler, which has no memory
            tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
            storages = [tensor.untyped_storage() for tensor in tensors]
            num_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
            held[name].append(num_bytes - self.sampler._references._tape.num_bytes)

        monkeypatch.setattr(StepTraining, name, call)

    for name in held:
        measure_after(name)
    more = ["--trainer.max_epochs", "2", "--data.init_args.batch_size", "1"]
    train.main(["--config", str(write_config(tmp_path, models)), *more])
    image = 3 * 16 * 16 * 4
    batches, passes = torch.tensor(held["validation_step"]).view(3, 3), torch.tensor(held["on_validation_epoch_end"])
    # of the first batch a picture is kept until the pass is over, which is no tensor; what other tests left behind may go meanwhile
    assert (batches.diff(dim=1) < image).all(), "no batch is kept"
    assert (passes - batches[:, 0] < image).all(), "nor anything of the first one"
    assert passes[2] - passes[1] < image, "passes leave nothing"


def test_checkpoints_hold_nothing_frozen(models: dict[str, str], tmp_path: Path) -> None:
    train.main(["--config", str(write_config(tmp_path, models)), "--trainer.max_epochs", "1"])
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"policy", "reward_mean"}


def test_the_weights_that_validated_best_are_exported(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose held-out images score one higher after four of its eight rollouts."""
    roll_out = StepTraining._roll_out

    def favour_the_middle(self: StepTraining, *args: Any, **options: Any) -> Any:
        rollout = roll_out(self, *args, **options)
        bonus = 1.0 if self.global_step == 4 and not self.training else 0.0
        return replace(rollout, quality=rollout.quality + bonus)

    monkeypatch.setattr(StepTraining, "_roll_out", favour_the_middle)
    train.main(["--config", str(write_config(tmp_path, models))])
    checkpoints = tmp_path / "run" / "checkpoints"
    best, last = (torch.load(checkpoints / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["global_step"], last["global_step"]) == (4, 8)
    exported = load_file(tmp_path / "run" / "policy" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, best["state_dict"][f"policy.{name}"])
    assert not all(torch.equal(tensor, last["state_dict"][f"policy.{name}"]) for name, tensor in exported.items())


def test_the_self_critical_baseline_is_the_reward_of_the_greedy_schedule(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts: list[tuple[SampledRollout, torch.Tensor]] = []
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []
    roll_out, advantages = StepTraining._roll_out, reinforce.advantages

    def keep_rollout(self: StepTraining, prompts: Any, seeds: Any, weights: torch.Tensor, *args: Any, **options: Any) -> Any:
        rollout = roll_out(self, prompts, seeds, weights, *args, **options)
        rollouts.extend([(rollout, weights)] if self.training else [])
        return rollout

    def keep_rewards(rewards: torch.Tensor, kind: Any, greedy: torch.Tensor, mean: float) -> torch.Tensor:
        compared.append((rewards, greedy))
        return advantages(rewards, kind, greedy, mean)

    monkeypatch.setattr(StepTraining, "_roll_out", keep_rollout)
    monkeypatch.setattr(reinforce, "advantages", keep_rewards)
    config = write_config(tmp_path, models, advantage="self_critical")
    train.main(["--config", str(config), "--trainer.max_epochs", "1"])
    assert len(rollouts) == 2
    for (rollout, weights), (rewards, greedy) in zip(rollouts, compared, strict=True):
        is_greedy = (rollout.decisions == rollout.logits.argmax(-1)[:, None]).all(-1)
        assert is_greedy[:, 3].all(), "it comes after the group of three"
        expected = rollout.compute_saved + weights[:, None] * rollout.quality
        torch.testing.assert_close(greedy, expected[:, 3])
        torch.testing.assert_close(rewards, expected[:, :3])
        assert ((rewards - greedy[:, None]).abs() > 1e-3).any(0).all(), "no other schedule's would do"


@pytest.mark.parametrize("advantage", get_args(AdvantageKind))
def test_learns_to_reuse_when_quality_does_not_matter(models: dict[str, str], tmp_path: Path, advantage: str) -> None:
    """With a tiny λ the reward is the compute saved: the policy must learn to take the dearest saving everywhere."""
    ssim = {"rewards": {"ssim": {"class_path": "ada.rewards.SSIM"}}, "weights": {"ssim": 1.0}}
    config = write_config(
        tmp_path, models, advantage=advantage, quality_weight_range=[1e-6, 1e-6], learning_rate=0.02, entropy_weight=0.0,
        warmup_rollouts=0, reward={"class_path": "ada.rewards.WeightedReward", "init_args": ssim}, table=str(tmp_path / "tables"),
    )  # fmt: skip
    module = train.main(["--config", str(config), "--trainer.max_epochs", "8", "--trainer.check_val_every_n_epoch", "8"])
    first, last = module.validation_history[0], module.validation_history[-1]
    assert first["compute_saved"] == 0
    most = (1 - float(module.policy.action_costs[1])) * 4 / 5  # four of the five steps after ρ are decided
    assert last["compute_saved"] > 0.9 * most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.init_args.group_sizes", "3"], "group_sizes"),
        (["--model.init_args.updates_per_rollout", "3"], "clip_range"),
        (["--model.init_args.prefix", "0.99"], "no step is left to decide"),
    ],
)
def test_wrong_settings_are_named(
    models: dict[str, str], tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, models, clip_range=None, updates_per_rollout=1)
    with pytest.raises((SystemExit, ValueError)) as error:
        train.main(["--config", str(config), *arguments])
    assert message in str(error.value) + capsys.readouterr().err


def test_a_nan_reward_stops_and_keeps_the_checkpoint(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--config", str(write_config(tmp_path, models)), "--trainer.max_epochs"]
    train.main([*command, "1"])
    monkeypatch.setattr(
        "ada.rewards.ClipScore.__call__", lambda self, images, prompts, reference: images.flatten(1)[:, 0] / 0 * 0
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(RewardError, match="`clip` gave nan"):
        train.main([*command, "3"])
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    ("write", "module", "loss", "good_calls"),
    [
        (write_ladder_config, ladder_training, "critic_loss", 27),  # three steps of nine policies
        (partial(write_config, clip_range=None), reinforce, "policy_gradient_loss", 3),
    ],
    ids=["ladder", "steps"],
)
def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, module: Any, loss: str, good_calls: int
) -> None:
    original, calls = getattr(module, loss), count()
    monkeypatch.setattr(module, loss, lambda *args: original(*args) * (1.0 if next(calls) < good_calls else float("nan")))
    config = write(tmp_path, models)
    with pytest.raises(RunError, match=r"^A gradient of .* is no finite number at step \d+; the weights before it are kept"):
        train.main(["--config", str(config), "--trainer.max_epochs", "20"])
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] > 0
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.parametrize("algorithm", ["ladder", "steps"])
def test_a_base_that_gives_no_numbers_is_named(models: dict[str, str], tmp_path: Path, algorithm: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(models["pipeline"])
    with torch.no_grad():
        pipeline.transformer.proj_out.bias[0] = float("nan")
    pipeline.save_pretrained(tmp_path / "pipeline")
    write = write_ladder_config if algorithm == "ladder" else write_config
    config = write(tmp_path, models | {"pipeline": str(tmp_path / "pipeline")})
    with pytest.raises(RewardError, match=r"(gave|is) (nan|no finite number)"):
        train.main(["--config", str(config)])
    assert not (tmp_path / "run" / "policy").exists()
    assert not list((tmp_path / "tables").glob("*/*.safetensors")), "nothing of it is kept"


def test_the_papers_configuration_trains_on_a_small_pixart(models: dict[str, str], tmp_path: Path) -> None:
    """configs/paper_ada.yaml as it is, but for the models and the length."""
    module = train.main([
        "--config", "configs/paper_ada.yaml",
        "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--trainer.enable_progress_bar", "false",
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1",
        "--model.init_args.pipeline.init_args.model", models["pipeline"],
        "--model.init_args.pipeline.init_args.num_inference_steps", "8",
        "--model.init_args.kinds", '[{"boundary": 2, "order": 0}]',
        "--model.init_args.tape", str(tmp_path / "tapes"),
        "--model.init_args.reward.init_args.rewards.scorer.init_args.model", models["scorer"],
        "--data.init_args.source", models["prompts"], "--data.init_args.train_split", "train", "--data.init_args.batch_size", "2",
    ])  # fmt: skip
    assert module.advantage == "none"
    assert module.group_size == 1
    assert module.quality_weight_range == (2.0, 2.0)
    assert (tmp_path / "policy" / "model.safetensors").is_file()


def test_the_pixart_configuration_trains_on_a_small_pixart(models: dict[str, str], tmp_path: Path) -> None:
    """configs/pixart_alpha.yaml as it is, but for the models' sizes, the device and the length."""
    config = yaml.safe_load(Path("configs/pixart_alpha.yaml").read_text())
    settings = config["data"]["init_args"]
    settings["pipeline"]["init_args"] |= {"model": models["pipeline"], "num_inference_steps": 20, "max_rows": 4}
    settings["pipeline"]["init_args"]["arguments"] |= {"max_sequence_length": 12, "use_resolution_binning": False}
    ladder = json.loads(Path(settings["ladder"]).read_text())
    for kind in ladder["kinds"]:
        kind["boundary"] = 2
    (tmp_path / "ladder.json").write_text(json.dumps(ladder))
    parts = settings["reward"]["init_args"]["rewards"]
    parts["perceptual"]["init_args"]["model"] = models["scorer"]
    parts["image_reward"]["init_args"] = {"model": models["image_reward"], "tokenizer": models["image_reward"]}
    settings |= {
        "ladder": str(tmp_path / "ladder.json"), "source": models["prompts"], "column": "prompt",
        "validation_split": "validation", "table": str(tmp_path / "tables"),
    }  # fmt: skip
    config["trainer"] |= write_trainer(tmp_path) | {"devices": 1, "strategy": "auto", "max_epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module = train.main(["--config", str(tmp_path / "config.yaml")])
    assert module.data.pipeline.transformer.dtype == torch.bfloat16
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
