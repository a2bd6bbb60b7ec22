"""Where transformers keep their blocks: what a layout says, the table of diffusers' classes, refusals, and the lookup."""

from blockdance.layouts.layout import (
    SHARED_ARGUMENTS,
    BlockLayout,
    BlockStack,
    block_list,
    block_stack,
    blocks_of,
    holder,
    parameter_names,
)
from blockdance.layouts.lookup import find_layout, has_layout, register_layout
from blockdance.layouts.refusals import UNSUPPORTED
from blockdance.layouts.table import LAYOUTS

__all__ = [
    "LAYOUTS",
    "SHARED_ARGUMENTS",
    "UNSUPPORTED",
    "BlockLayout",
    "BlockStack",
    "block_list",
    "block_stack",
    "blocks_of",
    "find_layout",
    "has_layout",
    "holder",
    "parameter_names",
    "register_layout",
]
