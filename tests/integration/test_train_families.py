"""Policies are trained over pipelines of every kind: rolled out, learnt, exported, loaded, and run in the stock pipeline."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scramble
from integration.pipelines import CASES, CONTROLNETS, FROM_IMAGE
from integration.trained_families import STEPS, TRAINED, with_rows
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from stdit import LAYOUT, STDiT
from torch import Tensor

from ada.data import PromptDataModule
from ada.policy import AdaPolicy, LadderPolicy
from ada.rewards import Reward, WeightedReward
from ada.rollouts import FrozenPipeline, SamplingLoop, roll_out
from ada.schedules import Ladder, LadderError
from ada.training import LadderTraining, RolloutDataModule, StepTraining
from ada.training.outcome import choose_rungs
from blockdance import Reuse, ReuseSchedule, ScheduleError, apply_blockdance, full_compute, register_layout

pytestmark = pytest.mark.filterwarnings("ignore:.*validation captions are training captions too")
RUNGS = ("000000", "000010", "000020", "000110")
LADDER = Ladder(
    torch.tensor([[int(action) for action in rung] for rung in RUNGS]),
    (Reuse(boundary=2), Reuse(boundary=1, order=1, weight=0.5)),
    (2, 3),
)


class Distance(Reward):
    """Minus the root mean square difference to the reference: of images, videos, waveforms, latents of any shape."""

    compares_with_reference = True

    def __call__(self, images: Tensor, prompts: Sequence[Any], reference: Tensor) -> Tensor:
        return -(images - reference).flatten(1).square().mean(1).sqrt()


def train(frozen: FrozenPipeline, prompts: Sequence[Any], ladder: Ladder, folder: Path, **options: Any) -> LadderTraining:
    """A few steps on three prompts, held out against two noises of them; a family may know no other."""
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    ladder.save(folder / "ladder.json")
    data = RolloutDataModule(
        frozen, WeightedReward({"distance": Distance()}, {"distance": 1.0}), str(folder / "ladder.json"), source=str(folder),
        table=folder / "tables", validation_split="validation", validation_limit=2, visible_damage=0.05, **options,
    )  # fmt: skip
    module = LadderTraining(num_components=2, quality_weight_range=(0.2, 5.0))
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    module.finished_policy(module.outcome()).save_pretrained(folder / "policy")
    return module


def rounding(frozen: FrozenPipeline, prompts: Sequence[Any], seeds: Sequence[int]) -> float:
    """What the plain pipeline, without BlockDance, rounds otherwise in a batch of two than alone, as a share of the largest value: 2e-6 at
    most in nearly all families, up to 2e-5 in some on some processors. More than that is no rounding."""

    def plain(some: slice) -> Tensor:
        told = {frozen.prompt_argument: list(prompts[some])} if frozen.inputs is None else frozen.inputs(prompts[some])
        noise = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
        return torch.as_tensor(
            frozen.pipeline(
                num_inference_steps=frozen.num_inference_steps, generator=noise, output_type=frozen.output_type, return_dict=False,
                **frozen.arguments | dict(told),
            )[0]
        )  # fmt: skip

    with torch.inference_mode():
        shared, alone = plain(slice(0, 2))[1], plain(slice(1, 2))[0]
    share = float((shared - alone).abs().max() / alone.abs().max())
    assert share < 4e-5
    return share


def assert_same(images: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for what sums in another order leave, as a share of the largest value; another schedule moves images a hundred times
    more."""
    torch.testing.assert_close(images, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", TRAINED)
def test_a_policy_is_trained_exported_and_runs_in_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    family = TRAINED[name]
    frozen = family.frozen()
    module = train(frozen, family.prompts, LADDER, tmp_path)
    policy = AdaPolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(policy, LadderPolicy)

    cases = module.data.cases("validation")
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    rollout = roll_out(frozen, prompts, seeds, LADDER.actions.expand(len(cases), -1, -1), LADDER.kinds, LADDER.decision_steps)
    own = 5 * rounding(frozen, prompts, seeds)
    for rung in (0, 3):
        schedule = ReuseSchedule(LADDER.actions[[rung]], LADDER.kinds)
        alone = frozen.generate(prompts[1:], seeds[1:], schedule).images[0]
        assert_same(rollout.images[1, rung], alone, max(1e-5, own))
        assert_same(
            rollout.images[:, rung], frozen.generate(prompts, seeds, schedule.expand(len(cases))).images, max(5e-6, own)
        )
    damage = module.data.validation_data.tensors[1]
    assert (damage[:, 0] == 0).all()
    assert (damage[:, 1:] > 1e-4).all(), "every rung reuses something"

    # within a budget it takes the most saving rung; at its λ what it takes of the rollouts' states, as training saw them
    most = 1 - float(policy.ladder.saved(policy.reuse_costs).max())
    saving = frozen.generate(prompts, seeds, policy.with_options(compute=most))
    assert saving.report.actions[:, 1:].tolist() == LADDER.actions[[3, 3], 1:].tolist()
    assert_same(saving.images, rollout.images[:, 3], max(1e-5, own))
    chosen = frozen.generate(prompts, seeds, policy.with_options(quality_weight=1.0))
    sights = module.data.validation_data.tensors[0]
    (rungs,) = choose_rungs(policy, module.tree.to("cpu"), sights, [1.0])
    assert chosen.report.actions[:, 1:].tolist() == LADDER.actions[rungs, 1:].tolist()


# --- a model and a loop that are not diffusers' ---


def build_stdit() -> STDiT:
    """Of a class of its own: what one test registers stays for the whole process, and others look at how `STDiT` is refused."""

    class TrainedSTDiT(STDiT):
        pass

    register_layout(TrainedSTDiT, LAYOUT)
    return scramble(TrainedSTDiT())


def open_sora_loop(model: STDiT) -> Any:
    """Open-Sora's loop: prompts of letters, noise from the generators, guidance 7.0 in one call `[cond, uncond]`."""

    def sample(prompts: Sequence[str], generators: Sequence[torch.Generator], num_inference_steps: int) -> Tensor:
        z = torch.stack([torch.randn(4, 3, 2, 2, generator=generator) for generator in generators])
        letters = torch.tensor([[float(ord(letter)) for letter in prompt[:5].ljust(5)] for prompt in prompts])
        y = (letters[..., None] * torch.arange(1, 17)).sin()
        mask = torch.tensor([[1] * len(prompt[:5]) + [0] * (5 - len(prompt[:5])) for prompt in prompts])
        for timestep in torch.linspace(0.95, 0.05, num_inference_steps):
            both = torch.cat([z, z])
            cond, uncond = model.forward(both, timestep.expand(len(both)), torch.cat([y, y * 0]), mask=mask).chunk(2)
            z = z - (uncond + 7.0 * (cond - uncond)) / num_inference_steps
        return z

    return sample


def test_a_policy_is_trained_over_a_loop_of_ones_own(tmp_path: Path) -> None:
    model = build_stdit()
    sample = open_sora_loop(model)
    frozen = FrozenPipeline(SamplingLoop(model, sample), STEPS)
    module = train(frozen, ["sun", "a dog", "moon"], LADDER, tmp_path)
    policy = AdaPolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(policy, LadderPolicy)
    most = 1 - float(policy.ladder.saved(policy.reuse_costs).max())

    case = module.data.cases("validation")[1]
    rollout = roll_out(frozen, [case.prompt], [case.seed], LADDER.actions[None], LADDER.kinds, LADDER.decision_steps)
    with apply_blockdance(model, policy.with_options(compute=most), num_inference_steps=STEPS) as handle:
        alone = sample([case.prompt], [torch.Generator().manual_seed(case.seed)], STEPS)
        assert handle.report().actions.tolist() == LADDER.actions[3:].tolist()
    assert_same(rollout.images[0, 3], alone[0])
    assert not torch.allclose(rollout.images[0, 3], rollout.images[0, 0], atol=1e-3)


def test_a_loop_says_its_number_of_steps() -> None:
    model = build_stdit()
    told = open_sora_loop(model)
    with pytest.raises(ValueError, match="either takes `num_inference_steps` as an argument"):
        SamplingLoop(model, told, num_inference_steps=6)

    def fixed(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
        return told(prompts, generators, 6)

    with pytest.raises(ValueError, match="either takes `num_inference_steps` as an argument"):
        SamplingLoop(model, fixed)
    loop = FrozenPipeline(SamplingLoop(model, fixed, num_inference_steps=6), 6)
    assert torch.equal(
        loop.generate(["sun"], [1], full_compute(1, 6)).images, fixed(["sun"], [torch.Generator().manual_seed(1)])
    )
    with pytest.raises(ValueError, match="always takes 6 steps; 8 were asked for"):
        loop.with_settings(num_inference_steps=8).generate(["sun"], [1], full_compute(1, 8))


@pytest.mark.parametrize("name", TRAINED)
def test_the_papers_policy_reads_what_the_family_shows(name: str) -> None:
    """Some configurations do not tell how wide the prompts are that the transformer takes."""
    family = TRAINED[name]
    module = StepTraining(
        family.frozen(), WeightedReward({"distance": Distance()}, {"distance": 1.0}), LADDER.kinds, hidden_size=16, num_layers=1,
        num_heads=2,
    )  # fmt: skip
    module.prepare(family.prompts[0])
    schedule = module.pipeline.generate([family.prompts[0]], [0], module.policy.eval()).report
    assert schedule.actions.shape == (1, module.pipeline.num_inference_steps)


def test_the_papers_algorithm_trains_over_class_labels_with_any_logger(tmp_path: Path) -> None:
    for split, labels in {"train": [2, 0, 5], "validation": [1, 3]}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": label}) + "\n" for label in labels))
    module = StepTraining(
        FrozenPipeline(CASES["dit"].build(), STEPS), WeightedReward({"distance": Distance()}, {"distance": 1.0}), LADDER.kinds,
        group_size=2, hidden_size=16, num_layers=1, num_heads=2, tape=tmp_path / "tapes", table=tmp_path / "tables",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=CSVLogger(tmp_path / "logs"), enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, PromptDataModule(str(tmp_path), batch_size=2))
    assert (tmp_path / "pictures" / "reuse_probability.png").is_file()
    assert list((tmp_path / "tables").glob("*/*.safetensors"))


# --- what cannot be compared is refused ---


def test_a_pipeline_that_draws_numbers_of_its_own_is_refused() -> None:
    """This ControlNet pipeline encodes its control image with noise that no generator gives."""
    frozen = with_rows(CONTROLNETS["stable_diffusion_3"]).frozen()
    with pytest.raises(ScheduleError, match=r"another `block_controlnet_hidden_states`.*numbers of its own"):
        roll_out(frozen, ["sun"], [1], LADDER.actions[None], LADDER.kinds, LADDER.decision_steps)


def test_a_generation_that_starts_after_the_first_decision_is_refused(tmp_path: Path) -> None:
    frozen = with_rows(FROM_IMAGE["stable_diffusion_3"], strength=0.5).frozen()
    with pytest.raises(LadderError, match=r"Nothing was seen at the decisions after the steps \[2, 3\]"):
        train(frozen, ["sun"], LADDER, tmp_path)


# --- ranges ---


def test_a_policy_serves_the_steps_between_and_beyond_those_it_was_trained_over(tmp_path: Path) -> None:
    frozen = with_rows(CASES["pixart_sigma"]).frozen(steps=8)
    rungs = ("00000000", "00000010", "00001010", "00010110")
    ladder = Ladder(torch.tensor([[int(action) for action in rung] for rung in rungs]), (Reuse(boundary=2),), (2, 4))
    ranges = {"num_inference_steps": (8.0, 14.0), "guidance_scale": (2.0, 5.0)}
    module = train(frozen, ["a dog", "sun", "b"], ladder, tmp_path, noise_seeds=2, ranges=ranges)
    drawn = [dict(case.settings) for case in module.data.cases("train")]
    assert len({case["num_inference_steps"] for case in drawn}) > 2
    assert all(8 <= case["num_inference_steps"] <= 14 and 2 <= case["guidance_scale"] <= 5 for case in drawn)
    assert not {case.seed for case in module.data.cases("train")} & {case.seed for case in module.data.cases("validation")}

    # a case's row is what its own number of steps and guidance give
    case = module.data.cases("train")[1]
    own = frozen.with_settings(**dict(case.settings))
    stretched = ladder.for_steps(own.num_inference_steps)
    images = [own.generate([case.prompt], [case.seed], stretched.schedule(torch.tensor([rung]))).images for rung in (0, 3)]
    expected = (images[1] - images[0]).square().mean().sqrt()
    torch.testing.assert_close(module.data.train_data.tensors[1][1, 3], expected, rtol=1e-3, atol=1e-5)
    again = RolloutDataModule(
        frozen, module.data.collector.reward, str(tmp_path / "ladder.json"), source=str(tmp_path), table=tmp_path / "tables",
        validation_split="validation", validation_limit=2, noise_seeds=2, ranges=ranges,
    )  # fmt: skip
    assert not again.collector.missing(again.cases("train")), "the table keeps settings with the cases"

    policy = AdaPolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(policy, LadderPolicy)
    for steps in (7, 11, 18):
        rows = ladder.for_steps(steps).actions.tolist()
        made = frozen.with_settings(num_inference_steps=steps, guidance_scale=3.3).generate(["sun", "b"], [7, 8], policy)
        assert all(row in rows for row in made.report.actions.tolist())
        assert made.images.isfinite().all()


def test_whole_numbers_are_drawn_where_the_call_takes_those(tmp_path: Path) -> None:
    LADDER.save(tmp_path / "ladder.json")
    (tmp_path / "captions.txt").write_text("sun\nmoon\nsea\n")
    data = RolloutDataModule(
        with_rows(CASES["pixart_sigma"]).frozen(), WeightedReward({"distance": Distance()}, {"distance": 1.0}),
        str(tmp_path / "ladder.json"), str(tmp_path / "captions.txt"), table=None,
        ranges={"max_sequence_length": (4.0, 120.0), "guidance_scale": (3.0, 7.0)},
    )  # fmt: skip
    drawn = [dict(case.settings) for case in data.cases("train")]
    assert all(type(one["max_sequence_length"]) is int and type(one["guidance_scale"]) is float for one in drawn)
    assert len({one["max_sequence_length"] for one in drawn}) == 3


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"num_inference_steps": (30.0, 12.0)}, "lower bound first"),
        ({"guidance": (1.0, 2.0)}, "takes no argument `guidance`"),
        ({"clean_caption": (0.0, 1.0)}, "`clean_caption` is a switch: set it in the pipeline's `arguments`"),
        ({"num_inference_steps": (4.0, 12.0)}, r"need \d+ steps or more, and this generation has 4"),
    ],
)
def test_wrong_ranges_are_named(ranges: dict[str, tuple[float, float]], message: str, tmp_path: Path) -> None:
    frozen = with_rows(CASES["pixart_sigma"]).frozen()
    LADDER.save(tmp_path / "ladder.json")
    reward = WeightedReward({"distance": Distance()}, {"distance": 1.0})
    with pytest.raises(ValueError, match=message):
        RolloutDataModule(frozen, reward, str(tmp_path / "ladder.json"), table=None, ranges=ranges)
