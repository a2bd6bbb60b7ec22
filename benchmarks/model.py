"""The transformer that the runtime's benchmarks run: the embedded model's, or one of any size with random weights."""

import argparse
import time
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

from ada.rollouts import EMBEDDED


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose the transformer and the loop."""
    parser.add_argument("--model", default=EMBEDDED, help="folder of a PixArt pipeline; 'random' for random weights")
    parser.add_argument("--blocks", type=int, default=28, help="blocks of the random model")
    parser.add_argument("--heads", type=int, default=16, help="attention heads of 72 channels of the random model")
    parser.add_argument("--size", type=int, default=32, help="latent pixels along a side of the random model")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")


def add_timing_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of what is timed."""
    parser.add_argument(
        "--repeats", type=int, default=15, help="rounds that are timed; 0 for none, where a benchmark counts as well"
    )
    parser.add_argument(
        "--cpu-time", dest="clock", action="store_const", const=time.process_time, default=time.perf_counter,
        help="count processor time, on a machine that others use as well",
    )  # fmt: skip


class Loop:
    """A denoising loop without its scheduler's arithmetic: the transformer's calls of one generation, and nothing else.

    Args:
        transformer: the model.
        inputs: its inputs but the timestep.
        rows: how many timesteps a call takes.
        num_steps: denoising steps.
    """

    def __init__(self, transformer: Any, inputs: dict[str, Any], rows: int, num_steps: int) -> None:
        self.transformer = transformer
        self.scheduler = SimpleNamespace(timesteps=torch.empty(0), step_index=0)
        self.num_steps = num_steps
        self.inputs, self._rows = inputs, rows

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """Runs every step; returns the last output."""
        timesteps = torch.linspace(999, 1, self.num_steps, device=self.transformer.device)
        self.scheduler.timesteps = timesteps
        for step in range(self.num_steps):
            self.scheduler.step_index = step
            rows = timesteps[step].expand(self._rows)
            # a pipeline's latents are others at every step, and all else stays
            inputs = self.inputs | {"hidden_states": self.inputs["hidden_states"].clone()}
            output: torch.Tensor = self.transformer(**inputs, timestep=rows, return_dict=False)[0]
        return output


def pixart_loop(options: argparse.Namespace, batch: int) -> Loop:
    """The loop of the chosen PixArt transformer."""
    transformer = load_transformer(options)
    config, tokens = transformer.config, 120
    place = {"device": options.device, "dtype": transformer.dtype}
    inputs = {
        "hidden_states": torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, **place),
        "encoder_hidden_states": torch.randn(batch, tokens, config.caption_channels, **place),
        "encoder_attention_mask": torch.ones(batch, tokens, **place),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Loop(transformer, inputs, batch, options.steps)


def load_transformer(options: argparse.Namespace) -> Any:
    """The transformer in the chosen precision, on the chosen device."""
    dtype = getattr(torch, options.dtype)
    if options.model != "random":
        transformer = PixArtTransformer2DModel.from_pretrained(options.model, subfolder="transformer", torch_dtype=dtype)
    else:
        transformer = PixArtTransformer2DModel(
            num_layers=options.blocks,
            num_attention_heads=options.heads,
            attention_head_dim=72,
            cross_attention_dim=72 * options.heads,
            caption_channels=128,
            sample_size=options.size,
            use_additional_conditions=False,
        ).to(dtype)
    return transformer.eval().to(options.device)
