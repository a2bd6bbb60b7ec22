"""Weights that are offloaded in groups of blocks: diffusers loads a group when its first block is called, and lets it go after its last."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn

from blockdance.drivers import unwrapped


def offloaded_groups(blocks: Sequence[nn.Module]) -> tuple[ModuleGroup, ...]:
    """The groups of two blocks or more whose weights are loaded together; none where the model is not offloaded so."""
    groups = []
    for block in map(unwrapped, blocks):
        registry: Any = vars(block).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None and len(hook.group.modules) > 1:
            groups.append(hook.group)
    return tuple(dict.fromkeys(groups))


@contextmanager
def led_by_what_runs(groups: Collection[ModuleGroup], skipped: Collection[nn.Module]) -> Iterator[None]:
    """For one forward call, the first block of each group that runs loads its weights, and the last one that runs lets them go.

    Args:
        groups: see `offloaded_groups`.
        skipped: blocks that are not called.
    """
    without = {id(unwrapped(block)) for block in skipped}
    leaders = [(group, group.onload_leader, group.offload_leader) for group in groups]
    for group in groups:
        running = [module for module in group.modules if id(module) not in without]
        if running:
            group.onload_leader, group.offload_leader = running[0], running[-1]
    try:
        yield
    finally:
        for group, onload_leader, offload_leader in leaders:
            group.onload_leader, group.offload_leader = onload_leader, offload_leader
