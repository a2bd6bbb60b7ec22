"""Loads and freezes a diffusers pipeline, and drives it step by step: encode, start, advance, decode."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.utils._pytree import tree_map

from ada.types import Conditioning, PolicyState, Snapshot
from blockdance import ForwardCost, Reuse, ReuseExecutor, ReuseState, count_macs, find_layout
from blockdance.steps import noise_levels

Dtype = Literal["float32", "bfloat16", "float16"]


class PipelineAdapter(Protocol):
    """What differs between pipeline families."""

    num_branches: int

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encodes prompts and the empty prompt."""

    def inputs(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The transformer's inputs for one step, guidance branches fused into the batch."""

    def guide(self, output: Tensor) -> Tensor:
        """The transformer's output for all branches as the scheduler's model output."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents to images `(images, 3, height, width)` in [0, 1]."""


class PixArtAdapter:
    """PixArt-α and PixArt-Σ: rows `[uncond, cond]`, a mask over the prompt's tokens, learned sigma dropped."""

    num_branches = 2

    def __init__(self, pipeline: Any, guidance_scale: float, max_sequence_length: int) -> None:
        self._pipeline = pipeline
        self._guidance_scale = guidance_scale
        self._max_sequence_length = max_sequence_length

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        embeds, mask, negative_embeds, negative_mask = self._pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=True, max_sequence_length=self._max_sequence_length
        )
        return Conditioning(embeds, mask, negative_embeds, negative_mask)

    def inputs(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        rows = torch.cat([latents, latents])
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self._pipeline.transformer.use_additional_conditions:
            factor = self._pipeline.vae_scale_factor
            height, width = latents.shape[-2] * factor, latents.shape[-1] * factor
            sizes = {
                "resolution": torch.tensor([height, width]).to(rows).repeat(len(rows), 1),
                "aspect_ratio": torch.tensor([height / width]).to(rows).repeat(len(rows), 1),
            }
        return {
            "hidden_states": rows,
            "encoder_hidden_states": torch.cat([conditioning.negative_embeds, conditioning.prompt_embeds]),
            "encoder_attention_mask": torch.cat([conditioning.negative_mask, conditioning.prompt_mask]),
            "timestep": timestep.expand(len(rows)),
            "added_cond_kwargs": sizes,
            "return_dict": False,
        }

    def guide(self, output: Tensor) -> Tensor:
        unconditional, conditional = output.chunk(2)
        guided = unconditional + self._guidance_scale * (conditional - unconditional)
        config = self._pipeline.transformer.config
        has_sigma = config.out_channels // 2 == config.in_channels
        return guided.chunk(2, dim=1)[0] if has_sigma else guided

    def decode(self, latents: Tensor) -> Tensor:
        vae = self._pipeline.vae
        images: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)


ADAPTERS = {PixArtAlphaPipeline: PixArtAdapter, PixArtSigmaPipeline: PixArtAdapter}


