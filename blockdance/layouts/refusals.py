"""The transformer classes of diffusers that cannot reuse, and why."""

_LAYER_OF_UNET = "it is a layer of UNets, which run it several times per denoising step"
UNSUPPORTED: dict[str, str] = {
    "DreamLiteTransformer2DModel": _LAYER_OF_UNET,
    "MiniMaxMusic3RVQDepthDecoder": "it decodes audio codes one after the other and has no denoising steps",
    "RFD4ProteinaTransformer": "it runs its layers several times per denoising step, fewer times at later steps",
    "TransformerTemporalModel": _LAYER_OF_UNET,
}
"""Why a class of diffusers has no layout."""
