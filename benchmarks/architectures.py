"""Latency of full-size architectures with random weights: BlockDance-2 over plain, and a batch of mixed schedules.

    python benchmarks/architectures.py --device cuda --dtype bfloat16            all of them
    python benchmarks/architectures.py --only "DiT-XL/2 512" --steps 8 --repeats 2 --batch 2   one of them, on a CPU
    python benchmarks/architectures.py --tiny                                    the same models, small, in seconds

The paper reports, with its own implementation at N = 2: -37.4 % latency on DiT-XL/2, -25.4 % on PixArt, -34.8 % on Open-Sora.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
    WanTransformer3DModel,
)
from model import Loop
from realised import compare
from rich.console import Console
from rich.table import Table

from blockdance import BlockDanceConfig, Plan, find_layout, random_schedule
from blockdance.layouts import block_stack

Build = Callable[[bool, int, Callable[..., torch.Tensor]], tuple[Any, dict[str, Any], tuple[float, float]]]


def pixart(tiny: bool, batch: int, draw: Callable[..., torch.Tensor]) -> tuple[Any, dict[str, Any], tuple[float, float]]:
    """PixArt-α XL/2 at 1024 pixels; range 40 to 95 % of the steps."""
    size = 16 if tiny else 128
    heads = 2 if tiny else 16
    model = PixArtTransformer2DModel(
        sample_size=size,
        num_layers=4 if tiny else 28,
        num_attention_heads=heads,
        cross_attention_dim=72 * heads,
        caption_channels=4096,
        use_additional_conditions=False,
    )
    inputs = {
        "hidden_states": draw(batch, 4, size, size),
        "encoder_hidden_states": draw(batch, 120, 4096),
        "encoder_attention_mask": draw(batch, 120) * 0 + 1,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, inputs, (0.4, 0.95)


def dit(tiny: bool, batch: int, draw: Callable[..., torch.Tensor]) -> tuple[Any, dict[str, Any], tuple[float, float]]:
    """DiT-XL/2 at 512 pixels; range 25 to 95 %."""
    size = 16 if tiny else 64
    model = DiTTransformer2DModel(sample_size=size, num_layers=4 if tiny else 28, num_attention_heads=2 if tiny else 16)
    labels = torch.arange(batch, device=draw(1).device)
    return model, {"hidden_states": draw(batch, 4, size, size), "class_labels": labels}, (0.25, 0.95)


def latte(tiny: bool, batch: int, draw: Callable[..., torch.Tensor]) -> tuple[Any, dict[str, Any], tuple[float, float]]:
    """Latte-1, 16 frames of 512 pixels, whose blocks are as Open-Sora 1.0's split in two; range 25 to 95 %."""
    size, frames, heads = (16, 4, 2) if tiny else (64, 16, 16)
    model = LatteTransformer3DModel(
        num_attention_heads=heads,
        sample_size=size,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=4 if tiny else 28,
        attention_head_dim=72,
        cross_attention_dim=72 * heads,
        caption_channels=4096,
        video_length=frames,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    inputs = {"hidden_states": draw(batch, 4, frames, size, size), "encoder_hidden_states": draw(batch, 120, 4096)}
    return model, inputs, (0.25, 0.95)


def flux(tiny: bool, batch: int, draw: Callable[..., torch.Tensor]) -> tuple[Any, dict[str, Any], tuple[float, float]]:
    """FLUX.1 at 1024 pixels; range 40 to 95 %."""
    side, text = (8, 16) if tiny else (64, 512)
    sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2} if tiny else {}
    model = FluxTransformer2DModel(**sizes)
    inputs = {
        "hidden_states": draw(batch, side**2, 64),
        "encoder_hidden_states": draw(batch, text, 4096),
        "pooled_projections": draw(batch, 768),
        "img_ids": draw(side**2, 3) * 0,
        "txt_ids": draw(text, 3) * 0,
    }
    return model, inputs, (0.4, 0.95)


def wan(tiny: bool, batch: int, draw: Callable[..., torch.Tensor]) -> tuple[Any, dict[str, Any], tuple[float, float]]:
    """Wan 2.1 1.3B, 81 frames of 480 × 832; range 40 to 95 %."""
    frames, height, width = (3, 8, 8) if tiny else (21, 60, 104)
    heads, layers, inner = (2, 4, 512) if tiny else (12, 30, 8960)
    model = WanTransformer3DModel(num_attention_heads=heads, num_layers=layers, ffn_dim=inner)
    inputs = {"hidden_states": draw(batch, 16, frames, height, width), "encoder_hidden_states": draw(batch, 512, 4096)}
    return model, inputs, (0.4, 0.95)


ARCHITECTURES: dict[str, Build] = {
    "PixArt-XL/2 1024": pixart,
    "DiT-XL/2 512": dit,
    "Latte 16 x 512": latte,
    "FLUX.1 1024": flux,
    "Wan-1.3B 480p": wan,
}


def main() -> None:
    """Prints a row per architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ARCHITECTURES, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="images of the batch with mixed schedules")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--tiny", action="store_true", help="a few blocks and tokens of each")
    options = parser.parse_args()
    table = Table("model", "images", "schedules", "plain, s", "MACs saved", "time saved", title="Random weights")
    console = Console()
    try:
        for name in options.only:
            for batch in sorted({1, options.batch}):
                for row in rows(name, batch, options):
                    table.add_row(*row)
    finally:
        console.print(table)  # what was measured before one that does not fit


def rows(name: str, batch: int, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Times one architecture at one batch size."""
    place = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    torch.manual_seed(0)
    model, inputs, reuse_range = ARCHITECTURES[name](options.tiny, batch, lambda *shape: torch.randn(*shape, **place))
    model = model.to(options.device).to(place["dtype"]).eval()
    loop = Loop(model, inputs, batch, options.steps)
    config = BlockDanceConfig(interval=2, reuse_range=reuse_range)
    plans: dict[str, Plan] = {"N = 2": config}
    if batch > 1:
        kind = config.kind(len(block_stack(model, find_layout(model))))
        reused = int(config.schedule(options.steps, 28).actions.sum())
        generator = torch.Generator().manual_seed(0)
        plans["one per image"] = random_schedule(batch, options.steps, reused, kind, generator, reuse_range)
    seconds: dict[str, list[float]] = {}
    results = compare(loop, plans, options.repeats, seconds)
    plain = sorted(seconds["plain"])[len(seconds["plain"]) // 2]
    return [
        (name, str(batch), plan, f"{plain:.2f}", f"{macs:.1%}", f"{1 - middle:.1%}")
        for plan, (macs, middle, _, _) in results.items()
    ]


if __name__ == "__main__":
    main()