class Backbone:
    """A frozen text-to-image pipeline, driven one denoising step at a time. It is no `nn.Module`, so that neither checkpoints nor
    distributed training see its parameters.

    Args:
        model: folder or Hub id of a diffusers pipeline.
        num_inference_steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        max_sequence_length: tokens that prompts are padded to.
        dtype: precision of everything frozen.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
        ValueError: the pipeline's family has no adapter.
    """

    def __init__(
        self,
        model: str = "checkpoints/emoji-dit",
        num_inference_steps: int = 20,
        guidance_scale: float = 4.5,
        max_sequence_length: int = 120,
        dtype: Dtype = "float32",
    ) -> None:
        self.model = model
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.max_sequence_length = max_sequence_length
        self.pipeline = _load(model, getattr(torch, dtype))
        adapters = [adapter for family, adapter in ADAPTERS.items() if isinstance(self.pipeline, family)]
        if not adapters:
            raise ValueError(
                f"No adapter for {type(self.pipeline).__name__}: training drives {', '.join(f.__name__ for f in ADAPTERS)}. "
                "Add one to `ada.backbone.ADAPTERS`."
            )
        self.adapter: PipelineAdapter = adapters[0](self.pipeline, guidance_scale, max_sequence_length)
        self.layout = find_layout(self.pipeline.transformer)

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return torch.device(self.transformer.device)

    def to(self, device: torch.device | str) -> "Backbone":
        """Moves the pipeline."""
        self.pipeline.to(device)
        return self

    def start(self, prompts: Sequence[str], seeds: Sequence[int], executor: ReuseExecutor) -> Snapshot:
        """The state before the first step; each image's noise depends on its seed alone.

        Args:
            prompts: one per image.
            seeds: one per image.
            executor: the executor that will run the steps.
        """
        config = self.transformer.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(self.num_inference_steps, device=self.device)
        latents = noise.to(self.device, self.transformer.dtype) * scheduler.init_noise_sigma
        state = executor.new_state(len(prompts), self.adapter.num_branches)
        return Snapshot(latents, scheduler, state, self.adapter.encode(prompts), 0)

    def advance(self, snapshot: Snapshot, actions: Sequence[int], executor: ReuseExecutor) -> Snapshot:
        """Takes one denoising step; `actions` are one per image. The snapshot itself is used up."""
        scheduler = snapshot.scheduler
        timestep = scheduler.timesteps[snapshot.step]
        latents = scheduler.scale_model_input(snapshot.latents, timestep)
        inputs = self.adapter.inputs(latents, timestep[None], snapshot.conditioning)
        sigma = self.sigmas(scheduler)[snapshot.step]
        output = executor.run(self.transformer, (), inputs, snapshot.reuse, actions, sigma)[0]
        latents = scheduler.step(self.adapter.guide(output), timestep, snapshot.latents, return_dict=False)[0]
        return Snapshot(latents, scheduler, snapshot.reuse, snapshot.conditioning, snapshot.step + 1)

    def observe(self, snapshot: Snapshot, latents: Tensor, boundary: int) -> PolicyState:
        """What a policy sees after step ρ.

        Args:
            snapshot: the state after step ρ.
            latents: the latents before step ρ, as the model saw them.
            boundary: the boundary whose output it sees.
        """
        images = snapshot.reuse.num_images
        first = images * (self.adapter.num_branches - 1) if self.layout.cond_last else 0
        features, change = snapshot.reuse.caches[boundary].newest_and_change(
            self.layout.image_index, list(range(first, first + images))
        )
        return PolicyState(
            latents=latents,
            prompt_embeds=snapshot.conditioning.prompt_embeds,
            prompt_mask=snapshot.conditioning.prompt_mask,
            features=features,
            feature_change=change,
            sigmas=torch.tensor(self.sigmas(snapshot.scheduler), device=latents.device),
            decision_step=snapshot.step - 1,
            num_steps=self.num_inference_steps,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(images, 3, height, width)` in [0, 1]."""
        return self.adapter.decode(latents)

    def sigmas(self, scheduler: Any) -> list[float]:
        """Noise level of every step."""
        return noise_levels(scheduler, torch.as_tensor(scheduler.timesteps).float().tolist())

    def cost(self) -> ForwardCost:
        """MACs of one denoising step of one image, guidance branches together."""
        executor = ReuseExecutor(self.transformer, self.layout, ())
        with torch.no_grad():
            start = self.start([""], [0], executor)
        inputs = self.adapter.inputs(start.latents, start.scheduler.timesteps[:1], start.conditioning)
        return count_macs(self.transformer, self.layout, (), inputs)

    def feature_width(self) -> int:
        """Channels of a block's output."""
        config = self.transformer.config
        return int(config["num_attention_heads"] * config["attention_head_dim"])

    def action_costs(self, kinds: Sequence[Reuse]) -> list[float]:
        """Cost of one step under every action, relative to compute."""
        costs = self.cost().per_action(kinds)
        return (costs / costs[0]).tolist()


def take(snapshot: Snapshot, images: Sequence[int]) -> Snapshot:
    """The given images of a snapshot, which may repeat; the copy continues on its own."""
    count = len(snapshot.latents)

    def select(leaf: Any) -> Any:
        is_history = isinstance(leaf, Tensor) and leaf.shape == snapshot.latents.shape
        return leaf[list(images)] if is_history else leaf

    scheduler = copy.copy(snapshot.scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | Tensor):
            setattr(scheduler, name, tree_map(select, value))
    if list(images) == list(range(count)):
        return Snapshot(snapshot.latents, scheduler, snapshot.reuse.take(images), snapshot.conditioning, snapshot.step)
    return Snapshot(
        snapshot.latents[list(images)],
        scheduler,
        snapshot.reuse.take(images),
        snapshot.conditioning.take(images),
        snapshot.step,
    )


def cat(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Several snapshots of the same step as one batch."""
    first = snapshots[0]
    scheduler = copy.copy(first.scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | Tensor):
            values = [getattr(snapshot.scheduler, name) for snapshot in snapshots]
            setattr(scheduler, name, tree_map(lambda *leaves: _cat_history(leaves, snapshots), *values))
    return Snapshot(
        torch.cat([snapshot.latents for snapshot in snapshots]),
        scheduler,
        ReuseState.cat([snapshot.reuse for snapshot in snapshots]),
        Conditioning.cat([snapshot.conditioning for snapshot in snapshots]),
        first.step,
    )


def _cat_history(leaves: Sequence[Any], snapshots: Sequence[Snapshot]) -> Any:
    is_history = isinstance(leaves[0], Tensor) and leaves[0].shape == snapshots[0].latents.shape
    return torch.cat(list(leaves)) if is_history else leaves[0]


def _load(model: str, dtype: torch.dtype) -> Any:
    folder = Path(model)
    if not (folder / "model_index.json").is_file() and (folder.exists() or model.startswith((".", "/", "checkpoints/"))):
        raise FileNotFoundError(
            f"No diffusers pipeline in {folder} (it has no model_index.json). Give the folder of a saved pipeline or a Hub id; the "
            "embedded model is checkpoints/emoji-dit, and paths are relative to the folder you run in."
        )
    diffusers_logging.disable_progress_bar()
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipeline
