"""The README's inference example, word for word, on the embedded model and its policy."""

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def test_inference_example_runs_and_saves_compute(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "AdaPolicy.from_pretrained(" in block)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(example, names)
    report = names["handle"].report()
    assert [image.size for image in names["images"]] == [(64, 64)] * 2
    assert (report.compute_saved > 0.1).all()
    assert "of the denoising MACs saved" in capsys.readouterr().out
    names["handle"].remove()
    torch.manual_seed(0)
    plain = names["pipe"](
        ["a red apple", "cat face"], guidance_scale=4.0, use_resolution_binning=False, output_type="pt"
    ).images
    assert plain.std() > 0.1, "the embedded model should draw something"
