"""Numbers: connected, disconnected, and compared with what Kapso's API says of them."""

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
from ..exceptions import (
    KapsoNotFound,
    NeedsConfirmation,
    TryLater,
)
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

TEARDOWN = timedelta(minutes=2)
"""How long after a disconnection the API may still show the number as it was (KAPSO.md: "for a
moment")."""

CLOSED_STATUSES = {"DISCONNECTED", "DELETED", "MIGRATED"}
"""Meta's words, in the API's ``status`` of a number, for one that no longer works here."""


@dataclass(frozen=True)
class Number:
    """What one channel told of a number; "" for what it did not tell."""

    phone_number_id: str
    business_account_id: str = ""
    provisioned_phone_number_id: str = ""
    display_phone_number: str = ""
    verified_name: str = ""
    connection_type: str = ""
    quality_rating: str = ""
    name_status: str = ""

    @classmethod
    def from_api(cls, number: KapsoPhoneNumber, **known: str) -> Number:
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
            **known,
        )


# Connecting


def refresh_number(
    phone_number_id: str,
    *,
    source: str,
    client: KapsoClient,
    webhook_event: WebhookEvent | None = None,
    data: Mapping[str, Any] | None = None,
) -> Connection | None:
    """Make what is recorded of a number what the API says of it; the word in every doubt.

    ``data`` goes to the timeline where the number turns out to be gone.

    Returns the connection, or None for a number that is no customer's of ours and never was.
    Raises TryLater where the API cannot tell yet, and a KapsoError where it is away.
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


def is_closed(remote: KapsoPhoneNumber) -> bool:
    """True where the API shows a number that no longer works here."""
    return (remote.status or "").upper() in CLOSED_STATUSES


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
    """Make what is recorded of a number what ``remote``, read from the API, says of it.

    ``asked_at`` is when reading began: what was recorded since then is newer and stays.
    ``customer`` is the local one ``remote.customer_id`` stands for, None for the project's own.
    Returns and raises as ``refresh_number`` does.
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
        closed_at = known.disconnected_at
        if closed_at is not None and remote.created_at <= closed_at:
            # The very record that was closed. After ``.deleted`` it stays readable for a moment.
            if status not in {"", "CONNECTED"}:
                return known
            if timezone.now() - closed_at < TEARDOWN:
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


@dataclass(frozen=True)
class KnownCustomer:
    """A customer who was found with a number that nobody knew, and the link it came by, if any.

    With it ``connect`` reads nothing. Where it is no longer so, an IntegrityError is raised.
    """

    customer_id: int
    setup_link_id: int | None


