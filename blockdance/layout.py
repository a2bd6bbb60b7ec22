"""Where a transformer keeps its blocks: one table, and `register_layout` for models from outside."""

from dataclasses import dataclass

from torch import nn

from blockdance.errors import UnsupportedModelError


@dataclass(frozen=True)
class BlockLayout:
    """The block stack of a transformer class.

    Args:
        lists: attribute names of the `nn.ModuleList`s that hold the blocks, in execution order.
        shared_arguments: arguments of the forward call that have no batch dimension, though its first size may happen to equal
            the batch size. Everything else whose first size is the batch size is split when images take different actions.
        hidden_states_index: which tensor of a block's output tuple is the image stream.
        cond_last: whether fused classifier-free guidance orders rows `[uncond, cond]`; False for `[cond, uncond]`.
    """

    lists: tuple[str, ...]
    shared_arguments: frozenset[str] = frozenset()
    hidden_states_index: int = -1
    cond_last: bool = True


_LAYOUTS: dict[str, BlockLayout] = {
    "PixArtTransformer2DModel": BlockLayout(("transformer_blocks",)),
    "SD3Transformer2DModel": BlockLayout(("transformer_blocks",), frozenset({"skip_layers"})),
    "FluxTransformer2DModel": BlockLayout(
        ("transformer_blocks", "single_transformer_blocks"), frozenset({"img_ids", "txt_ids"})
    ),
}


def register_layout(model_class: type[nn.Module], layout: BlockLayout) -> None:
    """Tells BlockDance where a model class from outside diffusers keeps its blocks."""
    _LAYOUTS[model_class.__name__] = layout


def find_layout(transformer: nn.Module) -> BlockLayout:
    """Looks up a transformer's layout, by its class or the nearest base class that has one.

    Raises:
        UnsupportedModelError: no layout is known, or the model lacks a list that its layout names.
    """
    for model_class in type(transformer).__mro__:
        if model_class.__name__ in _LAYOUTS:
            layout = _LAYOUTS[model_class.__name__]
            break
    else:
        found = [name for name, child in transformer.named_children() if isinstance(child, nn.ModuleList)]
        raise UnsupportedModelError(
            f"BlockDance knows no block layout of {type(transformer).__name__} (its module lists: {found or 'none'}). Tell it: "
            f"`register_layout({type(transformer).__name__}, BlockLayout(lists=(...)))` with the lists that hold its blocks, in "
            f"execution order. Known classes: {', '.join(sorted(_LAYOUTS))}."
        )
    for name in layout.lists:
        if not isinstance(getattr(transformer, name, None), nn.ModuleList):
            raise UnsupportedModelError(
                f"The layout of {type(transformer).__name__} names the block list `{name}`, but the model has no such "
                "`nn.ModuleList`. Register a layout that fits this version of the model with `register_layout`."
            )
    return layout


def block_stack(transformer: nn.Module, layout: BlockLayout) -> list[tuple[str, int]]:
    """The blocks in execution order, each as (list, index in that list)."""
    return [(name, index) for name in layout.lists for index in range(len(getattr(transformer, name)))]
