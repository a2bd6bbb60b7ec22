"""Counts what would make a GPU wait: values read back from tensors, and tensors made of Python's numbers."""

from collections import Counter
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Operations whose result, or its size, has to come back from the device."""


class SyncCounter(TorchDispatchMode):
    """Counts synchronisations while it is entered; it runs on any machine.

    Lists of a tensor's values count where they are floats: schedules are whole numbers, on the CPU by contract.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._tolist = patch.object(Tensor, "tolist", self._listed(Tensor.tolist))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __enter__(self) -> "SyncCounter":
        self._tolist.start()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tolist.stop()
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.counts[READS[function]] += 1
        elif function is torch.ops.aten.lift_fresh.default:
            self.counts["tensor of numbers"] += 1
        elif function is torch.ops.aten._to_copy.default and "device" in (kwargs or {}):
            self.counts["copy between devices"] += args[0].device != kwargs["device"]
        return function(*args, **kwargs or {})

    def _listed(self, plain: Any) -> Any:
        def tolist(tensor: Tensor) -> Any:
            self.counts["tolist"] += tensor.is_floating_point()
            return plain(tensor)

        return tolist
