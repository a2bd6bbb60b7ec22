"""Where a transformer keeps its blocks and what its forward call looks like."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from blockdance.errors import UnsupportedModelError

SHARED_ARGUMENTS = frozenset(
    {
        "chunk_partition",
        "control_hidden_states_scale",
        "data_info",
        "fps",
        "image_rotary_emb",
        "img_ids",
        "indices_hidden_states",
        "indices_latents",
        "indices_latents_clean",
        "indices_latents_history_2x",
        "indices_latents_history_4x",
        "indices_latents_history_long",
        "indices_latents_history_mid",
        "indices_latents_history_short",
        "padding_mask",
        "pos_embeds",
        "rope_interpolation_scale",
        "rotary_embedding",
        "scale_factor",
        "skip_layers",
        "sparse_params",
        "spatio_temporal_guidance_blocks",
        "text_rope_pos",
        "txt_ids",
        "visual_rope_pos",
    }
)
"""Names that diffusers gives to arguments without a batch dimension: what a layout takes unless it says otherwise."""

Inputs = Mapping[str, Any]


def _always(inputs: Inputs) -> bool:
    return True


def never(inputs: Inputs) -> bool:
    """Of no call."""
    return False


@dataclass(frozen=True)
class BlockLayout:
    """The block stack of a transformer class.

    Args:
        lists: paths of the `nn.ModuleList`s that hold the blocks, in execution order; dots reach into submodules.
        interleaved: whether the lists take turns (first blocks of all lists, then second ones, …) instead of following each other.
        streams: which argument of the block each element of its output tuple continues, in the tuple's order. A block that
            returns one tensor continues its first argument, and its layout needs none.
        image_stream: which of the streams is the image's.
        batch_dim: dimension of a block's outputs that holds the batch.
        latents: name of the forward call's argument that carries the latents: a tensor, or a list with one tensor per image.
        timestep: name of the argument that carries the timestep.
        timestep_rises: whether the model counts time from noise to image, against the scheduler.
        cond_last: whether fused classifier-free guidance orders rows `[uncond, cond]`; False for `[cond, uncond]`.
        separate_guidance: whether its pipelines call it apart for the conditional and the unconditional branch, or without guidance.
        shared_arguments: arguments of the forward call that have no batch dimension, though their first size may happen to equal
            the batch size; in the place of `SHARED_ARGUMENTS`, so that a model may add to them or take some away. Every other
            tensor whose first size is the batch size is split when images take different actions.
        shared_block_arguments: arguments of the blocks that have no batch dimension; None where they have the names of `shared_arguments`.
        batch_dims: arguments whose batch dimension is another than the first.
        image_lists: arguments that are lists with one element per row.
        per_image_arguments: arguments with one row per image, though the latents have one per guidance branch and image: the model
            repeats them itself. They are given row by row to images that run apart.
        one_image: whether a call takes one image only, as models of packed sequences do; nothing is split then.
        splits_rows: whether the rows of a call with these inputs can run apart; where not, a batch computes whenever its images'
            actions differ.
        joins_rows: whether rows of a call with these inputs may join the others between two blocks, so that a batch whose images take
            different actions runs in one call: every argument of a block that has one row for each of the batch has it in the first
            dimension (those named in `shared_block_arguments` have none), and what the model does between blocks needs no more than the
            blocks' outputs. Where not, the rows of every action run in a call of their own.
        is_step: whether a call with these inputs is a denoising step, and not one that fills a key-value cache.
        pads_to_longest: whether the model itself pads token sequences to the longest of the batch (the second dimension of what its
            blocks give), so that rows that run apart may have fewer tokens.
        changes_outputs: whether the model or the next block changes a block's output in place, so that the cache needs a copy.
        long_skips: which block (or, for the head, the number of blocks) reads which earlier blocks' outputs besides its
            predecessor's.
        note: what a user should know.
    """

    lists: tuple[str, ...]
    interleaved: bool = False
    streams: tuple[str, ...] = ()
    image_stream: str = "hidden_states"
    batch_dim: int = 0
    latents: str = "hidden_states"
    timestep: str = "timestep"
    timestep_rises: bool = False
    cond_last: bool = True
    separate_guidance: bool = False
    shared_arguments: frozenset[str] = SHARED_ARGUMENTS
    shared_block_arguments: frozenset[str] | None = None
    batch_dims: Mapping[str, int] = field(default_factory=dict)
    per_image_arguments: frozenset[str] = frozenset()
    image_lists: frozenset[str] = frozenset()
    one_image: bool = False
    splits_rows: Callable[[Inputs], bool] = _always
    joins_rows: Callable[[Inputs], bool] = never
    is_step: Callable[[Inputs], bool] = _always
    pads_to_longest: bool = False
    changes_outputs: bool = False
    long_skips: Callable[[nn.Module], Mapping[int, tuple[int, ...]]] | None = None
    note: str = ""

    @property
    def image_index(self) -> int:
        """Which element of a block's output tuple is the image stream."""
        return self.streams.index(self.image_stream) if self.streams else 0

    def num_rows(self, inputs: Inputs) -> int:
        """Rows of a forward call: images times fused guidance branches."""
        if self.one_image:
            return 1
        latents = inputs[self.latents]
        return latents.shape[0] if isinstance(latents, Tensor) else len(latents)


