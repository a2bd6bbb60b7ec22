"""Where ComfyUI's own model classes keep their blocks."""

from collections.abc import Mapping

from torch import nn

from blockdance import BlockLayout, UnsupportedModelError, find_layout, register_layout
from blockdance.layouts import has_layout

LAYOUTS: Mapping[str, BlockLayout] = {
    "comfy.ldm.pixart.pixartms.PixArtMS": BlockLayout(lists=("blocks",), latents="x", timestep="timesteps"),
    "comfy.ldm.wan.model.WanModel": BlockLayout(lists=("blocks",), latents="x"),
}
"""By the class's full name, so that nothing of ComfyUI is imported for it."""


def tell_layout(model: nn.Module) -> None:
    """Tells BlockDance the layout of a model, unless somebody has told another one.

    Subclasses are not their bases here: VACE's blocks, for one, add to the stream between Wan's.

    Raises:
        UnsupportedModelError: none is known; it says how to tell one.
    """
    model_class = type(model)
    known = LAYOUTS.get(f"{model_class.__module__}.{model_class.__qualname__}")
    if known is not None:
        if not has_layout(model_class):
            register_layout(model_class, known)
        return
    layout = find_layout(model)
    if any(layout is base for base in LAYOUTS.values()):
        raise UnsupportedModelError(
            f"BlockDance knows the base class of {model_class.__name__}, but not what it changes between the blocks. If its blocks "
            f"follow each other as its base's do, tell it: `register_layout({model_class.__name__}, BlockLayout(lists=(...)))`."
        )
