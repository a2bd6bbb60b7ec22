"""Settings as JSON that tells them apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from ladders import build_frozen
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from ada.rollouts import Case, FrozenPipeline, SamplingLoop
from ada.rollouts.fingerprints import described, digest, parts_digest, weights_digest


class FromImages:
    """Prompts with an image each."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, prompts: Sequence[Any]) -> Mapping[str, Any]:
        return {"prompt": list(prompts), "image": self.images[: len(prompts)]}


def test_plain_settings_stay_as_they_are() -> None:
    settings = {"guidance_scale": 4.0, "size": [8, None], "clean": False, "name": "a"}
    assert described(settings) == settings
    assert build_frozen().fingerprint()["arguments"] == build_frozen().arguments


def test_tensors_are_told_apart_by_content_and_callables_by_name_and_attributes() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert described(zeros) == described(zeros.clone())
    assert described(zeros) != described(ones)
    assert described(zeros) != described(zeros.reshape(3, 2))
    found = [digest(described(FromImages(images))) for images in (zeros, zeros.clone(), ones)]
    assert found[0] == found[1] != found[2]
    assert described(len) != described(sum)
    assert described([{"b", "a"}, torch.float32, range(3)]) == [
        ["a", "b"],
        ["torch.dtype", "torch.float32"],
        ["builtins.range", "range(0, 3)"],
    ]
    plain = build_frozen()
    told = build_frozen(inputs=FromImages(zeros))
    assert "inputs" not in plain.fingerprint(), "tables that were made without stay valid"
    assert told.fingerprint() != build_frozen(inputs=FromImages(ones)).fingerprint()


def test_callables_are_told_apart_by_what_they_were_made_with() -> None:
    """An `inputs` of another size is another base: it must not take the other's rollouts."""
    ones, zeros = FromImages(torch.ones(2, 3)), FromImages(torch.zeros(2, 3))
    for one, other in [
        (partial(ones, size=512), partial(ones, size=1024)),
        (partial(len, []), partial(sum, [])),
        (ones.__call__, zeros.__call__),
    ]:
        assert described(one) == described(one) != described(other)


def test_weights_are_told_apart_whatever_the_order_in_which_they_are_added_up() -> None:
    torch.manual_seed(1)
    model = torch.nn.Linear(1500, 1000, bias=False).requires_grad_(False)
    values = torch.randn(model.weight.numel()) * torch.randn(model.weight.numel()).exp()
    model.weight.copy_(values.view_as(model.weight))
    found = weights_digest(model)
    magnitudes = values.double().abs()
    # an order in which floats are rounded otherwise, as with another number of threads
    order = next(
        order
        for order in (torch.randperm(len(values)) for _ in range(100))
        if float(magnitudes.sum()) != float(magnitudes[order].sum())
    )
    model.weight.copy_(values[order].view_as(model.weight))
    assert weights_digest(model) == found
    model.weight[3, 4] += 1e-6
    assert weights_digest(model) != found
    model.weight.zero_()
    model.weight[0, 0] = float("nan")
    assert weights_digest(model) != found


def test_weights_of_half_precision_keep_the_digest_of_tables_that_are_there() -> None:
    model = torch.nn.Linear(50, 40, bias=False).half().float().requires_grad_(False)
    assert weights_digest(model) == digest(
        {"weight": [float(of(model.weight.double()).sum()) for of in (torch.clone, torch.abs)]}
    )


def fingerprint_in_a_process(model: Path, **environment: str) -> str:
    """Of a saved pipeline, by a Python of its own."""
    code = (
        "import sys; from ada.rollouts import FrozenPipeline; from ada.rollouts.fingerprints import digest; "
        "print(digest(FrozenPipeline(sys.argv[1]).fingerprint()))"
    )
    command = [sys.executable, "-c", code, str(model)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."} | environment
    )
    return ran.stdout.strip()


@pytest.mark.slow  # starts Python twice
def test_a_scheduler_saved_by_an_older_version_is_the_same_one_in_every_process(tmp_path: Path) -> None:
    build_pixart_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    newer = ("time_shift_type", "use_dynamic_shifting", "flow_shift", "use_beta_sigmas", "final_sigmas_type")
    settings = {name: value for name, value in json.loads(file.read_text()).items() if name not in newer}
    file.write_text(json.dumps(settings))
    one, other = (fingerprint_in_a_process(tmp_path, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one == other


def test_how_prompts_are_told_is_part_of_a_pipelines_identity() -> None:
    usual = build_frozen().fingerprint()
    assert build_frozen(prompt_argument="prompt").fingerprint() == usual
    assert build_frozen(prompt_argument="negative_prompt").fingerprint() == usual | {"prompt_argument": "negative_prompt"}


def test_functions_are_told_apart_by_what_they_hold_and_do() -> None:
    """Two of one name are two setups: a closure over another size, another default, another body."""

    def of_size(size: int) -> Callable[..., int]:
        return lambda prompts, scale=1: size * scale * len(prompts)

    assert described(of_size(1)) == described(of_size(1)) != described(of_size(2))
    bodies = [lambda prompts: 1, lambda prompts: 2]
    assert described(bodies[0]) != described(bodies[1])
    recursive = lambda: recursive  # noqa: E731
    assert described(recursive) == described(recursive)


def test_another_sampling_loop_is_another_base() -> None:
    """The transformer and its weights are the same, and so are class and number of steps."""
    model = build_pixart_pipeline().transformer

    def loop(scale: float) -> FrozenPipeline:
        return FrozenPipeline(SamplingLoop(model, lambda prompts, generators: torch.zeros(len(prompts)) * scale, 6), 6)

    assert loop(1.0).fingerprint() == loop(1.0).fingerprint() != loop(2.0).fingerprint()


def test_the_strength_of_a_lora_is_part_of_the_weights() -> None:
    pipeline = build_pixart_pipeline()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), pipeline.transformer)
    layers = [layer for layer in pipeline.transformer.modules() if isinstance(layer, LoraLayer)]
    told = [(weights_digest(pipeline.transformer), parts_digest(pipeline)["transformer"])]
    for change in (lambda layer: layer.scale_layer(0.5), lambda layer: layer.enable_adapters(False)):
        for layer in layers:
            change(layer)
        told.append((weights_digest(pipeline.transformer), parts_digest(pipeline)["transformer"]))
    assert all(len(set(digests)) == 3 for digests in zip(*told, strict=True))


def test_cases_come_back_from_json() -> None:
    for case in (Case("a", 1), Case(7, 2), Case("a", 1, (("guidance_scale", 3.5), ("num_inference_steps", 12)))):
        assert Case.from_json(case.to_json()) == case
    assert Case("a", 1).to_json() == ["a", 1], "as in tables from before cases had settings"
