"""A Django signal that can be sent to some of its receivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.dispatch import Signal

from .log import log_event

_done: ContextVar[frozenset[str]] = ContextVar("kapso_connect_receivers_done", default=frozenset())


def receiver_name(receiver: Callable[..., Any]) -> str:
    """Return the name under which a receiver is remembered: the same in every process."""
    owner = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{owner.__module__}.{owner.__qualname__}"


class ConnectSignal(Signal):
    """A Signal that can leave out the receivers that have had it already."""

    @contextmanager
    def leaving_out(self, names: Collection[str]) -> Iterator[None]:
        token = _done.set(frozenset(names))
        try:
            yield
        finally:
            _done.reset(token)

    # Django has no public way to send to some of the receivers; the tests hold this to
    # each supported version.
    def _live_receivers(self, sender: Any) -> Any:
        done = _done.get()
        live = super()._live_receivers(sender)
        if not done:
            return live
        return tuple([r for r in part if receiver_name(r) not in done] for part in live)

    # Django's own fails on a receiver without __qualname__ (an object, a partial), and takes the
    # other receivers with it.
    def _log_robust_failure(self, receiver: Callable[..., Any], err: Exception) -> None:
        name = receiver_name(receiver)
        log_event("signal.receiver_raised", receiver=name, error=type(err).__name__, exc_info=err)


def names_done(responses: list[tuple[Callable[..., Any], Any]]) -> set[str]:
    """Return the names of the receivers that did not raise.

    Where several share a name (two lambdas of a module), all of them must have returned.
    """
    names = Counter(receiver_name(receiver) for receiver, _ in responses)
    good = Counter(
        receiver_name(receiver)
        for receiver, response in responses
        if not isinstance(response, Exception)
    )
    return {name for name, count in names.items() if good[name] == count}
