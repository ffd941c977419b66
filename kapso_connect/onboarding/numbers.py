"""Numbers: connected, disconnected, and updated to what Kapso's API says about them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError
from django.utils import timezone

from .. import outbox
from ..db import retry_on_conflict
from ..exceptions import KapsoNotFound, NeedsConfirmation, TryLater
from ..kapso.client import KapsoClient
from ..kapso.types import ConnectionType, KapsoPhoneNumber
from ..models import (
    AccountStatus,
    Connection,
    Customer,
    SetupLink,
    Source,
    TimelineEvent,
    WebhookEvent,
)
from ..statements import insert
from .customers import customer_from_api
from .setup_links import complete, complete_open, open_links, revoke_setup_link

Kind = TimelineEvent.Kind

STALE_READ_WINDOW = timedelta(minutes=2)
"""How long after a disconnection the API may still show the number as it was before: Kapso sends
``whatsapp.phone_number.deleted`` when its teardown starts."""

CLOSED_STATUSES = {"DISCONNECTED", "DELETED", "MIGRATED"}
"""Values of the API's ``status`` (Meta's words) of a number that no longer works here."""

DISCONNECTED_BY_STAFF = "staff"
"""The reason of a disconnection that a member of staff asked for."""

CHANGED_MEANWHILE = "The number changed while Kapso's API was being asked about it."


@dataclass(frozen=True)
class Number:
    """What a webhook, a redirect or the API says about a number; "" for what it does not say."""

    phone_number_id: str
    business_account_id: str = ""
    provisioned_phone_number_id: str = ""
    display_phone_number: str = ""
    verified_name: str = ""
    connection_type: str = ""
    quality_rating: str = ""
    name_status: str = ""

    @classmethod
    def from_api(cls, number: KapsoPhoneNumber, **more: str) -> Number:
        """Return what the API says about a number; ``more`` are fields that it does not have."""
        return cls(
            phone_number_id=number.phone_number_id,
            business_account_id=(number.business_account_id or "")[:64],
            display_phone_number=(number.display_phone_number or "")[:64],
            verified_name=(number.verified_name or "")[:255],
            connection_type={
                True: ConnectionType.COEXISTENCE.value,
                False: ConnectionType.DEDICATED.value,
                None: "",
            }[number.is_coexistence],
            quality_rating=(number.quality_rating or "")[:32],
            name_status=(number.name_status or "")[:64],
            **more,
        )


@dataclass(frozen=True)
class KnownCustomer:
    """A customer who was just read for a number that has no connection yet, with the link that led
    to it, if any.

    ``connect`` then reads nothing. If this is outdated, it raises Outdated.
    """

    customer_id: int
    setup_link_id: int | None


class Outdated(IntegrityError):
    """What was just read has changed: as with any lost race, the transaction has to run again."""


def connect(
    customer: Customer | KnownCustomer,
    number: Number,
    *,
    source: str,
    setup_link: SetupLink | None = None,
    webhook_event: WebhookEvent | None = None,
    asked_at: datetime | None = None,
    since: datetime | None = None,
    occurred_at: datetime | None = None,
    kind: str = Kind.CONNECTED,
) -> Connection:
    """Record that ``number`` is connected for ``customer``, once, whichever source reports it
    first.

    If it is connected for this customer already, missing details are filled in (and corrected, if
    the API was asked), and no event is recorded.

    ``asked_at`` is when the API was asked and confirmed it; None for what is not confirmed.
    ``since`` is when the number was added to Kapso, if known: no link created later led to it.
    ``kind`` is the event for a number that was connected before: CONNECTED or RECONNECTED.

    Raise NeedsConfirmation without ``asked_at`` if the number is another customer's or was
    disconnected, and TryLater with it if that was recorded after ``asked_at``.
    """
    if isinstance(customer, KnownCustomer):
        return _connect_known_customer(customer, number, source, webhook_event)

    def change() -> Connection:
        now = occurred_at or timezone.now()
        connection = (
            Connection.objects.select_for_update()
            .filter(phone_number_id=number.phone_number_id)
            .first()
        )
        if connection is None:
            connection = Connection(phone_number_id=number.phone_number_id, customer=customer)
        elif connection.is_connected and connection.customer_id == customer.pk:
            _update_connected(connection, number, setup_link, overwrite=asked_at is not None)
            return connection
        elif asked_at is None:
            raise NeedsConfirmation
        elif _changed_since(connection, asked_at):
            raise TryLater(CHANGED_MEANWHILE)
        elif connection.is_connected:
            _mark_disconnected(connection, source, webhook_event, now, {"reason": "moved"})
        if connection.customer_id != customer.pk:
            # These were about the number while it was the other customer's.
            connection.setup_link = None
            connection.health_status = connection.health_error = ""
            connection.health_checked_at = None
        connection.customer = customer
        connection.status = Connection.Status.CONNECTED
        connection.connected_at = now
        _copy_details(connection, number, overwrite=True)
        link = setup_link or open_links(customer, number.phone_number_id, since).first()
        if link is not None:
            connection.setup_link = link
            complete(link)
        connection.save()
        outbox.record(
            kind,
            source=source,
            customer=customer,
            connection=connection,
            setup_link=link,
            webhook_event=webhook_event,
            occurred_at=now,
        )
        return connection

    return retry_on_conflict(change)


def _connect_known_customer(
    known_customer: KnownCustomer, number: Number, source: str, webhook_event: WebhookEvent | None
) -> Connection:
    def change() -> Connection:
        now = timezone.now()
        link_id = known_customer.setup_link_id
        if link_id is not None and not complete_open(link_id, number.phone_number_id):
            raise Outdated("The setup link was completed or ended in the meantime.")
        connection = Connection(
            customer_id=known_customer.customer_id,
            setup_link_id=link_id,
            status=Connection.Status.CONNECTED,
            connected_at=now,
            **vars(number),
        )
        insert(connection)
        outbox.record(
            Kind.CONNECTED,
            source=source,
            customer_id=known_customer.customer_id,
            connection=connection,
            setup_link_id=link_id,
            webhook_event=webhook_event,
            occurred_at=now,
        )
        return connection

    return retry_on_conflict(change)


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
    confirmed it; None for what is not confirmed. ``data``, such as ``reason``, goes to the
    timeline.

    A number that is not known here, because its ``created`` event is late, is recorded as
    disconnected for ``customer`` without an event: then the API is asked before the late event
    connects anything. Return the connection, or None if there is none.

    Raise NeedsConfirmation without ``asked_at`` if this may be about an earlier connection of
    the number, and TryLater with it if the number was connected after ``asked_at``.
    """

    def change() -> Connection | None:
        now = occurred_at or timezone.now()
        connection = (
            Connection.objects.select_for_update().filter(phone_number_id=phone_number_id).first()
        )
        if connection is None:
            if customer is None:
                return None
            return Connection.objects.create(
                phone_number_id=phone_number_id, customer=customer, disconnected_at=now
            )
        if not connection.is_connected:
            return connection
        if asked_at is None and _needs_confirmation(connection, customer, occurred_at):
            raise NeedsConfirmation
        if asked_at is not None and _changed_since(connection, asked_at):
            raise TryLater(CHANGED_MEANWHILE)
        _mark_disconnected(connection, source, webhook_event, now, dict(data or {}), actor)
        return connection

    return retry_on_conflict(change)


