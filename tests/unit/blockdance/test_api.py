"""What may be given to `apply_blockdance`, and what is said of what may not."""

import re
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_pixart, build_sd3
from diffusers import PixArtAlphaPipeline

from ada.policy import AdaPolicy
from blockdance import (
    BlockDanceConfig,
    BlockDanceError,
    ScheduleError,
    UnsupportedModelError,
    apply_blockdance,
    get_blockdance,
    remove_blockdance,
    save_plan,
)

PLAN = BlockDanceConfig(interval=3, boundary=1)


def load_someones_policy(source: str) -> BlockDanceConfig:
    assert source == "someone/policy"
    return PLAN


def test_the_default_plan_and_all_transformers() -> None:
    pipeline = SimpleNamespace(transformer=build_pixart(), unconditional_transformer=build_sd3(), vae=None)
    handle = apply_blockdance(pipeline)
    assert handle.plan == BlockDanceConfig()
    for name in ("transformer", "unconditional_transformer"):
        assert get_blockdance(pipeline, name) is not None
    remove_blockdance(pipeline)
    assert get_blockdance(pipeline) is None
    assert "forward" not in vars(pipeline.unconditional_transformer)
    apply_blockdance(pipeline, component="unconditional_transformer")
    assert "forward" not in vars(pipeline.transformer)


def test_a_typo_in_component_names_the_components() -> None:
    pipeline = SimpleNamespace(transformer=build_pixart(), transformer_2=build_sd3())
    with pytest.raises(UnsupportedModelError, match=r"no component `transformer2` .*`transformer_2` \(SD3Transformer2DModel\)"):
        apply_blockdance(pipeline, component="transformer2")


def test_another_transformer_passes_the_plan_by(pixart_pipeline: PixArtAlphaPipeline) -> None:
    """Its calls run plain, so the last report and another plan would be about nothing."""
    first = pixart_pipeline.transformer
    handle = apply_blockdance(pixart_pipeline, PLAN)

    def generate() -> None:
        pixart_pipeline(["a b"], num_inference_steps=6, use_resolution_binning=False, output_type="latent")

    generate()
    report = str(handle.report())
    pixart_pipeline.transformer = build_pixart()
    generate()
    for ask in (handle.report, handle.cost, lambda: setattr(handle, "plan", PLAN), handle.using(PLAN).__enter__):
        with pytest.raises(
            BlockDanceError, match=r"The `transformer` of this PixArtAlphaPipeline is another object .*apply_blockdance"
        ):
            ask()
    for same in (torch.compile(first), first, None):  # None frees its memory when it has run
        pixart_pipeline.transformer = same
        assert str(handle.report()) == report
    pixart_pipeline.transformer = build_pixart()
    handle.remove()
    assert str(handle.report()) == report
    newer = apply_blockdance(pixart_pipeline, PLAN)
    generate()
    assert float(newer.report().compute_saved) > 0


def test_a_plan_lets_the_other_transformer_of_a_pipeline_be_replaced() -> None:
    pipeline = SimpleNamespace(transformer=build_pixart(), transformer_2=build_sd3())
    handle = apply_blockdance(pipeline, PLAN, component="transformer")
    pipeline.transformer_2 = build_sd3()
    handle.plan = BlockDanceConfig()
    pipeline.transformer = build_pixart()
    with pytest.raises(BlockDanceError, match="The `transformer` of this SimpleNamespace"):
        handle.plan = PLAN


def test_a_file_and_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model = build_pixart()
    save_plan(PLAN, tmp_path / "plan.json", model)
    with apply_blockdance(model, str(tmp_path / "plan.json"), num_inference_steps=4) as handle:
        assert handle.plan == PLAN
    monkeypatch.setattr("blockdance.plan_source.entry_points", lambda group: ())
    with pytest.raises(ScheduleError, match=r"someone/policy is the folder or Hub id .*Install `blockdance-ada`"):
        apply_blockdance(model, "someone/policy")
    loader = EntryPoint("ours", f"{__name__}:load_someones_policy", "blockdance.plans")
    monkeypatch.setattr(EntryPoint, "load", lambda self: load_someones_policy)
    monkeypatch.setattr("blockdance.plan_source.entry_points", lambda group: (loader,) if group == loader.group else ())
    with apply_blockdance(model, "someone/policy", num_inference_steps=4) as handle:
        assert handle.plan == PLAN


def test_a_path_that_is_no_plan_says_what_would_be(tmp_path: Path) -> None:
    model = build_pixart()
    with pytest.raises(FileNotFoundError, match=r"There is no plan missing\.json\."):
        apply_blockdance(model, "missing.json")
    for missing in (tmp_path / "policy", "runs/ada/policy", Path("no/policy")):
        with pytest.raises(
            FileNotFoundError, match=rf"There is no plan file and no policy folder {missing}\. .*calibrate.*train\.py"
        ):
            apply_blockdance(model, missing)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(ScheduleError, match=rf"{name} is one of a policy's files.* Give its folder: {tmp_path}\."):
            apply_blockdance(model, tmp_path / name)
    (tmp_path / "bytes.json").write_bytes(b"\xd0\x01" * 400)
    with pytest.raises(ScheduleError, match=r"is no plan that `save_plan` wrote \(UnicodeDecodeError") as error:
        apply_blockdance(model, tmp_path / "bytes.json")
    assert len(str(error.value)) < 500
    (tmp_path / "model.safetensors").unlink()
    save_plan(PLAN, tmp_path / "config.json", model)
    with apply_blockdance(model, tmp_path / "config.json") as handle:
        assert handle.plan == PLAN


@pytest.mark.parametrize("target", ["user/model", Path("model"), None, (1, 2)])
def test_what_is_neither_pipeline_nor_transformer_is_told(target: Any) -> None:
    message = f"a pipeline or a transformer; got {target!r}. Load the pipeline first"
    for call in (apply_blockdance, get_blockdance, remove_blockdance):
        with pytest.raises(UnsupportedModelError, match=re.escape(message)):
            call(target)


@pytest.mark.parametrize("option", ["num_inference_steps", "guidance_branches", "max_rows"])
def test_options_below_their_least_are_refused_at_once(option: str) -> None:
    model = build_pixart()
    for number in (0, -1):
        with pytest.raises(ScheduleError, match=f"`{option}` must be 1 or more, or None; got {number}"):
            apply_blockdance(model, PLAN, **{option: number})
    assert get_blockdance(model) is None
    apply_blockdance(model, PLAN, **{option: 1})


def test_a_policy_is_no_plan_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"BlockDanceConfig or a ReuseSchedule; got SimpleNamespace.*save_pretrained"):
        save_plan(SimpleNamespace(kinds=()), tmp_path / "plan.json", build_pixart())  # type: ignore[arg-type]


def test_this_package_names_what_loads_its_policies() -> None:
    settings = ConfigParser()
    settings.read(Path(__file__).parents[3] / "setup.cfg")
    name, _, value = settings["options.entry_points"]["blockdance.plans"].strip().partition(" = ")
    assert EntryPoint(name, value, "blockdance.plans").load() == AdaPolicy.from_pretrained
