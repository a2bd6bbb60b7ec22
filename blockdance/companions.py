"""What cannot work on a transformer beside BlockDance, refused by name: other caches, and ranks that might decide differently."""

from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from blockdance.errors import BlockDanceError
from blockdance.plan import Plan
from blockdance.schedule import BlockDanceConfig, ReuseSchedule


def refuse_companions(transformer: nn.Module, plan: Plan) -> None:
    """Looks at the model before a generation: what is wrong may have been added since BlockDance was turned on.

    Raises:
        BlockDanceError: one of diffusers' caches is on, or the model is spread over several processes, which might take different
            actions under this plan and then wait for each other for ever.
    """
    name = type(transformer).__name__
    cache = _other_cache(transformer)
    if cache is not None:
        raise BlockDanceError(
            f"{cache} is on for this {name}, beside BlockDance. Both would skip the same blocks and cache what the other one gave. Turn "
            "one of them off: `transformer.disable_cache()`, or `remove_blockdance`."
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _refuse_differing_ranks(transformer, plan)


def _other_cache(transformer: nn.Module) -> str | None:
    if isinstance(transformer, CacheMixin) and transformer.is_cache_enabled:
        return type(transformer._cache_config).__name__.removesuffix("Config")
    for module in transformer.modules():
        registry: Any = vars(module).get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            if hook._is_stateful:  # caches are; what moves or casts weights is not
                return f"diffusers' {type(hook).__name__}"
    return None


def _refuse_differing_ranks(transformer: nn.Module, plan: Plan) -> None:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    is_same_everywhere = isinstance(plan, BlockDanceConfig) or (isinstance(plan, ReuseSchedule) and plan.batch_size == 1)
    sharded = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in transformer.modules())
    if sharded and not is_same_everywhere:
        raise BlockDanceError(
            f"The weights of this {type(transformer).__name__} are sharded (FSDP), so all processes must run the same blocks at the same "
            f"time, but {type(plan).__name__} decides for each process's images. Use a BlockDanceConfig, or a ReuseSchedule with one row."
        )
    config = vars(transformer).get("_parallel_config")
    in_parts = config is not None and getattr(config, "context_parallel_config", None) is not None
    if in_parts and not isinstance(plan, BlockDanceConfig | ReuseSchedule):
        raise BlockDanceError(
            f"This {type(transformer).__name__} runs with context parallelism: each process sees a part of every image, and "
            f"{type(plan).__name__} might decide differently on each. Use a BlockDanceConfig or a ReuseSchedule."
        )
