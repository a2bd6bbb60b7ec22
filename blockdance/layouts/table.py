"""The block layout of every diffusion transformer class in diffusers."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from blockdance.layouts.layout import SHARED_ARGUMENTS, BlockLayout, Inputs, block_list, never


def _hunyuan_dit_skips(transformer: nn.Module) -> Mapping[int, tuple[int, ...]]:
    """The second half reads the first half's outputs in reverse: block n/2 + 1 + k reads block n/2 − 2 − k."""
    blocks = len(block_list(transformer, "blocks"))
    middle = blocks // 2
    return {reader: (2 * middle - 1 - reader,) for reader in range(middle + 1, blocks) if 2 * middle - 1 - reader >= 0}


def _without(*arguments: str) -> Callable[[Inputs], bool]:
    """Unless one of these is given: an object that holds keys and values of the whole batch, or what works between blocks."""
    return lambda inputs: all(inputs.get(argument) is None for argument in arguments)


def _reads_cache(*writing_modes: str) -> Callable[[Inputs], bool]:
    """A call that fills a key-value cache must run every block and is no denoising step."""
    return lambda inputs: inputs.get("kv_cache_mode") not in writing_modes


def _far_step(inputs: Inputs) -> bool:
    return not (inputs.get("kv_cache_flag") or {}).get("is_cache_step")


def _glm_step(inputs: Inputs) -> bool:
    caches = inputs.get("kv_caches")
    return caches is None or caches[0].mode != "write"


_BLOCKS = BlockLayout(("blocks",))
_LAYERS = BlockLayout(("layers",))
_ONE_LIST = BlockLayout(("transformer_blocks",))
_TWO_LISTS = BlockLayout(("transformer_blocks", "single_transformer_blocks"))
_VISUAL_LIST = BlockLayout(("visual_transformer_blocks",))
_IMAGE_TEXT = ("hidden_states", "encoder_hidden_states")
_TEXT_IMAGE = ("encoder_hidden_states", "hidden_states")

_IMAGE_TEXT_LIST = replace(_ONE_LIST, streams=_IMAGE_TEXT)
_TEXT_IMAGE_LIST = replace(_ONE_LIST, streams=_TEXT_IMAGE)
_FLUX = replace(_TWO_LISTS, streams=_TEXT_IMAGE)
_HUNYUAN_VIDEO = replace(_TWO_LISTS, streams=_IMAGE_TEXT)

_REFINERS = "Refiner blocks before the stack always run."
_WHOLE = "Images of a batch that take different actions all compute: "
_KEY_VALUES = (
    "Calls that fill a key-value cache run whole; with such a cache, images of a batch that take different actions all compute."
)

