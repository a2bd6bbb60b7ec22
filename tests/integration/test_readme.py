"""What README and pages show in Python, word for word, on the embedded model and its policy."""

import re
from pathlib import Path
from typing import Any

import torch
from hub_client import write_entry_points

from blockdance import get_blockdance

ROOT = Path(__file__).parents[2]


def example_of(page: str, words: str) -> str:
    """The first Python example of a page that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return next(block for block in blocks if words in block)


def test_inference_example_runs_and_saves_compute(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(example_of("README.md", "AdaPolicy.from_pretrained("), names)
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


def test_the_first_images_of_a_newcomer_and_budgets_in_ones_own_program(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """`docs/start.md`, then `docs/serve.md` with the same pipeline: the first of two images may spend everything."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.syspath_prepend(str(write_entry_points(tmp_path)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example_of("docs/start.md", "apply_blockdance("), names)
    assert (tmp_path / "apple.png").is_file()
    assert "expected" in capsys.readouterr().out
    exec(example_of("docs/serve.md", "PerImage("), names)
    names["pipe"](["a red apple", "cat face"], num_inference_steps=12, guidance_scale=4.0, use_resolution_binning=False)
    computed, reused = get_blockdance(names["pipe"]).report().compute_saved.tolist()  # type: ignore[union-attr]
    assert computed == 0
    assert reused > 0.1
