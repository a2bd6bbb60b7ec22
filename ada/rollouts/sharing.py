"""A pipeline's text encoders and decoder run equal rows once, and few rows at a time, whatever the family.

What a pipeline's call shares is shared where the work is done, inside the components' own calls: no pipeline has to be told which of its
prompts are the same, and what its `encode_prompt` takes and gives does not matter.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from ada.sharing import plan_distinct
from blockdance.overrides import ForwardOverride, Handler, Override, install, uninstall
from blockdance.pieces import RowSet


@contextmanager
def shared_components(pipeline: Any, max_images: int | None) -> Iterator[None]:
    """While it lasts, text encoders and the decoder of a pipeline run each distinct row of a call once, and its result goes to all
    equal rows.

    Calls whose arguments are not understood run as they are: such as those with more than rows, flags and generators, whose rows
    may depend on one another (frames of one video), or with images of any number per prompt.

    Args:
        pipeline: a pipeline of diffusers; others are left as they are.
        max_images: most rows that are run at once; None for no limit.
    """
    is_diffusers = isinstance(pipeline, DiffusionPipeline)
    components = pipeline.components.values() if is_diffusers else ()
    with ExitStack() as stack:
        for component in components:
            if isinstance(component, PreTrainedModel):
                stack.enter_context(_overridden(component, "forward", ForwardOverride, _sharing(max_images)))
            elif isinstance(component, AutoencoderMixin) and isinstance(component, nn.Module):
                stack.enter_context(_overridden(component, "decode", Override, _sharing(max_images)))
        yield


@contextmanager
def _overridden(model: nn.Module, name: str, override_class: type[Override], handler: Handler) -> Iterator[None]:
    override = install(model, name, override_class, handler)
    try:
        yield
    finally:
        uninstall(model, name, override)


def _sharing(max_images: int | None) -> Handler:
    def run(plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if isinstance(value, Tensor) and value.ndim > 0]
        if not tensors or not all(_is_understood(value, len(tensors[0])) for value in values):
            return plain(*args, **kwargs)
        plan = plan_distinct(tensors, max_images)
        if plan.is_whole:
            return plain(*args, **kwargs)
        parts = [
            plain(
                *(_take(value, group.rows) for value in args),
                **{name: _take(value, group.rows) for name, value in kwargs.items()},
            )
            for group in plan.groups
        ]
        return plan.join(parts)

    return run


def _is_understood(value: Any, num_rows: int) -> bool:
    if isinstance(value, Tensor | list):
        return not (isinstance(value, Tensor) and value.ndim == 0) and len(value) == num_rows
    return value is None or isinstance(value, bool)


def _take(value: Any, rows: RowSet) -> Any:
    if isinstance(value, Tensor):
        return rows.take(value)
    return [value[row] for row in rows.rows] if isinstance(value, list) else value
