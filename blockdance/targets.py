"""The transformers that a pipeline or a model stands for."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from blockdance.drivers import unwrapped
from blockdance.errors import BlockDanceError, UnsupportedModelError
from blockdance.layouts import find_layout, has_layout


def transformers_of(target: Any, component: str | None = None) -> dict[str, nn.Module]:
    """The transformers that BlockDance works on, by component name.

    Args:
        target: a pipeline, or a transformer.
        component: name of one of the pipeline's components; by default all of its transformers.

    Raises:
        UnsupportedModelError: it is neither; the pipeline has no such component, or no transformer; or no block layout is known.
    """
    target = unwrapped(target)
    if isinstance(target, nn.Module):
        return {"transformer": _supported(target)}
    try:
        parts = {name: unwrapped(part) for name, part in vars(target).items()}
    except TypeError as error:
        raise UnsupportedModelError(
            f"BlockDance is for a pipeline or a transformer; got {target!r}. Load the pipeline first: "
            "`DiffusionPipeline.from_pretrained(…)`."
        ) from error
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    if component is not None:
        if component not in modules:
            raise UnsupportedModelError(
                f"{type(target).__name__} has no component `{component}` that is a model. It has: {_listed(modules)}. Name one of its "
                "transformers, or none for all of them."
            )
        return {component: _supported(modules[component])}
    found = {name: part for name, part in modules.items() if has_layout(type(part))}
    if not found and "transformer" in modules:
        found = {"transformer": _supported(modules["transformer"])}
    if not found:
        raise UnsupportedModelError(
            f"{type(target).__name__} is neither a transformer nor a pipeline with one (its models: {_listed(modules)}). BlockDance works "
            "on diffusion transformers; UNet pipelines have none."
        )
    once = {id(part): name for name, part in reversed(found.items())}
    return {name: part for name, part in found.items() if once[id(part)] == name}


def components_of(pipeline: Any, transformers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of some transformers that are a pipeline's own, by component name; none where there is no pipeline."""
    parts = {} if pipeline is None else vars(pipeline)
    return {name: transformer for name, transformer in transformers.items() if unwrapped(parts.get(name)) is transformer}


def refuse_replaced(pipeline: Any, components: Mapping[str, nn.Module]) -> None:
    """Refuses to go on where a pipeline was given other transformers than it had, whose calls pass by. One that is gone is none.

    Args:
        pipeline: the pipeline, or None where there is none any more.
        components: see `components_of`.

    Raises:
        BlockDanceError: one was replaced.
    """
    for name, transformer in ({} if pipeline is None else components).items():
        now = unwrapped(vars(pipeline).get(name))
        if isinstance(now, nn.Module) and now is not transformer:
            raise BlockDanceError(
                f"The `{name}` of this {type(pipeline).__name__} is another object than the one that BlockDance was turned on for, so it "
                "runs plain. Turn it on again: `handle.remove()`, then `apply_blockdance(pipe, …)`."
            )


def _supported(transformer: nn.Module) -> nn.Module:
    find_layout(transformer)
    return transformer


def _listed(modules: dict[str, nn.Module]) -> str:
    return ", ".join(f"`{name}` ({type(part).__name__})" for name, part in modules.items()) or "none"
