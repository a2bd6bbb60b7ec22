"""What all tensors of this process hold."""

import gc

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor


def tensor_bytes() -> int:
    """Memory of all tensors that are alive. Those of torch's compiler, or that an earlier test left in a transform of functorch, have
    none of their own."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and not is_functorch_wrapped_tensor(one)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in alive)}.values())
