"""Stock diffusers pipelines of small random components: the denoising loop is theirs, results are latents.

Prompts are texts where the text encoders are T5 and CLIP, else embeddings; of those few pipelines make several images per prompt.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import Any

import torch
from conftest import build_tokenizer
from diffusers import (
    AuraFlowPipeline,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderOobleck,
    ChromaPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogView4Pipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    HunyuanDiTPipeline,
    HunyuanVideoPipeline,
    LattePipeline,
    LTXPipeline,
    Lumina2Pipeline,
    MochiPipeline,
    ModelMixin,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    SD3ControlNetModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    ZImagePipeline,
)
from families import FAMILIES
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import (
    CLIPPreTrainedModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from blockdance import find_layout
from blockdance.layouts import blocks_of

STEPS = 6
TEXT_WIDTH = 12
TEXT_TOKENS = 6
Arguments = dict[str, Any]

_FAMILIES = {family.name: family for family in FAMILIES}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pipeline and how to call it.

    Args:
        build: makes the pipeline.
        inputs: for a number of prompts, what the call takes beside steps and noise; guidance is on.
        calls: forward calls per step: 1 where the pipeline fuses the guidance branches, 2 where each has its own.
        copies: the call's argument for the number of images per prompt; None where there is none, or none that repeats embeddings.
    """

    build: Callable[[], DiffusionPipeline]
    inputs: Callable[[int], Arguments]
    calls: int = 1
    copies: str | None = "num_images_per_prompt"


