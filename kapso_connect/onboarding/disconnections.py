"""Numbers that are disconnected, as was reported."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from ..db import retry_on_conflict
from ..exceptions import NeedsConfirmation, TryLater
from ..models import Connection, Customer, WebhookEvent
from ..utils import as_aware, as_instant
from .numbers import CHANGED_MEANWHILE, changed_since, lock_number, mark_disconnected
from .status import update_status


def disconnect(
    phone_number_id: str,
    *,
    source: str,
    customer: Customer | None = None,
    webhook_event: WebhookEvent | None = None,
    asked_at: datetime | None = None,
    occurred_at: datetime | None = None,
    data: Mapping[str, Any] | None = None,
    actor: AbstractBaseUser | None = None,
) -> Connection | None:
    """Record that a number is no longer connected, once.

    ``customer`` is whose number it was, if known. ``asked_at`` is when the API was asked and
    confirmed it; None for what is not confirmed. ``occurred_at`` is when it happened, if the
    signed body of ``webhook_event`` says so. ``data``, such as ``reason``, goes to the timeline.

    A number that is not known here, because its ``created`` event is late, is recorded as
    disconnected for ``customer`` without an event: then the API is asked before the late event
    connects anything. Return the connection, or None if there is none.

    Raise NeedsConfirmation without ``asked_at`` if this may be about an earlier connection of
    the number, or is what a webhook without a signed time says, which anyone who has seen one can
    send again; and TryLater with it if the number was connected after ``asked_at``.
    """

    def change() -> Connection | None:
        now = occurred_at or timezone.now()
        connection = lock_number(phone_number_id)
        if connection is None:
            if customer is None:
                return None
            return Connection.objects.create(
                phone_number_id=phone_number_id, customer=customer, disconnected_at=now
            )
        if not connection.is_connected:
            return connection
        if asked_at is None and _needs_confirmation(
            connection, customer, occurred_at, is_webhook=webhook_event is not None
        ):
            raise NeedsConfirmation
        if asked_at is not None and changed_since(connection, asked_at):
            raise TryLater(CHANGED_MEANWHILE)
        owner = connection.customer
        mark_disconnected(connection, owner, source, webhook_event, now, data or {}, actor)
        update_status(owner)
        return connection

    return retry_on_conflict(change)


def _needs_confirmation(
    connection: Connection,
    customer: Customer | None,
    occurred_at: datetime | None,
    *,
    is_webhook: bool,
) -> bool:
    """Return whether a report that a number was disconnected may be about an earlier connection."""
    if customer is not None and connection.customer_id != customer.pk:
        return True  # The number has moved; the report is about its time with the other customer.
    if occurred_at is None:
        # Without a time, the report may be about an earlier disconnection.
        return is_webhook or connection.disconnected_at is not None
    connected_times = connection.connected_at, connection.reported_connected_at
    happened = as_aware(occurred_at)
    return any(moment is not None and happened <= as_instant(moment) for moment in connected_times)
