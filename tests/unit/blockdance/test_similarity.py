"""Measured feature changes: numbers worked out by hand on toy blocks, and what is proposed from them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from diffusers import HeunDiscreteScheduler, PixArtAlphaPipeline
from tensor_memory import tensor_bytes
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockDanceError,
    BlockLayout,
    BlockReuse,
    FeatureChange,
    FeatureRecorder,
    ForwardCost,
    Reuse,
    ReuseSchedule,
    ScheduleError,
    UnsupportedModelError,
    apply_blockdance,
    block_caching,
    calibrate,
    full_compute,
    load_plan,
    measure_feature_change,
    register_layout,
    save_plan,
)
from blockdance.__main__ import main
from blockdance.feature_recorder import MAX_POSITIONS
from blockdance.figures import change_figure


class Scale(nn.Module):
    """Multiplies the first half of the channels by `factor · timestep`; the second half stays."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        first, second = hidden_states.chunk(2, dim=-1)
        return torch.cat([first * self.factor * timestep.view(-1, *[1] * (first.ndim - 1)), second], dim=-1)


class ScalingTransformer(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Scale(factor) for factor in factors or (1.0, 0.5))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


register_layout(ScalingTransformer, BlockLayout(lists=("blocks",)))


class ScalingPipeline:
    """Denoises ones of two channels, with fused guidance if asked for."""

    def __init__(self) -> None:
        self.transformer = ScalingTransformer()
        self.scheduler = SimpleNamespace(timesteps=torch.empty(0))

    def __call__(self, prompts: Sequence[str], *, timesteps: Sequence[float], branches: int = 1) -> None:
        self.scheduler.timesteps = torch.tensor(timesteps)
        for timestep in timesteps:
            rows = len(prompts) * branches
            self.transformer(torch.ones(rows, 2), torch.full((rows,), timestep))


def test_changes_worked_out_by_hand() -> None:
    """At timesteps 4 and 2, block 0 gives (4, 1) and (2, 1), block 1 gives (8, 1) and (2, 1)."""
    change = measure_feature_change(ScalingPipeline(), ["a", "b", "c"], timesteps=[4.0, 2.0], branches=2)
    assert change.cosine.shape == change.output_change.shape == change.block_change.shape == (3, 2, 2)
    assert change.cosine[:, 0].isnan().all()
    for image in range(3):
        assert change.output_change[image, 1].tolist() == pytest.approx([2 / 3, 6 / 3])
        assert change.cosine[image, 1].tolist() == pytest.approx([9 / (17**0.5 * 5**0.5), 17 / (65**0.5 * 5**0.5)], abs=1e-6)
        # what the blocks add to the first channel: block 0 adds 4 − 1 and 2 − 1, block 1 adds 8 − 4 and 2 − 2
        assert change.block_change[image, 1, 0] == pytest.approx(2)
    assert change.block_change[:, 1, 1].isinf().all()


def test_a_generation_that_starts_anew_replaces_the_record() -> None:
    pipeline = ScalingPipeline()
    with FeatureRecorder(pipeline, num_images=1) as recorder:
        pipeline(["a"], timesteps=[9.0, 3.0, 1.0])
        pipeline(["a"], timesteps=[4.0, 2.0])
    assert recorder.result().output_change[0, 1].tolist() == pytest.approx([2 / 3, 2])
    assert not pipeline.transformer.blocks[0]._forward_hooks


def test_a_recorder_that_saw_nothing_says_so() -> None:
    with FeatureRecorder(ScalingPipeline(), num_images=1) as recorder:
        pass
    with pytest.raises(BlockDanceError, match="No two denoising steps"):
        recorder.result()
    with pytest.raises(BlockDanceError, match="no multiple of the 2 images"), FeatureRecorder(pipeline := ScalingPipeline(), 2):
        pipeline(["a", "b", "c"], timesteps=[4.0])