def generate(
    case: Case,
    pipeline: DiffusionPipeline,
    prompts: int = 2,
    steps: int = STEPS,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Runs the pipeline on seeded noise; returns its images, one row each."""
    torch.manual_seed(2)
    images = prompts * options.get(str(case.copies), 1)
    generator = [torch.Generator().manual_seed(seed) for seed in (seeds or range(images))]
    arguments = {"num_inference_steps": steps, "return_dict": False} | case.inputs(prompts) | options
    return torch.as_tensor(pipeline(generator=generator, **arguments)[0])


@contextmanager
def reuse_by_hand(pipeline: DiffusionPipeline, boundary: int, actions: Sequence[int], first_step: int = 0) -> Iterator[None]:
    """BlockDance by other means, to compare with: at the steps that reuse, every block runs, but those up to the boundary give
    what they gave at the last computed step.

    Where guidance stops half-way, the conditional rows go on; where it starts, all rows compute.
    """
    layout = find_layout(pipeline.transformer)
    kept: dict[tuple[int, int], Any] = {}
    step, call = first_step, -1

    def count_call(*_: Any) -> None:
        nonlocal call
        call += 1

    def replace_output(position: int, output: Any) -> Any:
        # skip-layer guidance may leave the boundary out of a call, which then computes
        given = kept.get((call, position)) if actions[step] and (call, boundary) in kept else None
        half = slice(None)
        if given is not None:
            rows, rows_given = len(tree_leaves(output)[0]), len(tree_leaves(given)[0])
            half = slice(rows_given - rows, None) if layout.cond_last else slice(rows)
            given = given if rows <= rows_given else None
        kept[call, position] = output if given is None else tree_map_only(Tensor, lambda leaf: leaf[half], given)
        return kept[call, position]

    advance = pipeline.scheduler.step

    @wraps(advance)
    def count_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal step, call
        step, call = step + 1, -1
        return advance(*args, **kwargs)

    pipeline.scheduler.step = count_step
    hooks = [pipeline.transformer.register_forward_pre_hook(count_call)]
    for position, block in enumerate(blocks_of(pipeline.transformer, layout)[: boundary + 1]):
        hooks.append(block.register_forward_hook(lambda *call, position=position: replace_output(position, call[-1])))
    try:
        yield
    finally:
        del pipeline.scheduler.step
        for hook in hooks:
            hook.remove()


def transformer(name: str, **changes: Any) -> ModelMixin:
    """The small model of a transformer class that the conformance test uses; `changes` overrides its config."""
    family = _FAMILIES[name]
    return replace(family, config=dict(family.config) | changes).build()


def embeds(prompts: int, *, negative: bool = True, width: int = TEXT_WIDTH, name: str = "prompt_embeds") -> Arguments:
    """Random prompt embeddings `(prompts, tokens, width)`, the same for the same prompt in every batch."""
    return _pair(name, negative, lambda seed: _seeded(seed, TEXT_TOKENS, width), prompts)


def pooled(prompts: int, *, negative: bool = True, width: int = TEXT_WIDTH) -> Arguments:
    return _pair("pooled_prompt_embeds", negative, lambda seed: _seeded(seed + 50, width), prompts)


def masks(prompts: int, *, name: str = "prompt_attention_mask") -> Arguments:
    """Prompts of lengths of their own, padded at the end; the negative one is two tokens long."""

    def mask(seed: int) -> Tensor:
        return (torch.arange(TEXT_TOKENS) < (2 if seed >= 100 else TEXT_TOKENS - seed % 3)).long()

    return _pair(name, True, mask, prompts)


def _pair(name: str, negative: bool, make: Callable[[int], Tensor], prompts: int) -> Arguments:
    arguments = {name: torch.stack([make(prompt) for prompt in range(prompts)])}
    if negative:
        arguments[f"negative_{name}"] = torch.stack([make(100)] * prompts)
    return arguments


def _seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PROMPTS = ["a dog", "sun", "b", "cat"]


def prompts_in_words(prompts: int) -> Arguments:
    return {"prompt": PROMPTS[:prompts], "negative_prompt": ["bad"] * prompts, "max_sequence_length": TEXT_TOKENS}


def randomised(model: Any) -> Any:
    """Random parameters, so large that texts differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


@cache
def tokenizer() -> T5Tokenizer:
    letters = build_tokenizer()
    letters.model_max_length = TEXT_TOKENS
    return letters


@cache
def t5(width: int = TEXT_WIDTH) -> T5EncoderModel:
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(tokenizer()), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return randomised(T5EncoderModel(config))


@cache
def clip(model_class: type[CLIPPreTrainedModel], width: int) -> CLIPPreTrainedModel:
    """A text encoder whose hidden states and projection have this width."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()), hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS, projection_dim=width, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return randomised(model_class(config))


def vae(channels: int = 4) -> AutoencoderKL:
    """Makes images half as wide and high."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels, layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip


SQUARE: Arguments = {"height": 32, "width": 32, "output_type": "latent"}
VIDEO: Arguments = SQUARE | {"num_frames": 5}


def flow_solver() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def pixart_alpha() -> PixArtAlphaPipeline:
    """Of 1024 pixels, so that it is told size and aspect ratio."""
    model = transformer("PixArtTransformer2DModel", sample_size=128)
    return PixArtAlphaPipeline(None, None, None, model, DPMSolverMultistepScheduler())


def pixart_sigma() -> PixArtSigmaPipeline:
    plain = transformer("PixArtTransformer2DModel", use_additional_conditions=False)
    return PixArtSigmaPipeline(None, None, None, plain, DPMSolverMultistepScheduler())


def pixart_inputs(prompts: int) -> Arguments:
    text = embeds(prompts) | masks(prompts) | {"negative_prompt": None}
    return text | SQUARE | {"use_resolution_binning": False, "clean_caption": False}


def dit() -> DiTPipeline:
    return DiTPipeline(transformer("DiTTransformer2DModel"), vae(), DDIMScheduler())


def dit_inputs(prompts: int) -> Arguments:
    return {"class_labels": list(range(prompts)), "output_type": "np"}


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(transformer("SD3Transformer2DModel"), **stable_diffusion_3_parts())


def stable_diffusion_3_parts() -> Arguments:
    """All but the transformer; the two CLIPs are as wide as T5 when put side by side."""
    half = clip(CLIPTextModelWithProjection, TEXT_WIDTH // 2)
    clips = {"text_encoder": half, "text_encoder_2": half, "text_encoder_3": t5()}
    tokenizers = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), tokenizer())
    return clips | tokenizers | {"vae": vae(), "scheduler": FlowMatchEulerDiscreteScheduler()}


