"""A Django signal that can be sent to some of its receivers."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from asgiref.sync import async_to_sync
from django.dispatch import Signal

from .log import log_event


class ConnectSignal(Signal):
    """A Signal with a docstring of its own, which can be sent to some of its receivers."""

    def __init__(self, doc: str) -> None:
        super().__init__()
        self.__doc__ = inspect.cleandoc(doc)

    def send_to_remaining(
        self, sender: Any, done: Collection[str], **arguments: Any
    ) -> list[tuple[Callable[..., Any], Exception | None]]:
        """Call the receivers whose names (``receiver_name``) are not in ``done``, as
        ``send_robust`` does. Return each with the error that it raised, or None."""
        # Django has no public way to call some of the receivers; the tests check this on each
        # supported version.
        synchronous, asynchronous = self._live_receivers(sender)
        callables = [
            *((receiver, receiver) for receiver in synchronous),
            *((receiver, async_to_sync(receiver)) for receiver in asynchronous),
        ]
        outcomes: list[tuple[Callable[..., Any], Exception | None]] = []
        for receiver, call in callables:
            name = receiver_name(receiver)
            if name in done:
                continue
            try:
                call(signal=self, sender=sender, **arguments)
            except Exception as error:
                log_event(
                    "signal.receiver_raised",
                    receiver=name,
                    error=type(error).__name__,
                    exc_info=error,
                )
                outcomes.append((receiver, error))
            else:
                outcomes.append((receiver, None))
        return outcomes


def receiver_name(receiver: Callable[..., Any]) -> str:
    """Return the name that identifies a receiver in every process."""
    owner = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{owner.__module__}.{owner.__qualname__}"


def successful_receivers(
    outcomes: list[tuple[Callable[..., Any], Exception | None]],
) -> set[str]:
    """Return the names of the receivers that did not raise.

    If several share a name (two lambdas of a module), all of them must have returned.
    """
    called = Counter(receiver_name(receiver) for receiver, _ in outcomes)
    returned = Counter(receiver_name(receiver) for receiver, error in outcomes if error is None)
    return {name for name, count in called.items() if returned[name] == count}
