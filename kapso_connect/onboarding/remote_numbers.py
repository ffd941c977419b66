"""Numbers brought in line with Kapso's API: connected, reconnected, moved, or gone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from ..db import refuse_in_transaction
from ..exceptions import KapsoNotFound, NumberMoved, TryLater
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoPhoneNumber
from ..models import Connection, Customer, SetupLink, Source, TimelineEvent, WebhookEvent
from ..utils import as_aware, as_instant, time_since
from .customers import customer_from_api
from .disconnections import disconnect
from .numbers import Number, connect

Kind = TimelineEvent.Kind

STALE_READ_WINDOW = timedelta(minutes=2)
"""How long after a disconnection the API may still show the number as it was before: Kapso sends
``whatsapp.phone_number.deleted`` when its teardown starts."""

NOT_SHOWN_YET_WINDOW = timedelta(seconds=30)
"""How long after ``whatsapp.phone_number.created`` the API may not show the number yet."""

CLOSED_STATUSES = {"DISCONNECTED", "DELETED", "MIGRATED"}
"""Values of the API's ``status`` (Meta's words) of a number that no longer works here."""


def refresh_number(
    phone_number_id: str,
    *,
    source: str,
    client: KapsoClient,
    webhook_event: WebhookEvent | None = None,
    data: Mapping[str, Any] | None = None,
    reconnected_at: datetime | None = None,
    is_expected: bool = False,
) -> Connection | None:
    """Fetch a number from the API and record its current state.

    ``data`` goes to the timeline if the number turns out to be gone. ``reconnected_at`` is when it
    was connected again, if the signed body of a webhook says so. ``is_expected`` is True if the
    number was just reported as connected, so that the API may not show it yet.

    Return the connection, or None for a number that is not, and never was, a customer's of this
    site. Raise TryLater if the API cannot tell yet, a KapsoError if it is unavailable, and
    CalledInTransaction inside a transaction.
    """
    refuse_in_transaction()
    asked_at = timezone.now()
    remote = find_remote_number(phone_number_id, client, is_expected=is_expected)
    if remote is None:
        return disconnect(
            phone_number_id,
            source=source,
            webhook_event=webhook_event,
            asked_at=asked_at,
            data=data or {"reason": "not_found"},
            is_gone=True,
        )
    customer = customer_from_api(remote.customer_id, client) if remote.customer_id else None
    return apply_remote_number(
        customer,
        remote,
        asked_at=asked_at,
        source=source,
        webhook_event=webhook_event,
        data=data,
        reconnected_at=reconnected_at,
    )


def find_remote_number(
    phone_number_id: str, client: KapsoClient, *, is_expected: bool = False
) -> KapsoPhoneNumber | None:
    """Return a number as the API shows it; None if Kapso no longer has it. Raise TryLater for one
    that was just connected here, or is expected: the API may not show it yet."""
    try:
        return client.get_phone_number(phone_number_id)
    except KapsoNotFound:
        known = Connection.objects.connected().filter(phone_number_id=phone_number_id).first()
    if is_expected:
        raise TryLater("Kapso's API does not show the number yet.")
    connected_at = known.connected_at if known else None
    if connected_at is not None and time_since(connected_at) < NOT_SHOWN_YET_WINDOW:
        raise TryLater("The number was just connected: the API may not show it yet.")
    return None


def confirm_owner(connection: Connection, client: KapsoClient) -> bool:
    """Ask the API whether a number is still its customer's. Call it before the number is touched
    at Kapso on behalf of that customer.

    Return False if Kapso no longer has the number. If the number is not the customer's, record
    what the API says, which both customers get their events of, and raise NumberMoved. Raise
    TryLater or a KapsoError if the API cannot tell.
    """
    asked_at = timezone.now()
    remote = find_remote_number(connection.phone_number_id, client)
    if remote is not None and remote.customer_id != connection.customer.kapso_id:
        customer = customer_from_api(remote.customer_id, client) if remote.customer_id else None
        apply_remote_number(customer, remote, asked_at=asked_at, source=Source.SYNC)
        if customer is None or customer.pk != connection.customer_id:
            raise NumberMoved
    check_owner(connection)
    return remote is not None


def check_owner(connection: Connection) -> None:
    """Raise NumberMoved if ``connection`` was recorded for another customer since it was read."""
    rows = Connection.objects.filter(pk=connection.pk, customer=connection.customer_id)
    if not rows.exists():
        raise NumberMoved


def apply_remote_number(
    customer: Customer | None,
    remote: KapsoPhoneNumber,
    *,
    asked_at: datetime,
    source: str,
    setup_link: SetupLink | None = None,
    webhook_event: WebhookEvent | None = None,
    provisioned_phone_number_id: str = "",
    data: Mapping[str, Any] | None = None,
    reconnected_at: datetime | None = None,
) -> Connection | None:
    """Record what ``remote``, read from the API, says about a number.

    ``asked_at`` is when the request began: what was recorded since then is newer and stays.
    ``reconnected_at`` is as for ``refresh_number``.
    ``customer`` is the customer here with the id ``remote.customer_id``; None for a number of the
    Kapso project itself, or of a customer that is none of this site's. Return and raise as
    ``refresh_number`` does.
    """
    number = Number.from_api(remote, provisioned_phone_number_id=provisioned_phone_number_id)
    known = Connection.objects.filter(phone_number_id=number.phone_number_id).first()
    status = (remote.status or "").upper()
    if customer is None or is_closed(remote):
        without_customer = "moved" if remote.customer_id else "no_customer"
        return disconnect(
            number.phone_number_id,
            source=source,
            webhook_event=webhook_event,
            asked_at=asked_at,
            data=data or {"reason": status.lower() if customer else without_customer},
            is_gone=customer is None,
            is_elsewhere=customer is None,
        )
    kind = Kind.CONNECTED
    if known is not None and not known.is_connected and known.customer_id == customer.pk:
        disconnected_at = known.disconnected_at
        if disconnected_at is not None and as_instant(remote.created_at) <= as_instant(
            disconnected_at
        ):
            # The same record that was disconnected: it stays readable for a moment.
            if status not in {"", "CONNECTED"}:
                return known
            is_later = reconnected_at is not None and as_aware(reconnected_at) >= as_instant(
                disconnected_at
            )
            if not is_later and time_since(disconnected_at) < STALE_READ_WINDOW:
                raise TryLater("Kapso still shows the number as it was before it was disconnected.")
            if known.connected_at is not None:
                kind = Kind.RECONNECTED
    return connect(
        customer,
        number,
        source=source,
        setup_link=setup_link,
        webhook_event=webhook_event,
        asked_at=asked_at,
        since=remote.created_at if known is None else None,
        kind=kind,
    )


def record_numbers(customer: Customer, client: KapsoClient) -> None:
    """Record the numbers of ``customer`` that Kapso shows, except those about which the API cannot
    tell yet."""
    asked_at = timezone.now()
    for remote in client.list_phone_numbers(customer_id=customer.kapso_id):
        if remote.customer_id == customer.kapso_id:
            with suppress(TryLater):
                apply_remote_number(customer, remote, asked_at=asked_at, source=Source.SYNC)


def is_closed(remote: KapsoPhoneNumber) -> bool:
    """Return whether the API shows a number that no longer works here."""
    return (remote.status or "").upper() in CLOSED_STATUSES