def stable_diffusion_3_inputs(prompts: int) -> Arguments:
    return prompts_in_words(prompts) | {"height": 16, "width": 16, "output_type": "latent"}


def flux() -> FluxPipeline:
    return FluxPipeline(transformer=transformer("FluxTransformer2DModel"), **flux_parts())


def flux_parts() -> Arguments:
    """All but the transformer; the VAE's four channels are packed into sixteen."""
    encoders = {"text_encoder": clip(CLIPTextModel, TEXT_WIDTH), "text_encoder_2": t5()}
    return encoders | {
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "vae": vae(1),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def flux_inputs(prompts: int) -> Arguments:
    """With a negative prompt, which is a call of its own."""
    return prompts_in_words(prompts) | {"height": 16, "width": 16, "output_type": "latent", "true_cfg_scale": 2.0}


def stable_diffusion_3_from_image() -> StableDiffusion3Img2ImgPipeline:
    return StableDiffusion3Img2ImgPipeline(transformer("SD3Transformer2DModel"), **stable_diffusion_3_parts())


def flux_from_image() -> FluxImg2ImgPipeline:
    return FluxImg2ImgPipeline(transformer=transformer("FluxTransformer2DModel"), **flux_parts())


def image(prompts: int) -> Arguments:
    return {"image": torch.stack([_seeded(prompt, 3, 16, 16).sigmoid() for prompt in range(prompts)])}


def flux2() -> Flux2Pipeline:
    return Flux2Pipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer("Flux2Transformer2DModel"))


def flux2_inputs(prompts: int) -> Arguments:
    return embeds(prompts, negative=False) | SQUARE


def flux2_klein() -> Flux2KleinPipeline:
    """Its VAE's running statistics are read even where latents are wanted."""
    torch.manual_seed(0)
    decoder = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=1, layers_per_block=1, norm_num_groups=4, sample_size=32,
    ).eval()  # fmt: skip
    model = transformer("Flux2Transformer2DModel", guidance_embeds=False)
    return Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), decoder, None, None, model)


def flux2_klein_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | SQUARE


def chroma() -> ChromaPipeline:
    return ChromaPipeline(FlowMatchEulerDiscreteScheduler(), None, t5(), tokenizer(), transformer("ChromaTransformer2DModel"))


def chroma_inputs(prompts: int) -> Arguments:
    return prompts_in_words(prompts) | SQUARE


def aura_flow() -> AuraFlowPipeline:
    model = transformer("AuraFlowTransformer2DModel")
    return AuraFlowPipeline(None, None, None, model, FlowMatchEulerDiscreteScheduler())


def aura_flow_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | masks(prompts) | SQUARE


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer("QwenImageTransformer2DModel"))


def qwen_image_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | masks(prompts, name="prompt_embeds_mask") | SQUARE | {"true_cfg_scale": 2.0}


def hunyuan_dit() -> HunyuanDiTPipeline:
    model = transformer("HunyuanDiT2DModel")
    return HunyuanDiTPipeline(None, None, None, model, DDPMScheduler(), None, None, requires_safety_checker=False)


def hunyuan_dit_inputs(prompts: int) -> Arguments:
    """Two text encoders, of six and five tokens."""
    first = embeds(prompts) | masks(prompts)
    second = embeds(prompts, name="prompt_embeds_2", width=16) | masks(prompts, name="prompt_attention_mask_2")
    return first | {name: tensor[:, :5] for name, tensor in second.items()} | SQUARE | {"use_resolution_binning": False}


def sana() -> SanaPipeline:
    return SanaPipeline(None, None, None, transformer("SanaTransformer2DModel"), flow_solver())


def sana_inputs(prompts: int) -> Arguments:
    text = embeds(prompts) | masks(prompts) | {"negative_prompt": None}
    return text | SQUARE | {"height": 128, "width": 128, "use_resolution_binning": False}


def lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(transformer("Lumina2Transformer2DModel"), FlowMatchEulerDiscreteScheduler(), None, None, None)


def lumina2_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | masks(prompts) | SQUARE


def z_image() -> ZImagePipeline:
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer("ZImageTransformer2DModel"))


def z_image_inputs(prompts: int) -> Arguments:
    """Embeddings as lists: each prompt has its own length."""
    text = {name: list(tensor) for name, tensor in embeds(prompts).items()}
    text["prompt_embeds"] = [tensor[: len(tensor) - index] for index, tensor in enumerate(text["prompt_embeds"])]
    return text | SQUARE


def cogview4() -> CogView4Pipeline:
    return CogView4Pipeline(None, None, None, transformer("CogView4Transformer2DModel"), FlowMatchEulerDiscreteScheduler())


def cogview4_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | SQUARE


def latte() -> LattePipeline:
    return LattePipeline(None, None, None, transformer("LatteTransformer3DModel", out_channels=8), DDIMScheduler())


def latte_inputs(prompts: int) -> Arguments:
    text = embeds(prompts) | {"negative_prompt": None, "clean_caption": False}
    return text | {"height": 32, "width": 32, "video_length": 2, "output_type": "latents"}


def cogvideox() -> CogVideoXPipeline:
    """With the settings of the published model: its first step is noise alone, ᾱ = 0."""
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=1.0
    )
    return CogVideoXPipeline(tokenizer(), t5(), None, transformer("CogVideoXTransformer3DModel"), scheduler)


def wan() -> WanPipeline:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer(), t5(), None, scheduler, transformer("WanTransformer3DModel"))


def wan_of_two() -> WanPipeline:
    """Wan 2.2: one transformer for the noisy steps, another for the rest."""
    pipeline = wan()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.register_modules(transformer_2=copy.deepcopy(pipeline.transformer))
    pipeline.register_to_config(boundary_ratio=0.8)
    pipeline.transformer_2.load_state_dict({name: 0.9 * tensor for name, tensor in pipeline.transformer.state_dict().items()})
    return pipeline


def video_inputs(prompts: int) -> Arguments:
    return prompts_in_words(prompts) | VIDEO


def ltx() -> LTXPipeline:
    return LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, t5(), tokenizer(), transformer("LTXVideoTransformer3DModel"))


def ltx_inputs(prompts: int) -> Arguments:
    return prompts_in_words(prompts) | {"height": 64, "width": 64, "num_frames": 9, "output_type": "latent"}


def hunyuan_video() -> HunyuanVideoPipeline:
    model = transformer("HunyuanVideoTransformer3DModel")
    return HunyuanVideoPipeline(None, None, model, None, FlowMatchEulerDiscreteScheduler(), None, None)


def hunyuan_video_inputs(prompts: int) -> Arguments:
    return embeds(prompts) | pooled(prompts, width=10) | masks(prompts) | VIDEO | {"true_cfg_scale": 2.0}


def mochi() -> MochiPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return MochiPipeline(scheduler, None, t5(width=16), tokenizer(), transformer("MochiTransformer3DModel"))


def mochi_inputs(prompts: int) -> Arguments:
    return prompts_in_words(prompts) | SQUARE | {"num_frames": 7}


def stable_audio() -> StableAudioPipeline:
    torch.manual_seed(0)
    decoder = AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[1, 2], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=4, audio_channels=1, sampling_rate=4,
    )  # fmt: skip
    conditions = StableAudioProjectionModel(TEXT_WIDTH, TEXT_WIDTH, 0, 8)
    model = transformer("StableAudioDiTModel", sample_size=8, global_states_input_dim=2 * TEXT_WIDTH)
    return StableAudioPipeline(decoder, None, conditions, None, model, EDMDPMSolverMultistepScheduler())


