"""The public signals. Hook them as any Django signal: ``@receiver(whatsapp_connected)``.

Each is sent after the transaction that recorded it committed, from its row in the timeline
(``event``, a ConnectionEvent). ``event.pk`` is the receiver's idempotency key: a signal is sent
once, and again only to a receiver that raised, or when the process died between calling the
receivers and recording that. A receiver that raises is logged, noted on the event, and tried again
by ``kapso_sync``; it never costs Kapso its answer. Retries may come late: where it matters, look at
``connection.status``, which is what was just committed or, in a retry and from a queue, what the
database says just before the signal is sent.

All carry ``event`` and ``source`` ("webhook", "redirect", "sync" or "manual").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.dispatch import Signal

from .observe import note

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
        note("signal.receiver_raised", receiver=name, error=type(err).__name__, exc_info=err)


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


setup_link_created = ConnectSignal()
"""A setup link was made for a customer. ``sender=SetupLink``.

Arguments: ``setup_link``, ``customer``, ``source``, ``event``.
"""

whatsapp_connected = ConnectSignal()
"""A customer connected a number. ``sender=Connection``. Sent once for each connection, whichever
of webhook, redirect and sync came first.

Arguments: ``connection``, ``customer``, ``setup_link`` (None where no link of ours led to it),
``source``, ``event``.
"""

whatsapp_disconnected = ConnectSignal()
"""A number is no longer connected for its customer. ``sender=Connection``.

Arguments: ``connection``, ``customer`` (the one who lost it), ``setup_link`` (or None),
``source``, ``event`` (``event.data["reason"]`` says why, where Kapso did).
"""

whatsapp_reconnected = ConnectSignal()
"""A disconnected number works again for the same customer. ``sender=Connection``.

Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``.
"""

whatsapp_setup_failed = ConnectSignal()
"""A customer came back from Kapso's page without a connection. ``sender=SetupLink``.

Arguments: ``setup_link``, ``customer``, ``error_code`` (Kapso's, such as
"facebook_auth_failed"), ``source``, ``event``.
"""

whatsapp_account_updated = ConnectSignal()
"""Meta restricted, disabled or reinstated the account a number belongs to, or found a violation.
``sender=Connection``; one signal for each known number of the account.

Arguments: ``connection``, ``customer``, ``setup_link`` (or None), ``source``, ``event``
(``event.data`` holds ``event`` and what Kapso told: restrictions, violation, ban).
"""

webhook_received = ConnectSignal()
"""A signed delivery was stored, known to this package or not. ``sender=WebhookEvent``.

Arguments: ``webhook_event``, ``event_name`` (Kapso's), ``payload`` (dict), ``source``,
``event``.
"""
