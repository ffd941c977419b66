"""Numbers that are disconnected, as was reported."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from ..db import retry_on_conflict
from ..exceptions import NeedsConfirmation, TryLater
from ..models import DISCONNECTED_BY_STAFF, OFFBOARDED, Connection, Customer, WebhookEvent
from ..utils import as_aware, as_instant
from .numbers import CHANGED_MEANWHILE, connected_since, lock_number, mark_disconnected
from .status import update_status

REMOVAL_WINDOW = timedelta(hours=1)
"""How long after staff had a number removed its disconnection is taken to be theirs. Kapso reports
it within minutes, and where a report is lost or the API is away, a run of ``kapso_sync`` finds it.
If Kapso had not removed it after all, it is later more likely to be the customer who did."""


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
    is_gone: bool = False,
    is_elsewhere: bool = False,
) -> Connection | None:
    """Record that a number is no longer connected, once.

    ``customer`` is whose number it was, if known. ``asked_at`` is when the API was asked and
    confirmed it; None for what is not confirmed. ``occurred_at`` is when it happened, if the
    signed body of ``webhook_event`` says so. ``data``, such as ``reason``, goes to the timeline.

    If staff have just had the number removed, the reason and the actor are theirs, whoever reports
    it first; not if Kapso still has it, but not for this customer (``is_elsewhere``), or if Meta
    paused it.

    A number that Meta has paused is disconnected for good, with an event of its own, once another
    reason is certain: Kapso has no such number (``is_gone``), or what says so happened later.

    A number that is not known here, because its ``created`` event is late, is recorded as
    disconnected for ``customer`` without an event: then the API is asked before the late event
    connects anything. Return the connection, or None if there is none.

    Raise NeedsConfirmation without ``asked_at`` if this may be about an earlier connection of
    the number, or is what a webhook without a signed time says, which anyone who has seen one can
    send again; and TryLater with it if the number was connected after ``asked_at``.
    """

    is_webhook = webhook_event is not None and asked_at is None

    def change() -> Connection | None:
        now = occurred_at or timezone.now()
        facts, actor_id = dict(data or {}), actor.pk if actor else None
        connection = lock_number(phone_number_id)
        if connection is None:
            if customer is None:
                return None
            return Connection.objects.create(
                phone_number_id=phone_number_id, customer=customer, disconnected_at=now
            )
        if not connection.is_connected and not _ends_pause(
            connection, occurred_at, data or {}, is_gone=is_gone, is_webhook=is_webhook
        ):
            return connection
        if asked_at is None and _needs_confirmation(
            connection, customer, occurred_at, is_webhook=is_webhook
        ):
            raise NeedsConfirmation
        if asked_at is not None and connected_since(connection, asked_at):
            raise TryLater(CHANGED_MEANWHILE)
        is_paused_now = facts.get("reason") == OFFBOARDED
        if _is_removed_by_staff(connection, now) and not (is_elsewhere or is_paused_now):
            facts["reason"] = DISCONNECTED_BY_STAFF
            actor_id = actor_id or connection.removal_requested_by_id
        owner = connection.customer
        mark_disconnected(connection, owner, source, webhook_event, now, facts, actor_id)
        update_status(owner)
        return connection

    return retry_on_conflict(change)


def _is_removed_by_staff(connection: Connection, disconnected_at: datetime) -> bool:
    """Return whether staff had the number removed shortly before ``disconnected_at``, and it was
    not reported as connected again since."""
    if connection.removal_requested_at is None:
        return False
    # Times in webhooks may be those of whole seconds.
    requested_at = as_instant(connection.removal_requested_at).replace(microsecond=0)
    reconnected_at = connection.reported_connected_at
    if reconnected_at is not None and as_instant(reconnected_at) >= requested_at:
        return False
    return requested_at <= as_aware(disconnected_at) <= requested_at + REMOVAL_WINDOW


def _ends_pause(
    connection: Connection,
    occurred_at: datetime | None,
    data: Mapping[str, Any],
    *,
    is_gone: bool,
    is_webhook: bool,
) -> bool:
    """Return whether a number that is not connected was only paused, and this report is, or may be,
    about a disconnection for good."""
    if not connection.is_paused or data.get("reason") == OFFBOARDED:
        return False
    if is_gone or not is_webhook:  # while it is paused, the API says that it is not connected
        return is_gone
    paused_at = connection.disconnected_at
    if occurred_at is None or paused_at is None:
        return True
    return as_aware(occurred_at) >= as_instant(paused_at)


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
