"""The details of a number that only a webhook has told of: the number itself, its name, its type.

Kapso's webhook says only which number was connected, so the API is asked before the signal is
sent. Where it does not answer in time, the signal is sent without the details, and they follow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial

from .. import db, outbox
from ..conf import DETAILS_BUDGET
from ..db import task
from ..exceptions import KapsoNotFound
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoPhoneNumber
from ..log import log_event
from ..models import Connection, Source, TimelineEvent
from ..utils import utc_now
from .numbers import Number, add_details
from .remote_numbers import is_closed

Kind = TimelineEvent.Kind

NOT_SHOWN_DELAY = 0.5
"""Seconds until a number is asked for again that the API does not show yet."""

MAX_ATTEMPTS_WITH_DETAILS = 2
"""Later attempts at a signal ask for nothing: the first processes may have died while asking."""

DETAILS_RETRY_DELAY = timedelta(minutes=1)

_deadline: ContextVar[float | None] = ContextVar("kapso_connect_details_deadline", default=None)


@contextmanager
def details_budget(seconds: float) -> Iterator[None]:
    """Let all requests for details in the block together take at most ``seconds``."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def request_after_commit(connection: Connection) -> None:
    """Ask for the details of ``connection`` after the commit, if they are missing and no signal is
    sent: before a signal, ``complete_event`` does it."""
    if _are_missing(connection) and not outbox.has_receivers(Kind.CONNECTED):
        immediately = db.runs_immediately(request_details)
        db.enqueue_on_commit(
            request_details,
            connection.pk,
            run_immediately=partial(_ask_and_store, connection) if immediately else None,
        )


@task()
def request_details(connection_id: int) -> None:
    """Ask for the details of a number once; ``kapso_sync`` asks for what is still missing."""
    connection = Connection.objects.filter(pk=connection_id).first()
    if connection is not None and _are_missing(connection):
        _ask_and_store(connection, source=Source.SYNC)


def complete_event(event: TimelineEvent) -> bool:
    """Before its signal is sent, ask for the details of the number of an event that only a webhook
    has told of. Return False if nothing is missing."""
    connection = event.connection
    may_ask = event.source == Source.WEBHOOK and event.attempts <= MAX_ATTEMPTS_WITH_DETAILS
    if connection is None or not may_ask or not _are_missing(connection):
        return False
    # Meanwhile the customer's browser may have returned, whose redirect was confirmed by the API.
    connection = Connection.objects.filter(pk=connection.pk).first()
    if connection is None:
        return False
    event.connection = connection
    if not _are_missing(connection):
        return False
    complete = _ask_and_store(connection)
    if complete is not None:
        event.connection = complete
    else:
        # Asking took time: receivers get the number as it is now.
        event.connection = Connection.objects.filter(pk=connection.pk).first() or connection
        db.enqueue_later_on_commit(request_details, connection.pk, utc_now() + DETAILS_RETRY_DELAY)
    return True


outbox.BEFORE_SENDING[Kind.CONNECTED] = complete_event


def _are_missing(connection: Connection) -> bool:
    return connection.is_connected and not connection.display_phone_number


def _ask_and_store(connection: Connection, *, source: str = "") -> Connection | None:
    """Return the connection with its details, or None if the API does not say them in time."""
    try:
        remote = _ask(connection.phone_number_id)
        if remote is None or is_closed(remote):
            return None
        if remote.customer_id is None or remote.customer_id != connection.customer.kapso_id:
            return None  # It has moved: its own webhook, or kapso_sync, records that.
        return add_details(connection, Number.from_api(remote), source=source)
    except Exception as error:
        # The signal must not wait for them, whatever the reason is.
        log_event("number.details_missing", connection_id=connection.pk, error=str(error))
        return None


def _ask(phone_number_id: str) -> KapsoPhoneNumber | None:
    """Return the number as the API shows it; None if it does not within ``DETAILS_BUDGET``."""
    shared_deadline = _deadline.get()
    deadline = time.monotonic() + DETAILS_BUDGET
    if shared_deadline is not None:
        deadline = min(deadline, shared_deadline)
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    client = KapsoClient.from_settings(budget=left, attempts=1)
    while True:
        try:
            return client.get_phone_number(phone_number_id)
        except KapsoNotFound:
            if time.monotonic() + NOT_SHOWN_DELAY >= deadline:
                return None
            time.sleep(NOT_SHOWN_DELAY)
