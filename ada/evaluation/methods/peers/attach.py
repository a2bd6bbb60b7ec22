"""What all peers share: one clear error, the denoising step that their hooks ask for, and a model left as it was found."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from diffusers.hooks.hooks import HookRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from ada.evaluation.methods.base import NotApplicableError

REGISTRY = "_diffusers_hook"


@contextmanager
def explained(peer: str) -> Iterator[None]:
    """Turns whatever a peer raises into the reason why it does not apply."""
    try:
        yield
    except NotApplicableError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise NotApplicableError(f"{peer} raised {type(error).__name__}: {text[:300]}") from error


def optional_package(name: str) -> ModuleType:
    """Imports a package of the extra `peers`.

    Raises:
        NotApplicableError: it is not installed, or cannot be imported with these versions.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise NotApplicableError(
            f"The package {name} cannot be imported ({error}). Install it with `pip install 'blockdance-ada[peers]'`."
        ) from error


class StepWatcher:
    """Which denoising step the transformer is at, from the timestep that it is given.

    Args:
        pipeline: the pipeline.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.step = 0
        self.timestep = 0.0

    def observe(self, timestep: Any) -> None:
        """Notes the timestep of a call."""
        self.timestep = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)
        known = self._pipeline.scheduler.timesteps.float()
        self.step = int((known - self.timestep).abs().argmin())

    @property
    def sigma(self) -> float:
        """Noise level of the step; of schedulers without sigmas, the timestep's share of all."""
        sigmas = getattr(self._pipeline.scheduler, "sigmas", None)
        return float(sigmas[self.step]) if sigmas is not None else self.timestep / 1000

    @property
    def num_steps(self) -> int:
        return len(self._pipeline.scheduler.timesteps)


@contextmanager
def watched(pipeline: Any, *, give_context: bool) -> Iterator[StepWatcher]:
    """Watches the transformer's calls, and gives diffusers' hooks the cache context that some pipelines do not set.

    Args:
        pipeline: the pipeline.
        give_context: whether to wrap each call in a `cache_context`, as diffusers' own error message asks for.
    """
    watcher, transformer = StepWatcher(pipeline), pipeline.transformer
    inside: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watcher.observe(kwargs["timestep"] if "timestep" in kwargs else args[2])
        if give_context:
            fields = {"step_index": watcher.step, "num_inference_steps": watcher.num_steps, "sigma": watcher.sigma}
            inside.append(CacheMixin.cache_context(transformer, "cond_uncond", **fields))
            inside[-1].__enter__()

    def after(*arguments: Any) -> None:
        if inside:
            inside.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(transformer.register_forward_hook(after, always_call=True).remove)
        yield watcher


@contextmanager
def hooks_removed(transformer: nn.Module) -> Iterator[None]:
    """Removes at the end every diffusers hook that was attached inside."""
    before = {module: set(registry.hooks) for module, registry in _registries(transformer)}
    patched = {module for module in transformer.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, registry in reversed(_registries(transformer)):
            for name in [name for name in registry.hooks if name not in before.get(module, set())]:
                registry.remove_hook(name, recurse=False)
            if module not in before:
                delattr(module, REGISTRY)
        # what is removed puts the class's own `forward` back, but as an attribute of the module
        for module in set(transformer.modules()) - patched:
            vars(module).pop("forward", None)


def num_hooks(transformer: nn.Module) -> int:
    """How many diffusers hooks are attached."""
    return sum(len(registry.hooks) for _, registry in _registries(transformer))


def hook_bytes(transformer: nn.Module) -> int:
    """Bytes of the tensors that the attached hooks keep."""
    hooks = [hook for _, registry in _registries(transformer) for hook in registry.hooks.values()]
    return num_bytes([{name: value for name, value in vars(hook).items() if name != "fn_ref"} for hook in hooks])


def _registries(transformer: nn.Module) -> list[tuple[nn.Module, HookRegistry]]:
    return [(module, vars(module)[REGISTRY]) for module in transformer.modules() if REGISTRY in vars(module)]


def num_bytes(tree: object, limit: int = 12) -> int:
    """Bytes of all tensors that hang from an object, through containers and attributes; shared storage counts once.

    Args:
        tree: anything; classes, modules and functions are not entered.
        limit: how deep to go.
    """
    storages: dict[int, int] = {}
    _collect(tree, storages, set(), limit)
    return sum(storages.values())


def _collect(tree: object, storages: dict[int, int], seen: set[int], limit: int) -> None:
    if isinstance(tree, Tensor):
        storage = tree.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return
    if limit == 0 or id(tree) in seen or isinstance(tree, nn.Module | type | Callable | str | bytes | int | float):
        return
    seen.add(id(tree))
    if isinstance(tree, dict):
        children = list(tree.values())
    elif isinstance(tree, list | tuple | set):
        children = list(tree)
    else:
        children = list(getattr(tree, "__dict__", {}).values())
    for child in children:
        _collect(child, storages, seen, limit - 1)
