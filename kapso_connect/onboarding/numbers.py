"""Numbers: what is reported about one, and that it is connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from django.db import IntegrityError
from django.utils import timezone

from .. import outbox
from ..db import bulk_insert, retry_on_conflict
from ..exceptions import NeedsConfirmation, TryLater
from ..kapso.types import ConnectionType, KapsoPhoneNumber
from ..models import (
    AccountStatus,
    Connection,
    Customer,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from ..phone_numbers import only_digits
from ..text import one_line
from ..utils import as_instant
from .arguments import check_customer
from .setup_links import COMPLETED_FIELDS, complete, find_open_link
from .status import update_status

Kind = TimelineEvent.Kind

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
            display_phone_number=one_line(number.display_phone_number or "")[:64],
            verified_name=one_line(number.verified_name or "")[:255],
            connection_type={
                True: ConnectionType.COEXISTENCE.value,
                False: ConnectionType.DEDICATED.value,
                None: "",
            }[number.is_coexistence],
            quality_rating=(number.quality_rating or "")[:32],
            name_status=(number.name_status or "")[:64],
            **more,
        )


def connect(
    customer: Customer,
    number: Number,
    *,
    source: str,
    setup_link: SetupLink | None = None,
    webhook_event: WebhookEvent | None = None,
    asked_at: datetime | None = None,
    since: datetime | None = None,
    occurred_at: datetime | None = None,
    kind: str = Kind.CONNECTED,
    is_locked: bool = False,
) -> Connection:
    """Record that ``number`` is connected for ``customer``, once, whichever source reports it
    first.

    If it is connected for this customer already, missing details are filled in (and corrected, if
    the API was asked), and no event is recorded.

    ``asked_at`` is when the API was asked and confirmed it; None for what is not confirmed.
    ``since`` is when the number was added to Kapso, if known: no link created later led to it.
    ``kind`` is the event for a number that was connected before: CONNECTED or RECONNECTED.
    ``is_locked`` is True if ``customer`` was read with ``Customer.objects.locked()`` in the
    caller's transaction.

    Raise NeedsConfirmation without ``asked_at`` if the number is another customer's or was
    disconnected, and TryLater with it if that was recorded after ``asked_at``.
    """
    check_customer(customer, "connect")

    def change() -> Connection:
        now = occurred_at or timezone.now()
        owner = customer if is_locked else Customer.objects.locked().get(pk=customer.pk)
        former_owner = None
        details = _storable(number, owner)
        connection = (
            Connection.objects.select_for_update()
            .filter(phone_number_id=number.phone_number_id)
            .first()
        )
        if connection is None:
            connection = Connection(phone_number_id=number.phone_number_id)
        elif connection.is_connected and connection.customer_id == owner.pk:
            connection.customer = owner
            _update_connected(
                connection, details, setup_link, source, overwrite=asked_at is not None
            )
            return connection
        elif asked_at is None:
            raise NeedsConfirmation
        elif changed_since(connection, asked_at):
            raise TryLater(CHANGED_MEANWHILE)
        elif connection.is_connected:
            former_owner = Customer.objects.locked().get(pk=connection.customer_id)
            mark_disconnected(
                connection, former_owner, source, webhook_event, now, {"reason": "moved"}
            )
        if connection.customer_id not in {None, owner.pk}:
            if former_owner is None:
                former_owner = Customer.objects.locked().get(pk=connection.customer_id)
            _forget_former_owner(connection)
        connection.customer = owner
        connection.status = Connection.Status.CONNECTED
        connection.connected_at = now
        connection.health_retry_after = None  # Kapso holds no answer for new credentials
        _forget_removal_request(connection)
        _copy_details(connection, details, overwrite=True)
        if setup_link is not None:
            # It was read before the API was asked.
            setup_link.refresh_from_db(fields=["opened_at", "expires_at", *COMPLETED_FIELDS])
        link = setup_link or find_open_link(owner, number.phone_number_id, since)
        if link is not None:
            connection.setup_link = link
            complete(link)
        connection.save()
        outbox.record(
            kind,
            source=source,
            customer=owner,
            connection=connection,
            setup_link=link,
            webhook_event=webhook_event,
            occurred_at=now,
        )
        update_status(owner, is_connected=True)
        if former_owner is not None:
            update_status(former_owner)
        return connection

    return retry_on_conflict(change)


def _storable(number: Number, customer: Customer) -> Number:
    """Return what may be stored of a ``number`` of ``customer``: neither the phone number nor the
    name if the customer's personal data were erased."""
    if customer.erased_at is None:
        return number
    return replace(number, display_phone_number="", verified_name="")


def _forget_former_owner(connection: Connection) -> None:
    """Clear what was known of a number while it was another customer's: that is in their timeline,
    and not for the new one to see."""
    for field in fields(Number):
        if field.name != "phone_number_id":
            setattr(connection, field.name, "")
    connection.setup_link = None
    connection.disconnected_at = None
    connection.disconnect_reason = ""
    connection.health_status = connection.health_error = ""
    connection.health_problems = []
    connection.health_checked_at = connection.health_retry_after = None
    connection.created_at = timezone.now()
    _forget_account(connection)


def _forget_account(connection: Connection) -> list[str]:
    """Clear what is known about the account of a number; return the names of the fields."""
    connection.account_status = AccountStatus.ACTIVE
    connection.restrictions = []
    connection.account_updated_at = connection.funding_checked_at = None
    connection.funding_status = ""
    return [
        "account_status",
        "restrictions",
        "account_updated_at",
        "funding_status",
        "funding_checked_at",
    ]


def _forget_removal_request(connection: Connection) -> list[str]:
    """Clear that staff had the number removed; return the names of the fields."""
    connection.removal_requested_at = connection.removal_requested_by = None
    return ["removal_requested_at", "removal_requested_by"]


