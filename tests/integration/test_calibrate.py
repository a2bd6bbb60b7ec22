"""Calibration of stock pipelines with two transformers."""

from pathlib import Path

from integration.pipelines import STEPS, video_inputs, wan_of_two

from blockdance import OutcomeSearch, apply_blockdance, measure_feature_change, save_plan


def test_each_of_wans_two_transformers_is_measured_and_steered(tmp_path: Path) -> None:
    pipeline = wan_of_two()
    options = {name: value for name, value in video_inputs(1).items() if name != "prompt"} | {"num_inference_steps": STEPS}
    prompts = video_inputs(1)["prompt"]
    changes = {
        name: measure_feature_change(pipeline, prompts, component=name, **options) for name in ("transformer", "transformer_2")
    }
    ran = {name: change.steps_run for name, change in changes.items()}
    assert ran["transformer"].stop == ran["transformer_2"].start
    assert (ran["transformer"].start, ran["transformer_2"].stop) == (0, STEPS)
    change = changes["transformer_2"]
    config = change.propose(float(change.output_change.nan_to_num().max()) * 2, intervals=[2], reuse_end=1.0)
    assert config.reuse_range[0] * STEPS > ran["transformer_2"].start
    save_plan(config, tmp_path / "plan.json", pipeline.transformer_2)
    with apply_blockdance(pipeline, tmp_path / "plan.json", component="transformer_2") as handle:
        pipeline(prompts, **options)
        report = handle.report()
    assert float(report.compute_saved) > 0
    assert abs(float(report.compute_saved) - change.saved(config.schedule(STEPS, change.cosine.shape[2]))) < 1e-9


def test_both_of_wans_transformers_follow_a_schedule_that_is_tried() -> None:
    pipeline = wan_of_two()
    options = {name: value for name, value in video_inputs(1).items() if name != "prompt"} | {"negative_prompt": "bad"}
    search = OutcomeSearch(pipeline, video_inputs(1)["prompt"], num_inference_steps=STEPS, **options)
    search.run(tolerance=100.0, most=3)
    assert all(one.saved > 0 and one.mean_damage > 0 for one in search.outcomes)
