"""How fast the learnt rewards score: images a second, in one batch against one by one, and memory.

    python benchmarks/rewards.py                                     all of them, small, in seconds
    python benchmarks/rewards.py --size full --rewards ImageReward   the published size, random weights
    python benchmarks/rewards.py --size full --device cuda --images 64 --side 1024

Weights are random, in files of the published formats, and loaded as a user's would be; speed does not depend on their values. The
full size writes up to 4 GB into the folder for temporary files. Each reward runs in a process of its own, so that memory is its own.
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    logging,
)  # fmt: skip

from ada.rewards import HPS, AestheticScore, ClipScore, ImageReward, PickScore, Reward
from ada.rewards.head import LAYERS, LinearHead
from ada.rewards.image_reward import ImageRewardNetwork, original_name
from ada.rewards.open_clip import origin

MIB = 2**20
LINUX_PEAK = Path("/proc/self/clear_refs")
PROMPT = "an oil painting of two cats and a dog that play chess in the snow under a red moon"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*PROMPT.split()})]
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
# vision width, layers, heads, patch; text width, layers, heads; shared width
VIT_L, VIT_H, SMALL = (
    (1024, 24, 16, 14, 768, 12, 12, 768),
    (1280, 32, 16, 14, 1024, 24, 16, 1024),
    (64, 2, 16, 14, 64, 2, 16, 64),
)


def clip_model(sizes: tuple[int, ...]) -> CLIPModel:
    """A random CLIP that sees 224 pixels and reads 77 tokens."""
    width, layers, heads, patch, text_width, text_layers, text_heads, shared = sizes
    text = {
        "hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers,
        "num_attention_heads": text_heads, "vocab_size": 49408, "max_position_embeddings": 77,
        "eos_token_id": VOCABULARY.index("[SEP]"),
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": 224, "patch_size": patch,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared))


def save_clip(folder: Path, sizes: tuple[int, ...]) -> str:
    """A transformers CLIP's folder."""
    clip_model(sizes).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return str(folder)


def save_open_clip(folder: Path, sizes: tuple[int, ...]) -> str:
    """The same in open_clip's format: projections transposed; keys, values and queries in one, in whatever order: they are random."""
    merged: dict[str, list[Tensor]] = {}
    for name, tensor in clip_model(sizes).state_dict().items():
        merged.setdefault(origin(name).key, []).append(tensor.T if name in PROJECTIONS else tensor)
    torch.save({key: torch.cat(parts) if len(parts) > 1 else parts[0] for key, parts in merged.items()}, folder / "model.pt")
    return str(folder / "model.pt")


def save_image_reward(folder: Path, full: bool) -> str:
    """ImageReward's file."""
    width, layers, text_width, text_layers = (1024, 24, 768, 12) if full else (128, 2, 64, 2)
    vision = BlipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        image_size=224, patch_size=16,
    )  # fmt: skip
    text = BlipTextConfig(
        hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers,
        num_attention_heads=text_width // 64, encoder_hidden_size=width, is_decoder=True,
    )  # fmt: skip
    network = ImageRewardNetwork(vision, text, (text_width, *HEAD_WIDTHS))
    torch.save({original_name(name): tensor for name, tensor in network.state_dict().items()}, folder / "ImageReward.pt")
    return str(folder)


def save_head(folder: Path, width: int) -> str:
    """The aesthetic predictor's file."""
    assert len(LAYERS) == len(HEAD_WIDTHS)
    torch.save(LinearHead((width, *HEAD_WIDTHS)).state_dict(), folder / "aesthetic-model.pth")
    return str(folder)


def build(name: str, full: bool, folder: Path) -> Reward:
    """A reward of random weights, through its own loading."""
    BertTokenizer(vocab={word: row for row, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    large, huge = (VIT_L, VIT_H) if full else (SMALL, SMALL)
    builders: dict[str, Callable[[], Reward]] = {
        "ImageReward": lambda: ImageReward(save_image_reward(folder, full), str(folder)),
        "PickScore": lambda: PickScore(save_clip(folder, huge), str(folder)),
        "HPS": lambda: HPS(save_open_clip(folder, huge), str(folder)),
        "ClipScore": lambda: ClipScore(save_clip(folder, large)),
        "AestheticScore": lambda: AestheticScore(save_head(folder, large[-1]), save_clip(folder, large)),
    }
    return builders[name]()


REWARDS = ("ImageReward", "PickScore", "HPS", "ClipScore", "AestheticScore")


def seconds(score: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        score()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def forget_peak(device: str) -> None:
    """Starts the measurement of memory anew, so that loading does not count; where the system cannot, it does."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif LINUX_PEAK.exists():
        LINUX_PEAK.write_text("5")


def peak_mib(device: str) -> float:
    """Most memory since: of the device, or of the process where there is none of its own."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MIB
    if LINUX_PEAK.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if platform.system() == "Darwin" else 1024)


@torch.inference_mode()
def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs one reward: seconds and peak memory, weights included, for images one by one and for all in a batch."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        reward = build(name, options.size == "full", Path(folder)).to(options.device)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(options.images, 3, options.side, options.side, generator=generator).to(options.device)
        prompts = [PROMPT] * options.images
        singles = [image[None] for image in images]
        ways: dict[str, Callable[[], Any]] = {
            "alone": lambda: [reward(image, [PROMPT], image) for image in singles],
            "batched": lambda: reward(images, prompts, images),
        }
        found = {}
        for way, score in ways.items():
            forget_peak(options.device)
            found[way] = seconds(score, options.device, options.repeats)
            found[f"peak_{way}"] = peak_mib(options.device)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    parser.add_argument("--size", choices=("small", "full"), default="small", help="of the networks (default: small)")
    parser.add_argument("--images", type=int, default=16, help="how many, and the batch (default: 16)")
    parser.add_argument("--side", type=int, default=256, help="of the images, in pixels (default: 256)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing; the median counts (default: 3)")
    options = parser.parse_args()

    kind = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    table = Table(title=f"{options.size} size, {options.images} images of {options.side}², {kind}", title_justify="left")
    for column in ("reward", "one by one, images/s", "batch, images/s", "ratio", "peak MiB, one by one", "peak MiB, batch"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    console = Console()
    for name in options.rewards:
        workers = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with console.status(f"{name} …"), workers:
            found = workers.submit(measure, name, options).result()
        table.add_row(
            name, f"{options.images / found['alone']:.2f}", f"{options.images / found['batched']:.2f}",
            f"{found['alone'] / found['batched']:.2f}", f"{found['peak_alone']:.0f}", f"{found['peak_batched']:.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
