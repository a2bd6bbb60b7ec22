"""Pictures of a training run."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ada.training.pictures import picture_decisions


def test_of_videos_one_is_made_to_see_that_they_have_no_picture(tmp_path: Path) -> None:
    made: list[str] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int], plan: Any) -> Any:
        made.extend(prompts)
        return SimpleNamespace(
            images=torch.zeros(len(prompts), 4, 3, 8, 8), report=SimpleNamespace(compute_saved=torch.zeros(1))
        )

    pipeline = SimpleNamespace(generate=generate, num_inference_steps=8)
    policy = SimpleNamespace(with_options=lambda **_: None)
    picture_decisions(pipeline, policy, ["a", "b", "c"], [1, 2, 3], 0.8, tmp_path / "decisions.png")  # type: ignore[arg-type]
    assert made == ["a"]
    assert not list(tmp_path.iterdir())
