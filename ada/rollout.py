"""Rollouts: the prefix once, a group of suffixes from it, and the reference; equal action prefixes are denoised once."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ada.backbone import Backbone, cat, take
from ada.policy import AdaPolicy
from ada.types import PolicyState, Snapshot
from blockdance import ReuseExecutor


@dataclass(frozen=True)
class Prefix:
    """What every rollout of a prompt shares.

    Args:
        snapshot: the state after step ρ.
        state: what the policy sees.
        reference: images with every step computed, `(images, 3, height, width)` in [0, 1].
    """

    snapshot: Snapshot
    state: PolicyState
    reference: Tensor


def prompt_seed(seed: int, index: int) -> int:
    """Seed of a prompt's noise: depends on the run's seed and the prompt's index, not on batch or rank."""
    return (seed * 1_000_003 + index) % 2**63


class Denoiser:
    """Runs prefixes, suffixes and references of one backbone for one policy's kinds of reuse.

    Args:
        backbone: the frozen pipeline.
        policy: tells ρ, the steps decided and the kinds of reuse.
        seed: seed of the noise.
        max_cached_bytes: prefixes and references are kept between epochs, in the computer's memory, up to this many bytes; the
            model is frozen and the noise fixed, so they do not change.
    """

    def __init__(self, backbone: Backbone, policy: AdaPolicy, seed: int = 0, max_cached_bytes: int = 2 * 2**30) -> None:
        self.backbone = backbone
        self.seed = seed
        self._decision_step = policy.decision_step(backbone.num_inference_steps)
        self._boundary = policy.kinds[0].boundary
        self.executor = ReuseExecutor(backbone.transformer, backbone.layout, policy.kinds, observed=[policy.kinds[0].boundary])
        self._kept: OrderedDict[tuple[str, int], Prefix] = OrderedDict()
        self._kept_bytes = 0
        self._max_kept_bytes = max_cached_bytes

    @torch.inference_mode()
    def prefix(self, prompts: Sequence[str], indices: Sequence[int]) -> Prefix:
        """Prefix, policy state and reference of each prompt; computed once per prompt.

        Args:
            prompts: one per image.
            indices: each prompt's index in its dataset, which its noise depends on.
        """
        keys = list(zip(prompts, indices, strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        computed = dict(zip(missing, _split(self._compute_prefix(missing)), strict=True)) if missing else {}
        parts = [self._kept[key] if key in self._kept else computed[key] for key in keys]
        for key, part in computed.items():
            self._keep(key, part)
        return _join(parts)

    @torch.inference_mode()
    def suffixes(self, start: Snapshot, actions: Tensor) -> tuple[Tensor, int]:
        """Denoises a group of schedules from each image of a snapshot to the end.

        Schedules of one image that begin alike share their steps until they part.

        Args:
            start: the common beginning; left as it is.
            actions: int64 `(images, group, num_steps)`, of which the steps from `start.step` on are taken.

        Returns:
            The final latents `(images, group, channels, height, width)`, and how many image-steps were denoised for them.
        """
        images, group, num_steps = actions.shape
        nodes, denoised = start, 0
        node_of = [image for image in range(images) for _ in range(group)]
        plan = actions.flatten(0, 1).tolist()
        for step in range(start.step, num_steps):
            choices = [(node, plan[member][step]) for member, node in enumerate(node_of)]
            children = list(dict.fromkeys(choices))
            places = {choice: place for place, choice in enumerate(children)}
            node_of = [places[choice] for choice in choices]
            nodes = take(nodes, [parent for parent, _ in children])
            nodes = self.backbone.advance(nodes, [action for _, action in children], self.executor)
            denoised += len(children)
        return nodes.latents[node_of].unflatten(0, (images, group)), denoised

    def _compute_prefix(self, keys: Sequence[tuple[str, int]]) -> Prefix:
        prompts = [prompt for prompt, _ in keys]
        seeds = [prompt_seed(self.seed, index) for _, index in keys]
        snapshot = self.backbone.start(prompts, seeds, self.executor)
        compute = [0] * len(keys)
        for _ in range(self._decision_step):
            snapshot = self.backbone.advance(snapshot, compute, self.executor)
        latents = snapshot.latents
        snapshot = self.backbone.advance(snapshot, compute, self.executor)
        state = self.backbone.observe(snapshot, latents, self._boundary)
        every_step = torch.zeros(len(keys), 1, self.backbone.num_inference_steps, dtype=torch.int64)
        reference = self.backbone.decode(self.suffixes(snapshot, every_step)[0][:, 0])
        return Prefix(snapshot, state, reference)

    def _keep(self, key: tuple[str, int], prefix: Prefix) -> None:
        self._kept[key] = prefix
        self._kept_bytes += _num_bytes(prefix)
        while self._kept_bytes > self._max_kept_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= _num_bytes(dropped)


_PER_IMAGE = ("latents", "prompt_embeds", "prompt_mask", "features", "feature_change")


def _split(prefix: Prefix) -> list[Prefix]:
    return [
        Prefix(
            take(prefix.snapshot, [image]),
            replace(prefix.state, **{name: getattr(prefix.state, name)[image : image + 1] for name in _PER_IMAGE}),
            prefix.reference[image : image + 1],
        )
        for image in range(len(prefix.reference))
    ]


def _join(parts: Sequence[Prefix]) -> Prefix:
    states = [part.state for part in parts]
    joined: dict[str, Any] = {name: torch.cat([getattr(state, name) for state in states]) for name in _PER_IMAGE}
    return Prefix(
        cat([part.snapshot for part in parts]),
        replace(states[0], **joined),
        torch.cat([part.reference for part in parts]),
    )


def _num_bytes(prefix: Prefix) -> int:
    state = [getattr(prefix.state, name) for name in _PER_IMAGE]
    leaves = tree_leaves([prefix.snapshot.latents, prefix.reference, state])
    return sum(int(leaf.numel() * leaf.element_size()) for leaf in leaves) + prefix.snapshot.reuse.num_bytes