class Outdated(IntegrityError):
    """What was found a moment ago is no longer so: as with any lost race, look again."""


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
    """Record that ``number`` is connected for ``customer``, once, whoever says so first.

    Already connected for this customer: what was unknown is filled in (and corrected, where the API
    was asked), nothing is announced.
    ``asked_at`` is when the API was asked and said so; without it NeedsConfirmation is raised where
    the number is another customer's or was disconnected, with it TryLater where that was recorded
    meanwhile. ``since`` is when Kapso got the number, where known: no link made later led to it.
    ``kind`` is the event for a number that was connected before: CONNECTED or RECONNECTED.
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
            _fill(connection, number, setup_link, overwrite=asked_at is not None)
            return connection
        elif asked_at is None:
            raise NeedsConfirmation
        elif _changed_since(connection, asked_at):
            raise TryLater(CHANGED)
        elif connection.is_connected:
            _close(connection, source, webhook_event, now, {"reason": "moved"})
        if connection.customer_id != customer.pk:
            # What was found out about it was another customer's.
            connection.setup_link = None
            connection.health_status = connection.health_error = ""
            connection.health_checked_at = None
        connection.customer = customer
        connection.status = Connection.Status.CONNECTED
        connection.connected_at = now
        _apply(connection, number, overwrite=True)
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
            raise Outdated("The setup link was completed or ended meanwhile.")
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


CHANGED = "The number changed while Kapso's API was asked about it."


def _changed_since(connection: Connection, asked_at: datetime) -> bool:
    times = connection.connected_at, connection.disconnected_at
    return any(moment is not None and moment >= asked_at for moment in times)


def _fill(
    connection: Connection, number: Number, link: SetupLink | None, *, overwrite: bool
) -> None:
    changed = _apply(connection, number, overwrite=overwrite)
    if link is not None and connection.setup_link_id is None:
        connection.setup_link = link
        changed.append("setup_link")
    if link is not None and link.setup_status != SetupLink.SetupStatus.COMPLETED:
        complete(link)
    if changed:
        connection.save(update_fields=[*changed, "updated_at"])


def _apply(connection: Connection, number: Number, *, overwrite: bool) -> list[str]:
    changed = []
    former = connection.business_account_id
    for field in fields(number):
        told = getattr(number, field.name)
        known = getattr(connection, field.name)
        if told and told != known and (overwrite or not known):
            setattr(connection, field.name, told)
            changed.append(field.name)
    if former not in {"", connection.business_account_id}:
        # What Meta decided about the former account does not hold for this one.
        connection.account_status = AccountStatus.ACTIVE
        connection.restrictions = []
        connection.account_updated_at = None
        changed += ["account_status", "restrictions", "account_updated_at"]
    return changed


# Disconnecting


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
    """Record that a number is no longer connected, once. ``data`` goes to the timeline: reason ….

    A number nobody knew (its ``created`` comes late) is noted as disconnected for ``customer``, so
    that the late word is checked with the API before it connects anything; nothing is announced.
    ``asked_at`` is when the API was asked and said so; without it NeedsConfirmation is raised where
    the word may be about an older connection of the number, with it TryLater where the number was
    connected since.
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
        if asked_at is None and _is_doubtful(connection, customer, occurred_at):
            raise NeedsConfirmation
        if asked_at is not None and _changed_since(connection, asked_at):
            raise TryLater(CHANGED)
        _close(connection, source, webhook_event, now, dict(data or {}), actor)
        return connection

    return retry_on_conflict(change)


def _is_doubtful(
    connection: Connection, customer: Customer | None, occurred_at: datetime | None
) -> bool:
    if customer is not None and connection.customer_id != customer.pk:
        return True  # it has moved, and the word is about its time with the other customer
    if occurred_at is None:
        # Without a time, a word about a number that was closed before may be about then.
        return connection.disconnected_at is not None
    return connection.connected_at is not None and occurred_at <= connection.connected_at


def _close(
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


STAFF = "staff"
"""The reason of a disconnection that a member of staff asked for."""


def disconnect_number(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> Connection:
    """Disconnect a number and remove it from Kapso, on behalf of ``actor``; Kapso comes first.

    The customer's links and address on this site end before it does: whoever has them must not
    connect the number again. Nothing happens to a number that is disconnected already. Raises a
    KapsoError where Kapso refuses or is away, TryLater where the number was connected anew
    meanwhile; the number is then as it was.
    """
    if not connection.is_connected:
        return connection
    if client is None:
        with KapsoClient.from_settings() as own:
            return disconnect_number(connection, actor=actor, client=own)
    alive = SetupLink.objects.filter(
        customer=connection.customer_id, status=SetupLink.Status.ACTIVE
    )
    for link in alive.select_related("customer"):
        revoke_setup_link(link, actor=actor, client=client)
    asked_at = timezone.now()
    with suppress(KapsoNotFound):  # It is gone, which is what was wanted.
        client.delete_phone_number(connection.phone_number_id)
    closed = disconnect(
        connection.phone_number_id,
        source=Source.MANUAL,
        asked_at=asked_at,
        data={"reason": STAFF},
        actor=actor,
    )

    def change() -> None:
        # Kapso's own word of it can be here before its answer.
        TimelineEvent.objects.filter(
            connection=connection, kind=Kind.DISCONNECTED, actor=None, occurred_at__gte=asked_at
        ).update(actor=actor)
        Connection.objects.filter(
            pk=connection.pk, status=Connection.Status.DISCONNECTED, disconnected_at__gte=asked_at
        ).update(disconnect_reason=STAFF)
        # After the number, as everywhere: rows locked in one order do not lock each other out.
        Customer.objects.filter(pk=connection.customer_id).update(connect_key=None)

    retry_on_conflict(change)
    return closed or connection


# Looking after


# Meta's decisions