LAYOUTS: dict[str, BlockLayout] = {
    "AceStepTransformer1DModel": replace(_LAYERS, cond_last=False),
    "AllegroTransformer3DModel": _ONE_LIST,
    "AnyFlowFARTransformer3DModel": replace(_BLOCKS, is_step=_far_step, splits_rows=_without("kv_cache"), note=_KEY_VALUES),
    "AnyFlowTransformer3DModel": _BLOCKS,
    "AuraFlowTransformer2DModel": BlockLayout(("joint_transformer_blocks", "single_transformer_blocks"), streams=_TEXT_IMAGE),
    "BriaFibo2Transformer2DModel": replace(
        _LAYERS, splits_rows=never, note=f"{_REFINERS} {_WHOLE}caption lengths shift the tokens of the others."
    ),
    "BriaFiboTransformer2DModel": _FLUX,
    "BriaTransformer2DModel": replace(_FLUX, changes_outputs=True),
    "ChromaTransformer2DModel": replace(_FLUX, changes_outputs=True),
    "ChronoEditTransformer3DModel": _BLOCKS,
    "CogVideoXTransformer3DModel": _IMAGE_TEXT_LIST,
    "CogView3PlusTransformer2DModel": _IMAGE_TEXT_LIST,
    "CogView4Transformer2DModel": _IMAGE_TEXT_LIST,
    "ConsisIDTransformer3DModel": replace(_IMAGE_TEXT_LIST, note="The face cross-attention between blocks always runs."),
    "Cosmos3OmniTransformer": replace(
        _LAYERS,
        streams=("und_seq", "gen_seq"),
        image_stream="gen_seq",
        latents="vision_tokens",
        timestep="vision_timesteps",
        one_image=True,
        note="One image or video per call.",
    ),
    "CosmosTransformer3DModel": _ONE_LIST,
    "DiTTransformer2DModel": replace(_ONE_LIST, cond_last=False),
    "EasyAnimateTransformer3DModel": _IMAGE_TEXT_LIST,
    "ErnieImageTransformer2DModel": replace(_LAYERS, batch_dim=1),
    "Flux2Transformer2DModel": replace(
        _FLUX, is_step=_reads_cache("extract"), splits_rows=_without("kv_cache"), note=_KEY_VALUES
    ),
    "Flux3Transformer2DModel": BlockLayout(
        ("mode_blocks.image", "single_transformer_blocks"),
        streams=_TEXT_IMAGE,
        shared_arguments=SHARED_ARGUMENTS | {"image_cond_ids"},
        note="Text and condition blocks before the joint ones always run.",
    ),
    "FluxTransformer2DModel": _FLUX,
    "GlmImageTransformer2DModel": replace(
        _IMAGE_TEXT_LIST, is_step=_glm_step, splits_rows=_without("kv_caches"), note=_KEY_VALUES
    ),
    "HeliosTransformer3DModel": _BLOCKS,
    "HiDreamImageTransformer2DModel": BlockLayout(
        ("double_stream_blocks", "single_stream_blocks"),
        streams=_IMAGE_TEXT,
        timestep="timesteps",
        batch_dims={"encoder_hidden_states_llama3": 1},
    ),
    "HunyuanDiT2DModel": replace(
        _BLOCKS, long_skips=_hunyuan_dit_skips, note="Outputs that long skips read after the boundary are cached too."
    ),
    "HunyuanImageTransformer2DModel": _HUNYUAN_VIDEO,
    "HunyuanVideo15Transformer3DModel": _IMAGE_TEXT_LIST,
    "HunyuanVideoFramepackTransformer3DModel": replace(
        _HUNYUAN_VIDEO,
        splits_rows=never,
        note=f"{_WHOLE}the model crops the prompt of a single video, but pads those of a batch.",
    ),
    "HunyuanVideoTransformer3DModel": _HUNYUAN_VIDEO,
    "Ideogram4Transformer2DModel": replace(_LAYERS, timestep_rises=True),
    "JoyImageEditPlusTransformer3DModel": BlockLayout(
        ("double_blocks",), streams=_IMAGE_TEXT, image_lists=frozenset({"shape_list"})
    ),
    "JoyImageEditTransformer3DModel": BlockLayout(("double_blocks",), streams=_IMAGE_TEXT),
    "Kandinsky5Transformer3DModel": replace(_VISUAL_LIST, note="Text blocks always run."),
    "Kandinsky6SRTransformer3DModel": _VISUAL_LIST,
    "Kandinsky6Transformer3DModel": replace(
        _VISUAL_LIST, streams=("vis", "aud"), image_stream="vis", note="Text blocks always run."
    ),
    "Krea2Transformer2DModel": replace(_ONE_LIST, shared_arguments=SHARED_ARGUMENTS | {"position_ids"}),
    "LTX2VideoTransformer3DModel": replace(_ONE_LIST, streams=("hidden_states", "audio_hidden_states")),
    "LTXVideoTransformer3DModel": _ONE_LIST,
    "LatteTransformer3DModel": BlockLayout(("transformer_blocks", "temporal_transformer_blocks"), interleaved=True),
    "LongCatAudioDiTTransformer": _BLOCKS,
    "LongCatImageTransformer2DModel": _FLUX,
    "Lumina2Transformer2DModel": replace(_LAYERS, timestep_rises=True, pads_to_longest=True, note=_REFINERS),
    "LuminaNextDiT2DModel": replace(_LAYERS, timestep_rises=True, cond_last=False),
    "MiniMaxH3Transformer3DModel": replace(_ONE_LIST, one_image=True, note="One video per call."),
    "MiniMaxMusic3Transformer1DModel": _ONE_LIST,
    "MochiTransformer3DModel": _IMAGE_TEXT_LIST,
    "MotifVideoTransformer3DModel": _HUNYUAN_VIDEO,
    "NucleusMoEImageTransformer2DModel": _ONE_LIST,
    "OmniGenTransformer2DModel": replace(
        _LAYERS,
        cond_last=False,
        splits_rows=never,
        note=f"{_WHOLE}the model applies the first row's positions to all.",
    ),
    "OvisImageTransformer2DModel": _FLUX,
    "PRXTransformer2DModel": _BLOCKS,
    "PixArtTransformer2DModel": _ONE_LIST,
    "PriorTransformer": _ONE_LIST,
    "QwenImage21Transformer2DModel": replace(
        _ONE_LIST, is_step=_reads_cache("extract"), splits_rows=_without("kv_cache"), note=_KEY_VALUES
    ),
    "QwenImageTransformer2DModel": replace(_TEXT_IMAGE_LIST, image_lists=frozenset({"img_shapes"})),
    "SD3Transformer2DModel": _TEXT_IMAGE_LIST,
    "SanaTransformer2DModel": _ONE_LIST,
    "SanaVideoTransformer3DModel": _ONE_LIST,
    "SanaWMLTX2RefinerTransformer3DModel": replace(
        _ONE_LIST,
        is_step=_reads_cache("capture_pre_rope", "inject_and_capture_post_rope"),
        splits_rows=_without("kv_cache"),
        note=_KEY_VALUES,
    ),
    "SanaWMTransformer3DModel": replace(_BLOCKS, shared_arguments=SHARED_ARGUMENTS | {"cam_pos_embeds"}),
    "SkyReelsV2Transformer3DModel": _BLOCKS,
    "StableAudio3DiTModel": _ONE_LIST,
    "StableAudioDiTModel": _ONE_LIST,
    "T5FilmDecoder": BlockLayout(
        ("decoders",), streams=("hidden_states",), latents="decoder_input_tokens", timestep="decoder_noise_time"
    ),
    "Transformer2DModel": _ONE_LIST,
    "WanAnimate2Transformer3DModel": replace(
        _BLOCKS,
        is_step=_reads_cache("extract"),
        one_image=True,
        note="One video per call. Unconditional calls leave block 9 out; with that boundary they all compute.",
    ),
    "WanAnimateTransformer3DModel": replace(_BLOCKS, note="The face adapters between blocks always run."),
    "WanTransformer3DModel": _BLOCKS,
    "WanVACETransformer3DModel": replace(_BLOCKS, note="The control blocks before the stack always run."),
    "ZImageTransformer2DModel": replace(
        _LAYERS,
        latents="x",
        timestep="t",
        timestep_rises=True,
        cond_last=False,
        image_lists=frozenset({"x", "cap_feats", "siglip_feats", "image_noise_mask"}),
        pads_to_longest=True,
        note=_REFINERS,
    ),
}

