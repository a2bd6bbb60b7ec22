"""Stand-ins for a method of one model, which live through `torch.compile`, other people's hooks, copies and pickling."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._dynamo.decorators import skip

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is given the plain method and the arguments of a call."""


class Override:
    """Stands in for a method of one model.

    It is an attribute of the instance. The model's class stays what it is: diffusers reads it, and compiled code and copies hold on
    to it. A copy or a pickle of the model gets the plain method.

    Args:
        plain: the method that it stands in for.
        handler: what to do with a call; None once it is given up, where others have kept it and go on calling it.
    """

    def __init__(self, plain: Callable[..., Any], handler: Handler | None) -> None:
        self.plain = plain
        self.handler = handler
        self.__wrapped__ = plain  # `inspect.signature` follows it: pipelines look for arguments of `forward`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.handler is None or _PASSING.count:
            return self.plain(*args, **kwargs)
        return self.handler(self.plain, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.plain, memo)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _same, (self.plain,)


class ForwardOverride(Override):
    """Stands in for `forward`, outside of what is compiled whatever the order of compiling and overriding.

    Code under `torch.compile` runs with a callback that compiles every new frame. It is lifted while the handler runs, and put back
    around the plain `forward`, which so becomes the frame that is compiled: whole, and the same at every call.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.handler is None or _PASSING.count:
            return self.plain(*args, **kwargs)
        callback = set_eval_frame(None)
        if callback is None:  # nothing is compiled
            return self.handler(self.plain, args, kwargs)
        outer, _CALL.is_compiled = _CALL.is_compiled, callable(callback)
        try:
            return self.handler(partial(self._resume, callback), args, kwargs)
        finally:
            _CALL.is_compiled = outer
            set_eval_frame(callback)

    def _resume(self, callback: Any, *args: Any, **kwargs: Any) -> Any:
        set_eval_frame(callback)
        try:
            return self.plain(*args, **kwargs)
        finally:
            set_eval_frame(None)


skip(ForwardOverride.__call__)


class _Call(threading.local):
    is_compiled = False


_CALL = _Call()


def is_compiled() -> bool:
    """Whether this thread's call under way is of a model under `torch.compile`, seen from outside of what is compiled."""
    return _CALL.is_compiled


class _Passing(threading.local):
    count = 0


_PASSING = _Passing()


@contextmanager
def plainly() -> Iterator[None]:
    """This thread's calls go to the plain methods while the context lasts, as when MACs are counted."""
    _PASSING.count += 1
    try:
        yield
    finally:
        _PASSING.count -= 1


def install(model: nn.Module, name: str, override_class: type[Override], handler: Handler) -> Override:
    """Puts an override in the place of a model's method, beneath the hooks of accelerate and diffusers: those take the method that they
    found with them when they go."""
    holder, attribute = _innermost(model) if name == "forward" else (model, name)
    override = override_class(getattr(holder, attribute), handler)
    setattr(holder, attribute, override)
    return override


def uninstall(model: nn.Module, name: str, override: Override) -> None:
    """Takes an override away; where something unknown has kept it, it passes every call on from now on."""
    override.handler = None
    for holder, attribute in (*_hooked(model), (model, name)):
        if vars(holder).get(attribute) is override:
            if holder is model and attribute == name and _is_method_of(model, override.plain):
                vars(model).pop(name)
            else:
                setattr(holder, attribute, override.plain)


def _innermost(model: nn.Module) -> tuple[Any, str]:
    """Object and attribute that hold the model's own `forward`."""
    for holder, attribute in _hooked(model):
        if _is_method_of(model, getattr(holder, attribute)):
            return holder, attribute
    return model, "forward"


def _hooked(model: nn.Module) -> list[tuple[Any, str]]:
    """Where hooks that stand in for `forward` may keep what they replaced."""
    places: list[tuple[Any, str]] = []
    registry = vars(model).get("_diffusers_hook")
    if registry is not None and registry._fn_refs:
        first = registry._fn_refs[0]
        places.append((first, "forward" if first.original_forward is None else "original_forward"))
    if "_old_forward" in vars(model):  # accelerate's
        places.append((model, "_old_forward"))
    return places


def _is_method_of(model: nn.Module, method: Any) -> bool:
    return isinstance(method, MethodType) and method.__self__ is model


def _same(method: Any) -> Any:
    return method