def disconnect_number(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> Connection:
    """Remove a number from Kapso and record that it is disconnected, on behalf of ``actor``.

    The customer's links are revoked first, and the connect URL afterwards: whoever has them must
    not connect the number again. A number that is disconnected already stays as it is.
    Raise a KapsoError if Kapso refuses or is unavailable, and TryLater if the number was connected
    again in the meantime; it is then unchanged.
    """
    if not connection.is_connected:
        return connection
    if client is None:
        with KapsoClient.from_settings() as own:
            return disconnect_number(connection, actor=actor, client=own)
    active = SetupLink.objects.filter(
        customer=connection.customer_id, status=SetupLink.Status.ACTIVE
    )
    for link in active.select_related("customer"):
        revoke_setup_link(link, actor=actor, client=client)
    asked_at = timezone.now()
    with suppress(KapsoNotFound):  # It no longer exists, which is what was wanted.
        client.delete_phone_number(connection.phone_number_id)
    disconnected = disconnect(
        connection.phone_number_id,
        source=Source.MANUAL,
        asked_at=asked_at,
        data={"reason": DISCONNECTED_BY_STAFF},
        actor=actor,
    )

    def change() -> None:
        # The webhook about it may have been faster than the API's answer.
        TimelineEvent.objects.filter(
            connection=connection, kind=Kind.DISCONNECTED, actor=None, occurred_at__gte=asked_at
        ).update(actor=actor)
        Connection.objects.filter(
            pk=connection.pk, status=Connection.Status.DISCONNECTED, disconnected_at__gte=asked_at
        ).update(disconnect_reason=DISCONNECTED_BY_STAFF)
        # After the connection, as everywhere: rows locked in one order cause no deadlock.
        Customer.objects.filter(pk=connection.customer_id).update(connect_key=None)

    retry_on_conflict(change)
    return disconnected or connection


def refresh_number(
    phone_number_id: str,
    *,
    source: str,
    client: KapsoClient,
    webhook_event: WebhookEvent | None = None,
    data: Mapping[str, Any] | None = None,
) -> Connection | None:
    """Fetch a number from the API and record its current state.

    ``data`` goes to the timeline if the number turns out to be gone.

    Return the connection, or None for a number that is not, and never was, a customer's of this
    site. Raise TryLater if the API cannot tell yet, and a KapsoError if it is unavailable.
    """
    asked_at = timezone.now()
    try:
        remote = client.get_phone_number(phone_number_id)
    except KapsoNotFound:
        return disconnect(
            phone_number_id,
            source=source,
            webhook_event=webhook_event,
            asked_at=asked_at,
            data=data or {"reason": "not_found"},
        )
    customer = customer_from_api(remote.customer_id, client) if remote.customer_id else None
    return apply_remote_number(
        customer, remote, asked_at=asked_at, source=source, webhook_event=webhook_event, data=data
    )


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
) -> Connection | None:
    """Record what ``remote``, read from the API, says about a number.

    ``asked_at`` is when the request began: what was recorded since then is newer and stays.
    ``customer`` is the customer here with the id ``remote.customer_id``; None for a number of the
    Kapso project itself. Return and raise as ``refresh_number`` does.
    """
    number = Number.from_api(remote, provisioned_phone_number_id=provisioned_phone_number_id)
    known = Connection.objects.filter(phone_number_id=number.phone_number_id).first()
    status = (remote.status or "").upper()
    if customer is None or is_closed(remote):
        return disconnect(
            number.phone_number_id,
            source=source,
            webhook_event=webhook_event,
            asked_at=asked_at,
            data=data or {"reason": status.lower() if customer else "no_customer"},
        )
    kind = Kind.CONNECTED
    if known is not None and not known.is_connected and known.customer_id == customer.pk:
        disconnected_at = known.disconnected_at
        if disconnected_at is not None and remote.created_at <= disconnected_at:
            # The same record that was disconnected: it stays readable for a moment.
            if status not in {"", "CONNECTED"}:
                return known
            if timezone.now() - disconnected_at < STALE_READ_WINDOW:
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


