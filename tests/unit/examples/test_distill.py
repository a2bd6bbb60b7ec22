"""Distillation: what the student is told leads along the teacher's way, and a student that learnt it draws more like its teacher."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from torch import Tensor

from ada.rollouts import Case, FrozenPipeline
from benchmarks.few_steps import POLICY_LEVELS, policy_words
from blockdance import BlockDanceConfig

ROOT = Path(__file__).parents[3]
PROMPTS = ["a dog", "sun", "b", "cat"]


@pytest.fixture(scope="module")
def distill():
    """The example's module; examples are scripts, not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "emoji")
        import distill

        yield distill
        for name in ("distill", "common", "optimizers"):
            sys.modules.pop(name, None)


def draw(distill: Any, pipeline: PixArtAlphaPipeline, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """Latents `(prompts, 4, 8, 8)` that a pipeline ends at."""
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent", **distill.CALL}
    return pipeline(PROMPTS, latents=noise.clone(), **options).images


def test_a_section_leads_from_one_point_of_the_teachers_way_to_the_next(
    distill: Any, pixart_pipeline: PixArtAlphaPipeline, tmp_path: Path
) -> None:
    file = tmp_path / "ways.pt"
    ways = distill.record_ways(pixart_pipeline, PROMPTS, 3, 4.0, 0, file, batch_size=2)
    assert len(ways) == 16
    with pytest.raises(ValueError, match="give another --output"):
        distill.record_ways(pixart_pipeline, PROMPTS, 3, 4.5, 0, file)
    transformer, pixart_pipeline.transformer = pixart_pipeline.transformer, None  # what lies in the file is not drawn again
    again = distill.record_ways(pixart_pipeline, PROMPTS, 3, 4.0, 0, file)
    assert all(map(torch.equal, again[5], ways[5]))
    pixart_pipeline.transformer = transformer
    noise = torch.cat([ways[4 * way][0][None] for way in range(4)])
    latents, scheduler = noise, distill.student_scheduler(pixart_pipeline)
    for step, timestep in enumerate(scheduler.timesteps):
        starts, velocities, *_, told = (
            torch.stack(parts) for parts in zip(*(ways[4 * way + step] for way in range(4)), strict=True)
        )
        assert told.tolist() == [int(timestep)] * 4
        torch.testing.assert_close(latents, starts, rtol=1e-4, atol=1e-4)
        latents = scheduler.step(velocities, timestep, latents, return_dict=False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(latents, draw(distill, pixart_pipeline, noise, 12, 4.0).float(), rtol=0.05, atol=0.05)


def test_the_folder_of_a_student_loads_and_draws_more_like_the_teacher(
    distill: Any, pixart_pipeline: PixArtAlphaPipeline, tmp_path: Path
) -> None:
    pixart_pipeline.save_pretrained(tmp_path / "teacher")
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    for split in ("composed_train", "composed_validation"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    distill.main(
        f"--teacher {tmp_path / 'teacher'} --prompts {tmp_path} --captions 4 --output {tmp_path} --steps 60 --batch-size 8 "
        "--matrix-learning-rate 0 --learning-rate 3e-3".split()
    )
    student = FrozenPipeline(str(tmp_path / "pipeline"), 4, {"guidance_scale": 1.0, **distill.CALL})
    assert (
        student.generate(["sun"], [0], BlockDanceConfig(interval=2, reuse_range=(0.2, 1.0))).report.compute_saved.item() > 0.1
    )
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = draw(distill, pixart_pipeline, noise, 8, 4.0)
    untaught = PixArtAlphaPipeline(**pixart_pipeline.components | {"scheduler": student.pipeline.scheduler})
    untaught.set_progress_bar_config(disable=True)
    before = (draw(distill, untaught, noise, 4, 1.0) - wanted).norm()
    after = (draw(distill, student.pipeline, noise, 4, 1.0) - wanted).norm()
    assert after < 0.7 * before


def test_a_policy_of_four_steps_is_trained_and_judged(pixart_pipeline: PixArtAlphaPipeline, tmp_path: Path) -> None:
    content = json.loads((ROOT / "configs" / "ladders" / "emoji_four_steps.json").read_text())
    for kind in content["kinds"]:
        kind["boundary"] = 0
    (tmp_path / "ladder.json").write_text(json.dumps(content))
    student = FrozenPipeline(pixart_pipeline, 4, {"use_resolution_binning": False, "clean_caption": False})
    scorer, cases = str(ROOT / "checkpoints" / "emoji-scorer"), [Case(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    words = policy_words(student, scorer, str(tmp_path / "ladder.json"), 8, cases, tmp_path)
    assert words.count("% saved: ") == len(POLICY_LEVELS)
    assert "…" in words  # an interval: some level was reached