def stable_audio_inputs(prompts: int) -> Arguments:
    mask = {"attention_mask": masks(prompts)["prompt_attention_mask"]}
    return embeds(prompts, negative=False) | mask | {"audio_end_in_s": 4.0, "output_type": "latent"}


CASES = {
    "aura_flow": Case(build=aura_flow, inputs=aura_flow_inputs),
    "chroma": Case(build=chroma, inputs=chroma_inputs, calls=2),
    "cogvideox": Case(build=cogvideox, inputs=video_inputs, copies=None),
    "cogview4": Case(build=cogview4, inputs=cogview4_inputs, calls=2, copies=None),
    "dit": Case(build=dit, inputs=dit_inputs, copies=None),
    "flux": Case(build=flux, inputs=flux_inputs, calls=2),
    "flux2": Case(build=flux2, inputs=flux2_inputs),
    "flux2_klein": Case(build=flux2_klein, inputs=flux2_klein_inputs, calls=2),
    "hunyuan_dit": Case(build=hunyuan_dit, inputs=hunyuan_dit_inputs, copies=None),
    "hunyuan_video": Case(build=hunyuan_video, inputs=hunyuan_video_inputs, calls=2, copies=None),
    "latte": Case(build=latte, inputs=latte_inputs),
    "ltx": Case(build=ltx, inputs=ltx_inputs, copies="num_videos_per_prompt"),
    "lumina2": Case(build=lumina2, inputs=lumina2_inputs, calls=2, copies=None),
    "mochi": Case(build=mochi, inputs=mochi_inputs, copies="num_videos_per_prompt"),
    "pixart_alpha": Case(build=pixart_alpha, inputs=pixart_inputs),
    "pixart_sigma": Case(build=pixart_sigma, inputs=pixart_inputs),
    "qwen_image": Case(build=qwen_image, inputs=qwen_image_inputs, calls=2),
    "sana": Case(build=sana, inputs=sana_inputs),
    "stable_audio": Case(build=stable_audio, inputs=stable_audio_inputs, copies="num_waveforms_per_prompt"),
    "stable_diffusion_3": Case(build=stable_diffusion_3, inputs=stable_diffusion_3_inputs),
    "wan": Case(build=wan, inputs=video_inputs, calls=2, copies="num_videos_per_prompt"),
    "z_image": Case(build=z_image, inputs=z_image_inputs),
}

FROM_IMAGE = {
    "flux": Case(build=flux_from_image, inputs=lambda prompts: flux_inputs(prompts) | image(prompts), calls=2),
    "stable_diffusion_3": Case(
        build=stable_diffusion_3_from_image, inputs=lambda prompts: stable_diffusion_3_inputs(prompts) | image(prompts)
    ),
}


def flux_controlnet() -> FluxControlNetPipeline:
    """Residuals after every block of both lists; the ControlNet has one block of each kind."""
    torch.manual_seed(3)
    model = transformer("FluxTransformer2DModel")
    control = FluxControlNetModel.from_transformer(
        model,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        load_weights_from_transformer=False,
    )
    return FluxControlNetPipeline(transformer=model, controlnet=randomised(control), **flux_parts())


def stable_diffusion_3_controlnet() -> StableDiffusion3ControlNetPipeline:
    torch.manual_seed(3)
    model = transformer("SD3Transformer2DModel")
    control = SD3ControlNetModel.from_transformer(
        model, num_layers=2, num_extra_conditioning_channels=0, load_weights_from_transformer=False
    )
    return StableDiffusion3ControlNetPipeline(transformer=model, controlnet=randomised(control), **stable_diffusion_3_parts())


def control_image(prompts: int) -> Arguments:
    return {"control_image": image(prompts)["image"], "controlnet_conditioning_scale": 0.7}


CONTROLNETS = {
    "flux": Case(build=flux_controlnet, inputs=lambda prompts: flux_inputs(prompts) | control_image(prompts)),
    "stable_diffusion_3": Case(
        build=stable_diffusion_3_controlnet,
        inputs=lambda prompts: stable_diffusion_3_inputs(prompts) | control_image(prompts),
    ),
}