def is_closed(remote: KapsoPhoneNumber) -> bool:
    """Return whether the API shows a number that no longer works here."""
    return (remote.status or "").upper() in CLOSED_STATUSES


def _changed_since(connection: Connection, asked_at: datetime) -> bool:
    times = connection.connected_at, connection.disconnected_at
    return any(moment is not None and moment >= asked_at for moment in times)


def _needs_confirmation(
    connection: Connection, customer: Customer | None, occurred_at: datetime | None
) -> bool:
    """Return whether a report that a number was disconnected may be about an earlier connection."""
    if customer is not None and connection.customer_id != customer.pk:
        return True  # The number has moved; the report is about its time with the other customer.
    if occurred_at is None:
        # Without a time, the report may be about an earlier disconnection.
        return connection.disconnected_at is not None
    return connection.connected_at is not None and occurred_at <= connection.connected_at


def _update_connected(
    connection: Connection, number: Number, link: SetupLink | None, *, overwrite: bool
) -> None:
    changed = _copy_details(connection, number, overwrite=overwrite)
    if link is not None and connection.setup_link_id is None:
        connection.setup_link = link
        changed.append("setup_link")
    if link is not None and link.setup_status != SetupLink.SetupStatus.COMPLETED:
        complete(link)
    if changed:
        connection.save(update_fields=[*changed, "updated_at"])


def _copy_details(connection: Connection, number: Number, *, overwrite: bool) -> list[str]:
    """Copy what ``number`` says to ``connection``, and return the names of the changed fields."""
    changed = []
    former_account = connection.business_account_id
    for field in fields(number):
        new = getattr(number, field.name)
        old = getattr(connection, field.name)
        if new and new != old and (overwrite or not old):
            setattr(connection, field.name, new)
            changed.append(field.name)
    if former_account not in {"", connection.business_account_id}:
        # Meta's decisions about the former account do not apply to this one.
        connection.account_status = AccountStatus.ACTIVE
        connection.restrictions = []
        connection.account_updated_at = None
        changed += ["account_status", "restrictions", "account_updated_at"]
    return changed


def _mark_disconnected(
    connection: Connection,
    source: str,
    webhook_event: WebhookEvent | None,
    now: datetime,
    data: dict[str, Any],
    actor: AbstractBaseUser | None = None,
) -> None:
    connection.status = Connection.Status.DISCONNECTED
    connection.disconnected_at = now
    connection.disconnect_reason = str(data.get("reason") or "")[:64]
    connection.save(update_fields=["status", "disconnected_at", "disconnect_reason", "updated_at"])
    outbox.record(
        Kind.DISCONNECTED,
        source=source,
        customer=connection.customer,
        connection=connection,
        setup_link=connection.setup_link,
        webhook_event=webhook_event,
        occurred_at=now,
        data=data,
        actor=actor,
    )
