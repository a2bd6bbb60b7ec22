"""Which layout does a model have? By its class, never by a name alone: two models may share one."""

from typing import Any

from torch import nn

from blockdance.errors import UnsupportedModelError
from blockdance.layouts.layout import BlockLayout, block_list
from blockdance.layouts.refusals import UNSUPPORTED
from blockdance.layouts.table import LAYOUTS

_REGISTERED: dict[type[nn.Module], BlockLayout] = {}


def register_layout(model_class: type[nn.Module], layout: BlockLayout) -> None:
    """Tells BlockDance where a model class keeps its blocks; it goes before the table of diffusers' classes."""
    _REGISTERED[model_class] = layout


def has_layout(model_class: type[nn.Module]) -> bool:
    """Whether a model of this class has a layout, told without looking at its blocks."""
    return any(parent in _REGISTERED or _of_diffusers(parent, LAYOUTS) is not None for parent in model_class.__mro__)


def find_layout(transformer: nn.Module) -> BlockLayout:
    """Looks up a transformer's layout, by its class or the nearest base class that has one.

    Raises:
        UnsupportedModelError: no layout is known, or the model lacks a list that its layout names.
    """
    for model_class in type(transformer).__mro__:
        layout = _REGISTERED.get(model_class) or _of_diffusers(model_class, LAYOUTS)
        if layout is not None:
            break
        reason = _of_diffusers(model_class, UNSUPPORTED)
        if reason is not None:
            raise UnsupportedModelError(f"BlockDance cannot work on {type(transformer).__name__}: {reason}.")
    else:
        raise UnsupportedModelError(_unknown(transformer))
    for path in layout.lists:
        block_list(transformer, path)
    return layout


def _of_diffusers(model_class: type, table: dict[str, Any]) -> Any:
    """The tables name diffusers' classes instead of importing all of them, which would take seconds."""
    return table.get(model_class.__name__) if model_class.__module__.startswith("diffusers.") else None


def _unknown(transformer: nn.Module) -> str:
    name = type(transformer).__name__
    found = [path for path, child in transformer.named_modules() if isinstance(child, nn.ModuleList) and "." not in path]
    if name in LAYOUTS:
        return (
            f"This {name} is not diffusers' class of that name but one of {type(transformer).__module__}. If it is a copy, take over "
            f'the layout: `register_layout({name}, blockdance.layouts.LAYOUTS["{name}"])`.'
        )
    return (
        f"BlockDance knows no block layout of {name} (its module lists: {', '.join(found) or 'none'}). Tell it: "
        f"`register_layout({name}, BlockLayout(lists=(...)))` with the lists that hold its blocks, in execution order. "
        f"Known classes: {', '.join(sorted(LAYOUTS))}."
    )