def holder(transformer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a block list, and the list's name in it."""
    parent, _, name = path.rpartition(".")
    return transformer.get_submodule(parent) if parent else transformer, name


def block_list(transformer: nn.Module, path: str) -> nn.ModuleList:
    """The block list at a path.

    Raises:
        UnsupportedModelError: there is no `nn.ModuleList` of that name.
    """
    try:
        blocks = transformer.get_submodule(path)
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModelError(
            f"The layout of {type(transformer).__name__} names the block list `{path}`, but the model has no such "
            "`nn.ModuleList`. Register a layout that fits this version of the model with `register_layout`."
        )
    return blocks


def block_stack(transformer: nn.Module, layout: BlockLayout) -> list[tuple[str, int]]:
    """The blocks in execution order, each as (list, index in that list)."""
    return _in_order({path: len(block_list(transformer, path)) for path in layout.lists}, layout)


def _in_order(lengths: Mapping[str, int], layout: BlockLayout) -> list[tuple[str, int]]:
    if layout.interleaved:
        return [(path, index) for index in range(max(lengths.values())) for path in layout.lists if index < lengths[path]]
    return [(path, index) for path in layout.lists for index in range(lengths[path])]


@dataclass(frozen=True)
class BlockStack:
    """What a kind of reuse needs to know of a model's blocks, without holding the model.

    Args:
        places: of every block in execution order, the path of its list and its index there.
        layout: what else is known of the model class.
        long_skips: which block reads which earlier blocks' outputs besides its predecessor's.
    """

    places: tuple[tuple[str, int], ...]
    layout: BlockLayout
    long_skips: Mapping[int, tuple[int, ...]]

    @staticmethod
    def of(transformer: nn.Module, layout: BlockLayout) -> "BlockStack":
        """The stack of a model."""
        long_skips = layout.long_skips(transformer) if layout.long_skips is not None else {}
        return BlockStack(tuple(block_stack(transformer, layout)), layout, long_skips)

    def __len__(self) -> int:
        return len(self.places)

    def list_of(self, position: int) -> str:
        """Path of the list that holds a block."""
        return self.places[position][0]


def blocks_of(transformer: nn.Module, layout: BlockLayout) -> list[nn.Module]:
    """The blocks themselves in execution order."""
    lists = {path: list(block_list(transformer, path)) for path in layout.lists}
    return [lists[path][index] for path, index in _in_order({path: len(blocks) for path, blocks in lists.items()}, layout)]


def parameter_names(module: nn.Module) -> list[str]:
    """Names of a module's forward arguments in order, also where a hook has replaced the instance's `forward`."""
    return list(inspect.signature(type(module).forward).parameters)[1:]