def test_nothing_is_measured_while_a_plan_is_on() -> None:
    pipeline = ScalingPipeline()
    plan = ReuseSchedule(torch.tensor([[0, 1]]), (Reuse(boundary=0),))
    for target in (pipeline, pipeline.transformer):
        with (
            apply_blockdance(target, plan, num_inference_steps=2),
            pytest.raises(BlockDanceError, match=r"on for this ScalingTransformer.*remove_blockdance\(pipe\)"),
        ):
            measure_feature_change(pipeline, ["a"], timesteps=[4.0, 2.0])
    assert measure_feature_change(pipeline, ["a"], timesteps=[4.0, 2.0]).output_change[0, 1, 0] == pytest.approx(2 / 3)


@torch.no_grad()
def test_memory_does_not_grow_with_resolution_or_steps() -> None:
    """Of four blocks one bfloat16 copy each, and one of what the first is given, of so many positions; the numbers are what they are
    for any position, all of which change alike."""
    pipeline = ScalingPipeline()
    pipeline.transformer = ScalingTransformer(1.0, 1.0, 1.0, 1.0).to(torch.bfloat16)
    latents = torch.ones(1, 3 * MAX_POSITIONS + 1, 4, dtype=torch.bfloat16)
    held = []
    with FeatureRecorder(pipeline, num_images=1) as recorder:
        before = tensor_bytes()
        pipeline.scheduler.timesteps = torch.tensor([4.0, 2.0, 1.0, 0.5])
        for timestep in (4.0, 2.0, 1.0, 0.5):
            pipeline.transformer(latents, torch.full((1,), timestep, dtype=torch.bfloat16))
            held.append(tensor_bytes() - before)
    assert max(held) <= 5 * MAX_POSITIONS * 4 * 2 + latents.nbytes + 10_000
    # block 0 gives (4, 4, 1, 1) and then (2, 2, 1, 1)
    assert recorder.result().output_change[0, 1, 0] == pytest.approx(4 / 6)


