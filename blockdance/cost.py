"""What an action costs, in multiply-accumulate operations (MACs) counted from the model itself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from blockdance.layout import BlockLayout, block_stack
from blockdance.schedule import Reuse


@dataclass(frozen=True)
class ForwardCost:
    """MACs of one forward call.

    Args:
        total: MACs of the whole call.
        blocks: MACs of each block, in execution order.
    """

    total: float
    blocks: tuple[float, ...]

    def per_action(self, kinds: Sequence[Reuse]) -> Tensor:
        """MACs of one forward call under every action: float64 `(1 + len(kinds),)`, action 0 (compute) first."""
        reuse = [self.total - sum(self.blocks[: kind.boundary + 1]) for kind in kinds]
        return torch.tensor([self.total, *reuse], dtype=torch.float64)

    def macs(self, actions: Tensor, kinds: Sequence[Reuse]) -> Tensor:
        """MACs of each image's denoising steps: float64 `(batch,)` for actions `(batch, num_steps)`."""
        return self.per_action(kinds).to(actions.device)[actions].sum(-1)

    def compute_saved(self, actions: Tensor, kinds: Sequence[Reuse]) -> Tensor:
        """Share of the denoising MACs that each image saves, in [0, 1]: float64 `(batch,)`."""
        return 1.0 - self.macs(actions, kinds) / (self.total * actions.shape[-1])


def count_macs(transformer: nn.Module, layout: BlockLayout, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ForwardCost:
    """Counts the MACs of one forward call on fake tensors: nothing is computed and no memory is taken.

    Args:
        transformer: the model, not compiled.
        layout: where its blocks are.
        args, kwargs: the inputs of the call, or tensors of their shapes and dtypes on the model's device.
    """
    counter = FlopCounterMode(display=False)
    stack = [getattr(transformer, name)[index] for name, index in block_stack(transformer, layout)]
    flops = [0] * len(stack)

    def start(position: int) -> None:
        flops[position] -= counter.get_total_flops()

    def end(position: int) -> None:
        flops[position] += counter.get_total_flops()

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), ExitStack() as hooks:
        for position, block in enumerate(stack):
            hooks.callback(block.register_forward_pre_hook(lambda *_, at=position: start(at)).remove)
            hooks.callback(block.register_forward_hook(lambda *_, at=position: end(at)).remove)
        fake_args, fake_kwargs = tree_map_only(Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
        # the math backend breaks attention into the matrix products that the counter knows on every device
        with sdpa_kernel(SDPBackend.MATH), counter:
            transformer.forward(*fake_args, **fake_kwargs)
    return ForwardCost(counter.get_total_flops() / 2, tuple(count / 2 for count in flops))
