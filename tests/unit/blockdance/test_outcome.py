"""Schedules chosen by what they do to the final latents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_pixart, build_pixart_pipeline
from diffusers import PixArtTransformer2DModel, SCMScheduler

from blockdance import (
    BlockDanceConfig,
    BlockDanceError,
    BlockLayout,
    Outcome,
    OutcomeSearch,
    ScheduleError,
    apply_blockdance,
    load_plan,
    register_layout,
)
from blockdance.__main__ import main
from blockdance.outcome import best_within, frontier

STEPS = 8
OPTIONS: dict[str, Any] = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12}
PROMPTS = ["a dog", "red sun"]
EMBEDDED = Path(__file__).parents[3] / "checkpoints" / "emoji-dit"


def outcome(saved: float, *damage: float) -> Outcome:
    return Outcome(BlockDanceConfig(), saved, torch.tensor(damage))


def test_the_frontier_and_the_best_within_a_tolerance() -> None:
    """By mean damage: (0.1, 0.2), (0.3, 0.1), (0.4, 0.5), (0.4, 0.6), (0.2, 0.1)."""
    tried = [outcome(0.1, 0.1, 0.3), outcome(0.3, 0.1), outcome(0.4, 0.5), outcome(0.4, 0.6), outcome(0.2, 0.1)]
    assert frontier(tried) == [tried[1], tried[2]]
    assert best_within(tried, 0.2) is tried[1]
    assert best_within(tried, 0.5) is tried[2]
    with pytest.raises(ScheduleError, match=r"the least was 0\.1"):
        best_within(tried, 0.05)


def search(pipeline: Any, **options: Any) -> OutcomeSearch:
    return OutcomeSearch(pipeline, PROMPTS, num_inference_steps=STEPS, seeds=2, **OPTIONS, **options)


def test_every_outcome_is_what_its_schedule_does_alone() -> None:
    """Four cases; schedules that ran together shared what they have in common."""
    pipeline = build_pixart_pipeline()
    found = search(pipeline, guidance_scale=3.0)
    chosen = found.run(tolerance=0.5, most=16)
    assert len(found.outcomes) == 16
    assert chosen.saved == max(one.saved for one in found.outcomes if one.mean_damage <= 0.5)
    assert {one.config.order for one in found.outcomes} == {0, 1}
    assert len({round(one.mean_damage, 6) for one in found.outcomes}) > 8

    def latents() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS for seed in range(2)]
        images: torch.Tensor = pipeline(
            [prompt for prompt in PROMPTS for _ in range(2)], num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent",
            generator=generators, **OPTIONS,
        ).images  # fmt: skip
        return images.flatten(1)

    plain = latents()
    for one in (chosen, found.outcomes[0]):
        with apply_blockdance(pipeline, one.config) as handle:
            damage = (latents() - plain).norm(dim=1) / plain.norm(dim=1)
            assert one.saved == pytest.approx(float(handle.report().compute_saved.mean()))
        torch.testing.assert_close(one.damage, damage, rtol=1e-3, atol=1e-5)


def test_nothing_is_compared_with_a_reference_that_reuses() -> None:
    """Not with that of a plan which is on for the pipeline, nor for a transformer whoever drives it."""
    pipeline = build_pixart_pipeline()
    for target in (pipeline, pipeline.transformer):
        with (
            apply_blockdance(target, BlockDanceConfig(), num_inference_steps=STEPS),
            pytest.raises(BlockDanceError, match=r"on for this PixArtTransformer2DModel.*remove_blockdance\(pipe\)"),
        ):
            search(pipeline)


class SprintPipeline:
    """A loop that leaves out the scheduler's last timestep, at which no noise is left, as SanaSprint's does."""

    def __init__(self) -> None:
        self.transformer, self.scheduler = build_pixart(), SCMScheduler()

    @torch.no_grad()
    def __call__(
        self, prompts: list[str], *, num_inference_steps: int, generator: list[torch.Generator], **options: Any
    ) -> Any:
        self.scheduler.set_timesteps(num_inference_steps, intermediate_timesteps=None)
        latents = torch.stack([torch.randn(4, 8, 8, generator=one) for one in generator])
        for timestep in self.scheduler.timesteps[:-1]:
            output = self.transformer(
                latents, torch.ones(len(prompts), 3, 12), timestep.expand(len(prompts)),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
            )  # fmt: skip
            latents = latents - 0.1 * output[0]
        return (latents,)


def test_schedules_have_as_many_steps_as_the_loop_where_the_scheduler_has_a_timestep_more() -> None:
    found = OutcomeSearch(SprintPipeline(), ["a dog"], num_inference_steps=STEPS, seeds=2)
    assert found.num_steps == STEPS
    found.run(tolerance=10.0, most=4)
    assert len(found.outcomes) == 4


def test_a_search_that_cannot_end_well_is_not_begun() -> None:
    with pytest.raises(ScheduleError, match=r"Of 2 denoising steps .* Take three or more"):
        OutcomeSearch(SprintPipeline(), ["a dog"], num_inference_steps=2)
    found = OutcomeSearch(SprintPipeline(), ["a dog"], num_inference_steps=3)
    for tolerance in (0.0, torch.nan, torch.inf):
        with pytest.raises(ScheduleError, match="`tolerance` must be positive and finite"):
            found.run(tolerance)
    assert not found.outcomes
    assert found.run(1e6, most=1).saved > 0


class Entangled(PixArtTransformer2DModel):
    """Its rows cannot run apart."""


register_layout(Entangled, BlockLayout(("transformer_blocks",), splits_rows=lambda inputs: False))


def test_schedules_of_a_model_whose_rows_cannot_run_apart_run_one_by_one() -> None:
    pipeline, entangled = build_pixart_pipeline(), build_pixart_pipeline()
    entangled.transformer.__class__ = Entangled
    for one, other in zip(*(sorted(outcomes_of(made), key=str) for made in (pipeline, entangled)), strict=True):
        assert one.config == other.config
        assert one.saved == pytest.approx(other.saved)
        torch.testing.assert_close(one.damage, other.damage, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("limits", [{"max_rows": 2}, {"groups": [0, 0, 0]}], ids=["max_rows", "groups"])
def test_rows_that_cannot_run_apart_are_never_parted(limits: dict[str, Any]) -> None:
    """Neither by a limit nor because some of them are equal: the model would make something else of a part of them."""
    pipeline = build_pixart_pipeline()
    pipeline.transformer.__class__ = Entangled
    rows = []
    pipeline.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with apply_blockdance(pipeline, **limits):
        noise = [torch.Generator().manual_seed(0) for _ in range(3)]
        pipeline(["a"] * 3, num_inference_steps=6, generator=noise, output_type="latent", **OPTIONS)
    assert set(rows) == {6}, "three images with both branches of guidance"


def test_no_call_is_larger_than_was_asked_for() -> None:
    pipeline, rows = build_pixart_pipeline(), []
    pipeline.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    OutcomeSearch(pipeline, ["a", "b", "c"], num_inference_steps=4, seeds=2, batch_size=4, **OPTIONS)
    assert max(rows) == 2 * 4


def outcomes_of(pipeline: Any) -> list[Outcome]:
    found = search(pipeline)
    found.run(tolerance=10.0, most=4)
    return found.outcomes


def test_the_command_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["calibrate", str(EMBEDDED), "--by", "outcome", "--prompts", "a red apple", "--steps", "6", "--most", "5"]
    arguments += ["--device", "cpu", "--option", "use_resolution_binning=False", "--output", str(plan), "--tolerance", "0.9"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "saved   damage 0." in printed
    assert printed.count("\n*") == 1
    with pytest.raises(ScheduleError, match="with 16 blocks, but this model"):
        load_plan(plan, build_pixart_pipeline())
