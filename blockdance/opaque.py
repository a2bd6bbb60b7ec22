"""Layers that a FLOP counter cannot see into: int8 and other packed linear layers call operators of their own."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_KNOWN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "inductor", "c10d", "_c10d_functional", "fsdp"})


class OpaqueLayers(TorchDispatchMode):
    """Counts linear layers whose FLOPs the counter misses, and names operators that nobody counts.

    Args:
        counted: the counter's FLOPs so far.
    """

    def __init__(self, counted: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        """FLOPs of linear layers that the counter missed."""
        self.unknown: set[str] = set()
        """Operators outside such layers that no counter knows."""
        self._counted = counted
        self._starts: list[tuple[int, set[str]]] = []

    def watch(self, model: nn.Module, hooks: ExitStack) -> None:
        """Watches a model's linear layers until `hooks` are closed: modules that name their `in_features`."""
        for module in model.modules():
            if isinstance(vars(module).get("in_features"), int):
                hooks.callback(module.register_forward_pre_hook(self._enter).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)

    def _enter(self, *_: Any) -> None:
        self._starts.append((self._counted() + self.flops, set(self.unknown)))

    def _leave(self, module: Any, inputs: Any, output: Any) -> None:
        start, unknown = self._starts.pop()
        if self._counted() + self.flops > start:
            return
        self.flops += sum(2 * leaf.numel() * module.in_features for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        self.unknown = unknown

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in _KNOWN_NAMESPACES:
            self.unknown.add(str(func))
        return func(*args, **(kwargs or {}))
