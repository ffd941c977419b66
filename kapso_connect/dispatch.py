"""A Django signal that can be sent to some of its receivers."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.dispatch import Signal

from .log import log_event

_excluded: ContextVar[frozenset[str]] = ContextVar(
    "kapso_connect_excluded_receivers", default=frozenset()
)


class ConnectSignal(Signal):
    """A Signal with a docstring of its own, which can be sent to some of its receivers."""

    def __init__(self, doc: str) -> None:
        super().__init__()
        self.__doc__ = inspect.cleandoc(doc)

    @contextmanager
    def excluding(self, names: Collection[str]) -> Iterator[None]:
        """Leave out the receivers with these names (``receiver_name``) within the block."""
        token = _excluded.set(frozenset(names))
        try:
            yield
        finally:
            _excluded.reset(token)

    # Django has no public way to send to some of the receivers; the tests check this
    # on each supported version.
    def _live_receivers(self, sender: Any) -> Any:
        excluded = _excluded.get()
        live = super()._live_receivers(sender)
        if not excluded:
            return live
        return tuple([r for r in part if receiver_name(r) not in excluded] for part in live)

    # Django's own fails on a receiver without __qualname__ (an object, a partial), and then the
    # remaining receivers are not called.
    def _log_robust_failure(self, receiver: Callable[..., Any], err: Exception) -> None:
        name = receiver_name(receiver)
        log_event("signal.receiver_raised", receiver=name, error=type(err).__name__, exc_info=err)


def receiver_name(receiver: Callable[..., Any]) -> str:
    """Return the name that identifies a receiver in every process."""
    owner = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{owner.__module__}.{owner.__qualname__}"


def successful_receivers(responses: list[tuple[Callable[..., Any], Any]]) -> set[str]:
    """Return the names of the receivers that did not raise.

    If several share a name (two lambdas of a module), all of them must have returned.
    """
    called = Counter(receiver_name(receiver) for receiver, _ in responses)
    returned = Counter(
        receiver_name(receiver)
        for receiver, response in responses
        if not isinstance(response, Exception)
    )
    return {name for name, count in called.items() if returned[name] == count}
