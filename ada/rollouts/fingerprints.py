"""Digests that tell settings and weights apart."""

import hashlib
import json
from typing import Any

from torch import nn


def weights_digest(module: nn.Module) -> str:
    """A digest of a model's weights, from sums of its parameters."""
    sums = {
        name: [float(tensor.double().sum()), float(tensor.double().abs().sum())] for name, tensor in module.state_dict().items()
    }
    return digest(sums)


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits that tell one piece of JSON from another."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
