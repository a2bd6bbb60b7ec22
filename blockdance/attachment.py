"""How BlockDance takes hold of a transformer: in which order, for whom, and how it lets go."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from diffusers.hooks.hooks import CacheContext
from torch import nn

from blockdance.drivers import Driver, find_driver
from blockdance.errors import BlockDanceError
from blockdance.overrides import ForwardOverride, Override, install, uninstall
from blockdance.session import Session

_ATTRIBUTE = "_blockdance"
_CREATING = threading.Lock()
"""Held while plans are added to transformers, or taken from them."""


class Attachment:
    """The hold on one transformer, for all plans that are on for it.

    Its `forward` is overridden, and its `cache_context`, in which pipelines tell branch and step. Each call finds out who drives it, and
    goes to that driver's generation; one call runs at a time. Copies of the transformer are plain.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self.lock = threading.RLock()
        self.sessions: list[Session] = []
        self._contexts = _Contexts()
        self._overrides = {"forward": install(transformer, "forward", ForwardOverride, self._call)}
        if getattr(transformer, "cache_context", None) is not None:
            self._overrides["cache_context"] = install(transformer, "cache_context", Override, self._name_context)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def steering(self, pipeline: Any) -> Session | None:
        """The plan that steers a pipeline's calls (None: of a loop that is no pipeline's): its own, else the one that is on for the
        transformer, else the only one.

        Raises:
            BlockDanceError: several pipelines have plans of their own, and it is not known which of them calls.
        """
        for session in self.sessions:
            if pipeline is not None and session.owner is pipeline:
                return session
        sessions = [session for session in self.sessions if not session.is_orphan and not session.is_left_by(pipeline)]
        candidates = [session for session in sessions if session.is_general] or sessions
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        name = type(self._transformer).__name__
        if pipeline is None:
            raise BlockDanceError(
                f"{len(candidates)} pipelines share this {name}, each with a BlockDance plan of its own, and this call comes from none of "
                "them. Call it from a method of the pipeline, or leave BlockDance on for one of them only."
            )
        warnings.warn(
            f"A {type(pipeline).__name__} without a BlockDance plan shares its {name} with {len(candidates)} pipelines that have one "
            "each: it runs plain. Turn it on for this pipeline too: `apply_blockdance(pipe, …)`.",
            stacklevel=2,
        )
        return None

    def let_go(self) -> None:
        """Makes the transformer what it was."""
        for name, override in self._overrides.items():
            uninstall(self._transformer, name, override)
        vars(self._transformer).pop(_ATTRIBUTE, None)

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        driver: Driver = find_driver(self._transformer, [session.owner for session in self.sessions])
        with self.lock:
            session = self.steering(driver.pipeline)
            if session is None:
                self._give_up_if_orphaned()
                return forward(*args, **kwargs)
            name = session.name_of(self._transformer)
            return session.call(name, forward, args, kwargs, self._contexts.current, driver)

    def _give_up_if_orphaned(self) -> None:
        """Says once that every pipeline that has a plan is gone, though the transformer lives on in another, and lets go."""
        with _CREATING:
            if not self.sessions or not all(session.is_orphan for session in self.sessions):
                return
            self.sessions = []
            self.let_go()
        warnings.warn(
            f"The pipeline that BlockDance was turned on for is gone, and its plan with it: this {type(self._transformer).__name__} runs "
            "plain. Turn it on for the pipeline that has the transformer now: `apply_blockdance(pipe, …)`.",
            stacklevel=2,
        )

    def _name_context(self, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _NamedContext(self._contexts, plain(*args, **kwargs), CacheContext(*args, **kwargs))


class _Contexts(threading.local):
    """The cache context that a pipeline has set, in each thread."""

    current: CacheContext | None = None


class _NamedContext:
    """Passes diffusers' cache context on to BlockDance as well."""

    def __init__(self, contexts: _Contexts, inner: AbstractContextManager[Any], context: CacheContext) -> None:
        self._contexts, self._inner, self._context = contexts, inner, context

    def __enter__(self) -> Any:
        self._contexts.current = self._context
        return self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._contexts.current = None
        return self._inner.__exit__(*error)


def attachment_of(transformer: nn.Module) -> Attachment | None:
    """The hold on a transformer, if there is one."""
    return vars(transformer).get(_ATTRIBUTE)


@contextmanager
def between_calls(transformers: Iterable[nn.Module]) -> Iterator[None]:
    """Waits for the calls of these transformers that other threads make, and holds off further ones: during a call, the model's block
    lists are views."""
    with ExitStack() as held:
        for transformer in sorted(transformers, key=id):  # all in one order, or two that hold one each might wait for ever
            attachment = attachment_of(transformer)
            if attachment is not None:
                held.enter_context(attachment.lock)
        yield


def attach(session: Session) -> None:
    """Turns a plan on.

    Raises:
        BlockDanceError: one is on already, for the same pipeline or for a transformer whoever drives it.
    """
    with _CREATING:
        for transformer in session.transformers.values():
            _refuse_second(transformer, session)
        for transformer in session.transformers.values():
            attachment = attachment_of(transformer)
            if attachment is None:
                attachment = Attachment(transformer)
                object.__setattr__(transformer, _ATTRIBUTE, attachment)
            attachment.sessions = [*(other for other in attachment.sessions if not other.is_orphan), session]


def is_on(session: Session) -> bool:
    """Whether a plan is on for any of its transformers."""
    attachments = [attachment_of(transformer) for transformer in session.transformers.values()]
    return any(attachment is not None and session in attachment.sessions for attachment in attachments)


def detach(session: Session) -> None:
    """Turns a plan off; does nothing where it is off."""
    with between_calls(session.transformers.values()):
        session.reset()
    with _CREATING:
        for transformer in session.transformers.values():
            attachment = attachment_of(transformer)
            if attachment is None or session not in attachment.sessions:
                continue
            attachment.sessions = [other for other in attachment.sessions if other is not session]
            if not attachment.sessions:
                attachment.let_go()


def refuse_steered(transformer: nn.Module, pipeline: Any) -> None:
    """Sees that a pipeline's calls of a transformer are plain, for measurements of what they would be without a plan.

    Raises:
        BlockDanceError: a plan steers them.
    """
    attachment = attachment_of(transformer)
    if attachment is not None and attachment.steering(pipeline) is not None:
        raise BlockDanceError(
            f"BlockDance is on for this {type(transformer).__name__}, so its steps that reuse would be measured, and not what they reuse. "
            "Turn it off first: `remove_blockdance(pipe)`, or the `remove()` of the handle that `apply_blockdance` returned."
        )


def _refuse_second(transformer: nn.Module, session: Session) -> None:
    attachment = attachment_of(transformer)
    for other in [] if attachment is None else attachment.sessions:
        if other.is_orphan:
            continue
        if other.is_general or session.is_general or other.owner is session.owner:
            raise BlockDanceError(
                f"BlockDance is already on for this {type(transformer).__name__}. Turn it off first: `remove_blockdance(pipe)`, or "
                "the `remove()` of the handle that `apply_blockdance` returned."
            )