def connect_new(
    numbers: Sequence[tuple[Customer, Number]], *, source: str
) -> dict[str, Connection]:
    """Record in bulk that numbers are connected which have no row here yet, for customers without
    an open setup link.

    Return the connections by phone number id. What ``connect`` has to decide is left out: a number
    that has a row meanwhile, or whose customer was deleted.
    """

    def change() -> dict[str, Connection]:
        now = timezone.now()
        customers = Customer.objects.locked().in_bulk([customer.pk for customer, _ in numbers])
        known = set(
            Connection.objects.filter(
                phone_number_id__in=[number.phone_number_id for _, number in numbers]
            ).values_list("phone_number_id", flat=True)
        )
        storable = [
            (customer, _storable(number, customers[customer.pk]))
            for customer, number in numbers
            if customer.pk in customers and number.phone_number_id not in known
        ]
        connections = {
            number.phone_number_id: Connection(
                customer=customers[customer.pk],
                status=Connection.Status.CONNECTED,
                connected_at=now,
                phone_digits=only_digits(number.display_phone_number),
                **asdict(number),
            )
            for customer, number in storable
        }
        bulk_insert(list(connections.values()))
        outbox.record_all(
            TimelineEvent(
                kind=Kind.CONNECTED,
                source=source,
                customer=connection.customer,
                connection=connection,
                occurred_at=now,
            )
            for connection in connections.values()
        )
        changed = {connection.customer for connection in connections.values()}
        update_status(*changed, is_connected=True)
        return connections

    return retry_on_conflict(change)


def lock_number(phone_number_id: str) -> Connection | None:
    """Return a number's row, locked until the transaction ends, and so is its customer's: the
    customer first, as everywhere. None for an unknown number."""
    owner = Customer.objects.locked().filter(connections__phone_number_id=phone_number_id).first()
    if owner is None:
        return None
    connection = (
        Connection.objects.select_for_update()
        .filter(phone_number_id=phone_number_id, customer=owner)
        .first()
    )
    if connection is None:
        raise IntegrityError("The number moved to another customer meanwhile.")
    connection.customer = owner
    return connection


def mark_disconnected(
    connection: Connection,
    owner: Customer,
    source: str,
    webhook_event: WebhookEvent | None,
    now: datetime,
    data: Mapping[str, Any],
    actor_id: Any = None,
) -> None:
    """Record that a locked ``connection`` of ``owner`` ended. The caller updates the status."""
    changed = ["status", "disconnected_at", "disconnect_reason", "updated_at"]
    connection.status = Connection.Status.DISCONNECTED
    connection.disconnected_at = now
    connection.disconnect_reason = str(data.get("reason") or "")[:64]
    if not connection.is_paused:  # A paused number is still to be removed.
        changed += _forget_removal_request(connection)
    connection.save(update_fields=changed)
    outbox.record(
        Kind.DISCONNECTED,
        source=source,
        customer=owner,
        connection=connection,
        setup_link_id=connection.setup_link_id,
        webhook_event=webhook_event,
        occurred_at=now,
        data=dict(data),
        actor_id=actor_id,
    )


def changed_since(connection: Connection, asked_at: datetime) -> bool:
    """Return whether a connection was connected or disconnected at or after ``asked_at``."""
    disconnected_at = connection.disconnected_at
    return connected_since(connection, asked_at) or (
        disconnected_at is not None and as_instant(disconnected_at) >= as_instant(asked_at)
    )


def connected_since(connection: Connection, asked_at: datetime) -> bool:
    """Return whether a connection was connected at or after ``asked_at``."""
    connected_at = connection.connected_at
    return connected_at is not None and as_instant(connected_at) >= as_instant(asked_at)


def add_details(connection: Connection, number: Number, *, source: str = "") -> Connection | None:
    """Store what the API says about a number that was recorded without its details.

    With a ``source``, this is recorded in the timeline if its signal was sent without them. Return
    the connection as it is now; None if the number is not connected for this customer any more.
    """

    def change() -> Connection | None:
        current = lock_number(connection.phone_number_id)
        if current is None or not current.is_connected:
            return None
        if current.customer_id != connection.customer_id:
            return None
        details = _storable(number, current.customer)
        _update_connected(current, details, None, source, overwrite=True)
        return current

    return retry_on_conflict(change)


def _update_connected(
    connection: Connection,
    number: Number,
    link: SetupLink | None,
    source: str,
    *,
    overwrite: bool,
) -> None:
    was_unknown = not connection.display_phone_number
    changed = _copy_details(connection, number, overwrite=overwrite)
    if source and was_unknown and connection.display_phone_number and _was_announced(connection):
        outbox.record(
            Kind.DETAILS_RECEIVED,
            source=source,
            customer=connection.customer,
            connection=connection,
            data={
                name: getattr(connection, name)
                for name in ("display_phone_number", "verified_name", "connection_type")
            },
        )
    if link is not None and connection.setup_link_id is None:
        connection.setup_link = link
        changed.append("setup_link")
    if link is not None and link.setup_status != SetupLink.SetupStatus.COMPLETED:
        complete(link)
        connection.health_retry_after = None  # its credentials were renewed
        changed += ["health_retry_after", *_forget_removal_request(connection)]
    if changed:
        connection.save(update_fields=[*changed, "updated_at"])


def _was_announced(connection: Connection) -> bool:
    """Return whether a receiver has been told that the number is connected."""
    latest = connection.events.filter(kind=Kind.CONNECTED).order_by("pk").last()
    return latest is not None and bool(latest.receivers)


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
        changed += _forget_account(connection)
    return changed
