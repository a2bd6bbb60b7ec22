"""Exported policies, carried out by cache-dit itself."""

import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import NUM_BLOCKS, build_pixart_pipeline
from ladders import ARGUMENTS, STEPS, build_frozen, build_ladder
from policies import build_step_policy

from ada.__main__ import main
from ada.export import ExportError, static_schedule
from ada.policy import BaseModel, LadderPolicy

COSTS = [0.3, 0.6]  # the rungs save 0, .0875, .1, .175, .225 and .2625 of the compute


@pytest.fixture(scope="module")
def policy() -> LadderPolicy:
    base_model = asdict(BaseModel.of(build_pixart_pipeline().transformer))
    return LadderPolicy(
        base_model=base_model, ladder=build_ladder().to_dict(), reuse_costs=COSTS, sight_width=40, num_components=3
    )


def test_cache_dit_carries_out_the_exported_schedule(policy: LadderPolicy, tmp_path: Path) -> None:
    """At 0.82 the nearest rung is `00010010`, after block 2 of 4: the first block and the last run at all 8 steps, the others at 6."""
    cache_dit = pytest.importorskip("cache_dit")
    for name in [name for name in logging.Logger.manager.loggerDict if name.startswith("cache_dit")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    policy.save_pretrained(tmp_path / "policy")
    file = tmp_path / "files" / "cache.yaml"
    arguments = ["--policy", str(tmp_path / "policy"), "--output", str(file), "--compute", "0.82", "--steps", str(STEPS)]
    assert main(["export", *arguments]) == 0
    config = cache_dit.load_configs(str(file))["cache_config"]
    assert config.steps_computation_mask == [1, 1, 1, 0, 1, 1, 0, 1]

    pipeline = build_pixart_pipeline()
    calls = [0] * NUM_BLOCKS
    for place, block in enumerate(pipeline.transformer.transformer_blocks):
        block.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    cache_dit.enable_cache(pipeline, cache_config=config)
    try:
        for generation in (1, 2):  # the mask begins anew with every generation
            pipeline("dog", num_inference_steps=STEPS, output_type="latent", **ARGUMENTS)
            assert calls == [8 * generation, 6 * generation, 6 * generation, 8 * generation]
    finally:
        cache_dit.disable_cache(pipeline)


@pytest.mark.parametrize(("compute", "rung"), [(1.0, 0), (0.92, 1), (0.83, 3), (0.74, 5)])
def test_the_nearest_rung_is_taken(policy: LadderPolicy, compute: float, rung: int) -> None:
    assert static_schedule(policy, compute, STEPS).actions.tolist() == policy.ladder.actions[rung][None].tolist()


def test_other_numbers_of_steps_stretch_the_ladder(policy: LadderPolicy) -> None:
    schedule = static_schedule(policy, 0.74, 16)
    assert torch.equal(schedule.actions, policy.ladder.for_steps(16).actions[5][None])
    assert (schedule.actions > 0).sum() == 6


def test_what_cannot_be_exported_is_said(policy: LadderPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.save_pretrained(tmp_path)

    def fails(message: str, *arguments: str) -> None:
        assert (
            main(["export", "--policy", str(tmp_path), "--output", str(tmp_path / "no.yaml"), "--steps", "8", *arguments]) == 1
        )
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no.yaml").exists()

    fails("computes every step", "--compute", "0.99")
    fails("after the blocks [1, 2]", "--compute", "0.78")
    fails("`compute` must lie between 0.74", "--compute", "0.5")
    fails("decisions need", "--steps", "4")
    with pytest.raises(ExportError, match="StepPolicy decides every step by the image"):
        static_schedule(build_step_policy(build_frozen()), 0.8, STEPS)
