"""The configurations with published settings: each is parsed as it is and trains on a small random pipeline of its class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import build_clip_folder
from diffusers import (
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    LattePipeline,
    PixArtSigmaPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from golden.builders import save_image_reward
from integration.pipelines import TEXT_TOKENS, dit, flux, stable_diffusion_3, t5, tokenizer, transformer, vae

import train
from ada import AdaPolicy
from ada.schedules import Ladder
from blockdance import BlockDanceConfig

STEPS = 12


def pixart_sigma() -> DiffusionPipeline:
    model = transformer("PixArtTransformer2DModel", use_additional_conditions=False)
    return PixArtSigmaPipeline(tokenizer(), t5(), vae(), model, DPMSolverMultistepScheduler())


def latte() -> DiffusionPipeline:
    return LattePipeline(tokenizer(), t5(), vae(), transformer("LatteTransformer3DModel", out_channels=8), DDIMScheduler())


def wan() -> DiffusionPipeline:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    decoder = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    return WanPipeline(tokenizer(), t5(), decoder, scheduler, transformer("WanTransformer3DModel"))


# the pipeline, the size of its pictures, and the blocks of the published model
SMALL: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any], int]] = {
    "pixart_sigma": (pixart_sigma, {"height": 8, "width": 8, "use_resolution_binning": False}, 28),
    "dit_xl_2": (dit, {}, 28),
    "latte": (latte, {"height": 8, "width": 8, "video_length": 2, "clean_caption": False}, 56),
    "sd35_medium": (stable_diffusion_3, {"height": 16, "width": 16}, 24),
    "flux_dev": (flux, {"height": 16, "width": 16}, 57),
    "wan_1_3b": (wan, {"height": 32, "width": 32, "num_frames": 5}, 30),
}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks in the place of those that score images."""
    folder = tmp_path_factory.mktemp("scorers")
    build_clip_folder(folder / "vision")
    (folder / "image_reward").mkdir()
    save_image_reward(folder / "image_reward")
    return folder


def replace_scorers(value: Any, scorers: Path) -> Any:
    """A configuration of rewards with the small networks."""
    if not isinstance(value, dict):
        return value
    if value.get("class_path") == "ada.rewards.ImageReward":
        folder = str(scorers / "image_reward")
        return {"class_path": value["class_path"], "init_args": {"model": folder, "tokenizer": folder}}
    changed = {name: replace_scorers(part, scorers) for name, part in value.items()}
    return changed | ({"model": str(scorers / "vision")} if "model" in changed else {})


@pytest.mark.parametrize("name", SMALL)
def test_a_configuration_trains_on_a_small_pipeline_of_its_class(name: str, scorers: Path, tmp_path: Path) -> None:
    """As it is, but for the models, their size and precision, the number of steps, the captions and the device."""
    build, size, _ = SMALL[name]
    build().save_pretrained(tmp_path / "pipeline")
    config = yaml.safe_load(Path(f"configs/{name}.yaml").read_text())
    settings = config["data"]["init_args"]
    pipeline = settings["pipeline"]["init_args"]
    pipeline |= {"model": str(tmp_path / "pipeline"), "num_inference_steps": STEPS, "dtype": "float32"}
    pipeline["arguments"] |= size
    if "max_sequence_length" in pipeline["arguments"]:
        pipeline["arguments"]["max_sequence_length"] = TEXT_TOKENS
    ladder = json.loads(Path(settings["ladder"]).read_text())
    for kind in ladder["kinds"]:
        kind["boundary"] = 2
    (tmp_path / "ladder.json").write_text(json.dumps(ladder))
    is_labels, source = settings["column"] == "label", tmp_path / "prompts"
    source.mkdir()
    for split, prompts in (("train", ["a dog", "sun"]), ("validation", ["a cat", "moon"])):
        rows = [json.dumps({settings["column"]: prompt}) for prompt in ([2, 0] if is_labels else prompts)]
        (source / f"{settings[f'{split}_split']}.jsonl").write_text("\n".join(rows))
    settings |= {
        "reward": replace_scorers(settings["reward"], scorers), "ladder": str(tmp_path / "ladder.json"),
        "source": str(source), "table": str(tmp_path / "tables"), "noise_seeds": 1,
    }  # fmt: skip
    config["trainer"] |= {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "max_epochs": 2, "default_root_dir": str(tmp_path / "run"),
        "logger": False,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    module = train.main(["--config", str(tmp_path / "config.yaml")])
    assert type(module.data.pipeline.pipeline) is type(build())
    assert AdaPolicy.from_pretrained(tmp_path / "run" / "policy").num_parameters > 0


@pytest.mark.parametrize("name", SMALL)
def test_its_ladder_fits_the_published_model(name: str) -> None:
    settings = yaml.safe_load(Path(f"configs/{name}.yaml").read_text())["data"]["init_args"]
    ladder = Ladder.load(settings["ladder"])
    assert ladder.num_steps == settings["pipeline"]["init_args"]["num_inference_steps"]
    assert {kind.boundary for kind in ladder.kinds} == {BlockDanceConfig().kind(SMALL[name][2]).boundary}


def test_the_labels_are_those_of_imagenet() -> None:
    lines = Path("configs/prompts/imagenet_labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == list(range(1000))