class TwoTransformers(ScalingPipeline):
    """The second takes over for the last steps."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_2 = ScalingTransformer()

    def __call__(self, prompts: Sequence[str], *, timesteps: Sequence[float], branches: int = 1) -> None:
        self.scheduler.timesteps = torch.tensor(timesteps)
        for step, timestep in enumerate(timesteps):
            transformer = self.transformer if step < 2 else self.transformer_2
            transformer(torch.ones(len(prompts), 2), torch.full((len(prompts),), timestep))


def test_one_of_several_transformers_is_measured_over_the_steps_that_it_runs() -> None:
    """At the second's timesteps 4, 2, 2, 2 its outputs change once and then no more; the first's change once."""
    timesteps = [9.0, 8.0, 4.0, 2.0, 2.0, 2.0]
    with pytest.raises(UnsupportedModelError, match=r"several transformers.*one of transformer, transformer_2"):
        measure_feature_change(TwoTransformers(), ["a"], timesteps=timesteps)
    first = measure_feature_change(TwoTransformers(), ["a"], component="transformer", timesteps=timesteps)
    assert first.steps_run == range(2)
    assert first.output_change[0, 1].tolist() == pytest.approx([1 / 9, 8.5 / 33])
    assert first.output_change[0, 2:].isnan().all()
    second = measure_feature_change(TwoTransformers(), ["a"], component="transformer_2", timesteps=timesteps)
    assert second.steps_run == range(2, 6)
    assert second.output_change[0, 3:, 0].tolist() == pytest.approx([2 / 3, 0, 0])
    schedule = second.block_caching(0.1)
    assert schedule.actions.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_proposal_for_one_of_several_transformers_lies_among_its_steps() -> None:
    """It runs steps 3 to 7 of 10; of the four that may reuse, every other does: two of five steps skip 8 of 10 MACs."""
    values = torch.full((1, 10, 2), torch.nan)
    values[0, 4:8] = 0.1
    change = FeatureChange(values, values, values, ForwardCost(10.0, (4.0, 4.0)))
    config = change.propose(0.15, intervals=[2])
    assert config == BlockDanceConfig(interval=2, boundary=1, reuse_range=(0.4, 0.8))
    assert change.saved(config.schedule(10, 2)) == pytest.approx(2 * 8 / 50)


def feature_change(output_change: Tensor) -> FeatureChange:
    """A record of one image whose two blocks cost the same."""
    values = torch.cat([torch.full((1, 2), torch.nan), output_change])[None]
    return FeatureChange(values, values, values, ForwardCost(10.0, (4.0, 4.0)))


def test_the_proposal_saves_most_within_the_tolerance() -> None:
    """Block 0 changes by 0.1 at every step, block 1 by 0.3: worked out for ten steps, of which 1 to 9 may reuse."""
    change = feature_change(torch.tensor([[0.1, 0.3]]).expand(9, 2))
    # two steps after a computed one, block 0 is off by 0.2 and block 1 by 0.6
    assert change.propose(0.25, reuse_end=1.0) == BlockDanceConfig(interval=3, boundary=0, reuse_range=(0.1, 1.0))
    # both blocks at N = 2 (4 steps of 8 MACs) save more than block 0 alone at N = 4 (6 steps of 4)
    assert change.propose(0.31, reuse_end=1.0) == BlockDanceConfig(interval=2, boundary=1, reuse_range=(0.1, 1.0))
    with pytest.raises(ScheduleError, match=r"smallest relative change of any block between two steps is 0\.1"):
        change.propose(0.05)
    for tolerance in (0.0, torch.nan, torch.inf):
        with pytest.raises(ScheduleError, match="`tolerance` must be positive and finite"):
            change.propose(tolerance)
    with pytest.raises(ScheduleError, match=r"Of the 2 denoising steps .* Take three or more"):
        feature_change(torch.tensor([[0.1, 0.3]])).propose(1.0)


def test_the_range_starts_where_features_have_settled() -> None:
    settling = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1])[:, None].expand(9, 2)
    config = feature_change(settling).propose(0.15, intervals=[2], reuse_end=1.0)
    # step 4 still changes by 0.9: the range starts there at the earliest, with a step that computes
    assert config.reuse_range[0] == 0.4


def test_block_caching_reuses_until_the_changes_sum_up_to_the_threshold() -> None:
    changes = torch.tensor([[9.0, 9.0]] + [[0.1, 0.25]] * 5)
    schedule = block_caching(changes, threshold=0.31)
    # block 0: 0.1, 0.2, 0.3 reused, then it runs and starts anew; block 1: 0.25 reused, 0.5 runs, …
    reused = {1: (0, 1), 2: (0,), 3: (0, 1), 4: (), 5: (0, 1)}
    for step, blocks in reused.items():
        action = int(schedule.actions[0, step])
        assert (schedule.kinds[action - 1].skipped_blocks if action else ()) == blocks
    assert schedule.kinds == (BlockReuse(blocks=(0, 1)), BlockReuse(blocks=(0,)))
    with pytest.raises(ScheduleError, match="no block would ever be reused"):
        block_caching(changes, threshold=0.05)


OPTIONS: dict[str, Any] = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12}


def test_a_calibrated_plan_is_saved_loaded_and_carried_out(tmp_path: Path) -> None:
    pipeline = build_pixart_pipeline()
    prompts = ["a dog", "red sun"]
    latents = torch.randn(2, 4, 8, 8)
    options = OPTIONS | {"num_inference_steps": 6, "output_type": "latent", "latents": latents}
    change = measure_feature_change(pipeline, prompts, **options)
    tolerance = float(change.output_change.nanmean()) * 2
    config = calibrate(pipeline, prompts, tolerance=tolerance, **options)
    assert config == change.propose(tolerance)
    save_plan(config, tmp_path / "plan.json", pipeline)
    assert load_plan(tmp_path / "plan.json", pipeline) == config
    with apply_blockdance(pipeline, tmp_path / "plan.json") as handle:
        pipeline(prompts, num_inference_steps=6, output_type="latent", **OPTIONS)
        assert torch.equal(handle.report().actions, config.schedule(6, 4).actions.expand(2, -1))


def test_a_block_caching_schedule_runs_and_survives_its_file(tmp_path: Path) -> None:
    pipeline = build_pixart_pipeline()
    change = measure_feature_change(pipeline, ["a dog"], num_inference_steps=8, output_type="latent", **OPTIONS)
    schedule = change.block_caching(float(change.block_change.nanmean()) * 1.5)
    save_plan(schedule, tmp_path / "plan.json", pipeline)
    loaded = load_plan(tmp_path / "plan.json", pipeline)
    assert isinstance(loaded, ReuseSchedule)
    assert torch.equal(loaded.actions, schedule.actions)
    assert loaded.kinds == schedule.kinds
    with apply_blockdance(pipeline, loaded) as handle:
        pipeline(["a dog"], num_inference_steps=8, output_type="latent", **OPTIONS)
        report = handle.report()
    assert torch.equal(report.actions, schedule.actions)
    expected = change.cost.compute_saved(schedule.actions, schedule.kinds)
    assert report.compute_saved.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_plan_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    transformer = ScalingTransformer()
    save_plan(ReuseSchedule(torch.tensor([[0, 1]]), (Reuse(boundary=0),)), path, transformer)
    with pytest.raises(ScheduleError, match="made for ScalingTransformer with 2 blocks, but this model is PixArt"):
        load_plan(path, build_pixart_pipeline())
    path.write_text(path.read_text().replace("boundary", "border"))
    with pytest.raises(ScheduleError, match="is no plan"):
        load_plan(path, transformer)
    path.write_text("{")
    with pytest.raises(ScheduleError, match="is no plan"):
        apply_blockdance(transformer, path)
    with pytest.raises(FileNotFoundError, match="python -m blockdance calibrate"):
        load_plan(tmp_path / "missing.json", transformer)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_pixart_pipeline().save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--prompts", "a dog", "--device", "cpu"]
    for name, value in OPTIONS.items():
        arguments += ["--option", f"{name}={value}"]
    assert main(["inspect", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "PixArtAlphaPipeline.transformer, PixArtTransformer2DModel" in printed
    assert "transformer_blocks: 4 BasicTransformerBlock, blocks 0 to 3" in printed
    assert "skips blocks 0 to 3" in printed
    plan, figure = tmp_path / "out" / "plan.json", tmp_path / "out" / "map.png"
    arguments += ["--steps", "6", "--output", str(plan)]
    assert main(["calibrate", *arguments, "--tolerance", "5", "--figure", str(figure)]) == 0
    assert "of the denoising MACs" in capsys.readouterr().out
    assert plan.is_file()
    assert figure.stat().st_size > 10_000
    assert main(["calibrate", *arguments, "--block-caching", "5"]) == 0
    assert "sets of reused blocks over 6 steps" in capsys.readouterr().out
    assert main(["calibrate", *arguments, "--tolerance", "1e-9"]) == 1
    assert "error: No schedule keeps" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--prompts", "a dog"]) == 1
    assert "no model_index.json" in capsys.readouterr().err


def test_inspect_of_a_scheduler_with_more_timesteps_than_steps(
    pixart_pipeline: PixArtAlphaPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heun's two steps are three timesteps. What a call costs does not depend on them, and that nothing is saved is nobody's concern."""
    printed = []
    for name, scheduler in (("dpm", pixart_pipeline.scheduler), ("heun", HeunDiscreteScheduler())):
        pixart_pipeline.scheduler = scheduler
        pixart_pipeline.save_pretrained(tmp_path / name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main(["inspect", str(tmp_path / name), "--option", "use_resolution_binning=False", "--device", "cpu"]) == 0
        assert not [warning for warning in caught if "BlockDance" in str(warning.message)]
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "4 BasicTransformerBlock, blocks 0 to 3" in printed[1]


def test_a_prompt_file_without_prompts_is_told(
    pixart_pipeline: PixArtAlphaPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixart_pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n  \n")
    assert main(["calibrate", str(tmp_path), "--prompt-file", str(tmp_path / "prompts.txt")]) == 1
    assert f"error: There is no prompt in {tmp_path / 'prompts.txt'}" in capsys.readouterr().err


def test_a_schedule_that_reuses_nothing_has_a_figure_without_marks() -> None:
    change = feature_change(torch.tensor([[0.1, 0.3]]).expand(9, 2))
    marked = [
        len(change_figure(change, plan).axes[0].collections)
        for plan in (full_compute(1, 10), BlockDanceConfig(boundary=1).schedule(10, 2))
    ]
    assert marked == [0, 1]