_BETWEEN_BLOCKS = (
    "block_controlnet_hidden_states", "controlnet_block_samples", "controlnet_single_block_samples", "image_cond_hidden_states",
    "kv_cache", "kv_caches", "perturbation_mask", "skip_layers", "sparse_params",
)  # fmt: skip
_JOINING = (
    "AceStepTransformer1DModel",
    "AllegroTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "ChronoEditTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "CogView3PlusTransformer2DModel",
    "CogView4Transformer2DModel",
    "CosmosTransformer3DModel",
    "DiTTransformer2DModel",
    "EasyAnimateTransformer3DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "GlmImageTransformer2DModel",
    "HeliosTransformer3DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6Transformer3DModel",
    "Krea2Transformer2DModel",
    "LTX2VideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "LongCatAudioDiTTransformer",
    "LongCatImageTransformer2DModel",
    "LuminaNextDiT2DModel",
    "MiniMaxMusic3Transformer1DModel",
    "MochiTransformer3DModel",
    "OvisImageTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SanaVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "StableAudio3DiTModel",
    "StableAudioDiTModel",
    "WanTransformer3DModel",
)
"""Classes whose rows may join one another between two blocks, unless something is added there (a ControlNet's residuals, condition tokens),
blocks are left out or perturbed, or they share a key-value cache."""
LAYOUTS |= {name: replace(LAYOUTS[name], joins_rows=_without(*_BETWEEN_BLOCKS)) for name in _JOINING}

_SHARED_BY_BLOCKS: dict[str, frozenset[str]] = {
    "AceStepTransformer1DModel": SHARED_ARGUMENTS | {"position_embeddings"},
    "HunyuanVideo15Transformer3DModel": SHARED_ARGUMENTS | {"freqs_cis"},
    "HunyuanVideoTransformer3DModel": SHARED_ARGUMENTS | {"freqs_cis"},
    "Kandinsky6Transformer3DModel": SHARED_ARGUMENTS | {"aud_rope", "vis_rope"},
    "LTXVideoTransformer3DModel": SHARED_ARGUMENTS - {"image_rotary_emb"},
    "LongCatAudioDiTTransformer": SHARED_ARGUMENTS | {"cond_rope", "rope"},
    "MiniMaxMusic3Transformer1DModel": SHARED_ARGUMENTS | {"rotary_emb"},
    "StableAudio3DiTModel": SHARED_ARGUMENTS | {"rope"},
}
"""Where blocks name what has no rows otherwise than the forward call does, or give such a name to what has."""
LAYOUTS |= {name: replace(LAYOUTS[name], shared_block_arguments=shared) for name, shared in _SHARED_BY_BLOCKS.items()}

_SEPARATE_GUIDANCE = (
    "BriaFibo2Transformer2DModel",
    "ChromaTransformer2DModel",
    "ChronoEditTransformer3DModel",
    "CosmosTransformer3DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "GlmImageTransformer2DModel",
    "HeliosTransformer3DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "Krea2Transformer2DModel",
    "LongCatAudioDiTTransformer",
    "LongCatImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "MiniMaxMusic3Transformer1DModel",
    "MotifVideoTransformer3DModel",
    "NucleusMoEImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "WanAnimateTransformer3DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
)
"""Classes whose pipelines call them apart for each guidance branch, or without guidance."""
LAYOUTS |= {name: replace(LAYOUTS[name], separate_guidance=True) for name in _SEPARATE_GUIDANCE}
