"""Every change of state, and nothing else: invite, claim, connect, disconnect, fail.

Each function asks the API first and outside any transaction, then changes rows and writes the
timeline in one short transaction. All are safe to repeat and safe to run at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connections
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from . import delivery
from .client import KapsoClient, KapsoCustomer, KapsoPhoneNumber, KapsoSetupLink
from .conf import get_conf
from .exceptions import KapsoConflict, KapsoError, KapsoNotFound, KapsoValidationError
from .models import (
    AccountStatus,
    Connection,
    ConnectionEvent,
    ConnectionType,
    Customer,
    Language,
    SetupLink,
    Source,
    WebhookEvent,
    new_external_id,
)
from .options import SetupLinkOptions
from .transactions import alias, atomic, retrying

Kind = ConnectionEvent.Kind

TEARDOWN = timedelta(minutes=2)
"""How long after a disconnection the API may still show the number as it was (KAPSO.md: "for a
moment")."""

MAX_FAILURES = 20
"""Failures recorded for one setup link: the redirect is unsigned, so anybody who has the link's id
could report them without end."""


CLOSED_STATUSES = {"DISCONNECTED", "DELETED", "MIGRATED"}
"""Meta's words, in the API's ``status`` of a number, for one that no longer works here."""


class NeedsConfirmation(Exception):
    """What was told would reopen, move or wrongly close a connection: the API decides first."""


class TryLater(Exception):
    """The API cannot tell yet: a number that was just taken down is still readable, or what it
    answered is older than what was recorded meanwhile."""


class ClaimRefused(Exception):
    """The API does not know the claimed number, or not as the link's customer's."""


@dataclass(frozen=True)
class Number:
    """What one channel told of a number; "" for what it did not tell."""

    phone_number_id: str
    business_account_id: str = ""
    provisioned_phone_number_id: str = ""
    display_phone_number: str = ""
    verified_name: str = ""
    connection_type: str = ""

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
            **known,
        )


# Inviting


def create_setup_link(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    client: KapsoClient | None = None,
) -> SetupLink:
    """Create a setup link for ``customer`` and return it; the customer's older links end.

    The customer is registered with Kapso first where needed. ``options`` are Kapso's (see
    ``options.SetupLinkOptions``) and win over ``SETUP_LINK_DEFAULTS``. ``created_by`` is noted on
    the link. ``client`` lets many calls share one budget; by default each has ``API_BUDGET``.

    Raises InvalidOptions before anything is asked, a KapsoError where Kapso refuses or is away, and
    ImproperlyConfigured without ``PUBLIC_URL``. In each case nothing is recorded, and calling
    again is safe. Do not call it inside a transaction: it waits for Kapso.
    """
    wanted = link_options(customer, options)
    own_client = client is None
    client = client or KapsoClient.from_settings()
    try:
        try:
            made = _create_remote_link(client, register(customer, client), wanted)
        except KapsoNotFound:
            # Kapso no longer knows this customer (it was deleted there): register it anew.
            customer.kapso_id = None
            made = _create_remote_link(client, register(customer, client), wanted)
    finally:
        if own_client:
            client.close()
    return retrying(lambda: _record_link(customer, made, wanted, created_by))


def link_options(customer: Customer, options: Mapping[str, Any] | None) -> SetupLinkOptions:
    """Return the options of a new link: this site's URLs, then defaults, then ``options``."""
    origin = get_conf().public_url
    if not origin:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set: Kapso needs to know where to send customers "
            "back to. Set it to the https origin of this site, such as https://crm.example.com."
        )
    site = {
        "success_redirect_url": origin + reverse("kapso_connect:success"),
        "failure_redirect_url": origin + reverse("kapso_connect:failed"),
    }
    own = {"language": customer.language} if customer.language in Language.values else {}
    return SetupLinkOptions.build(site, get_conf().setup_link_defaults, own, options)


def register(customer: Customer, client: KapsoClient) -> str:
    """Return Kapso's id of ``customer``, making the customer there where there is none.

    Looks before it creates, so that a repeated call after a lost answer makes no second one.
    """
    if customer.kapso_id:
        return customer.kapso_id
    if not customer.external_customer_id:
        Customer.objects.filter(pk=customer.pk, external_customer_id=None).update(
            external_customer_id=new_external_id()
        )
        customer.refresh_from_db(fields=["external_customer_id"])
    external_id = customer.external_customer_id or ""
    found = client.find_customer(external_id) or _create_remote_customer(
        client, customer.name, external_id
    )
    try:
        with atomic():
            Customer.objects.filter(pk=customer.pk).update(kapso_id=found.id)
    except IntegrityError:
        raise KapsoConflict(
            f"Kapso's customer {found.id} is another customer of this site: "
            f"{Customer.objects.get(kapso_id=found.id)}. Use that one.",
            operation="find customer",
        ) from None
    customer.kapso_id = found.id
    return found.id


def _create_remote_customer(client: KapsoClient, name: str, external_id: str) -> KapsoCustomer:
    try:
        return client.create_customer(name=name, external_customer_id=external_id)
    except KapsoError as error:
        taken = isinstance(error, (KapsoConflict, KapsoValidationError))
        # Somebody registered the customer at the same moment, or our request was carried out
        # although its answer was lost.
        found = client.find_customer(external_id) if taken or error.outcome_unknown else None
        if found is None:
            raise
        return found


def _create_remote_link(
    client: KapsoClient, kapso_id: str, options: SetupLinkOptions
) -> KapsoSetupLink:
    started = timezone.now()
    try:
        return client.create_setup_link(kapso_id, options.payload())
    except KapsoError as error:
        if not error.outcome_unknown:
            raise
        # The link may exist. The allowance is for Kapso's clock being behind ours.
        since = started - timedelta(seconds=60)
        known = set(
            SetupLink.objects.filter(customer__kapso_id=kapso_id).values_list("kapso_id", flat=True)
        )
        for link in client.list_setup_links(kapso_id, status="active", created_after=since):
            if link.id not in known and link.created_at >= since:
                return link
        raise


def _record_link(
    customer: Customer,
    made: KapsoSetupLink,
    options: SetupLinkOptions,
    created_by: AbstractBaseUser | AnonymousUser | None,
) -> SetupLink:
    # Two members of staff may invite the same customer at once: the lock makes the second wait,
    # and Kapso's own times say which link it left alive.
    # It is one that rows which point to the customer need not wait for: no deadlock with those
    # that hold a link's row and write the timeline.
    no_key = connections[alias()].features.has_select_for_no_key_update
    Customer.objects.select_for_update(no_key=no_key).get(pk=customer.pk)
    known = SetupLink.objects.filter(kapso_id=made.id).first()
    if known is not None:
        return known
    active = SetupLink.objects.filter(customer=customer, status=SetupLink.Status.ACTIVE)
    superseded = active.filter(created_at__gt=made.created_at).exists()
    for older in active.filter(created_at__lte=made.created_at):
        _end_link(older, SetupLink.Status.REVOKED, Source.MANUAL)
    link = SetupLink(
        customer=customer,
        kapso_id=made.id,
        url=made.url,
        status=SetupLink.Status.REVOKED if superseded else made.status,
        options=options.payload(),
        expires_at=made.expires_at,
        created_at=made.created_at,
        created_by_id=created_by.pk if created_by is not None else None,
    )
    link.save(force_insert=True)
    delivery.record(
        Kind.SETUP_LINK_CREATED, source=Source.MANUAL, customer=customer, setup_link=link
    )
    return link


def revoke_setup_link(link: SetupLink, *, client: KapsoClient | None = None) -> None:
    """End ``link``, at Kapso first. Nothing happens where it has ended already.

    Raises a KapsoError where Kapso is away; the link is then as it was.
    """
    if link.status != SetupLink.Status.ACTIVE:
        return
    own_client = client is None
    client = client or KapsoClient.from_settings()
    try:
        client.revoke_setup_link(link.customer.kapso_id or "", link.kapso_id)
    except KapsoNotFound:
        pass  # It is gone, which is what was wanted.
    finally:
        if own_client:
            client.close()
    retrying(lambda: _end_link(link, SetupLink.Status.REVOKED, Source.MANUAL))


LINK_ENDS = {
    SetupLink.Status.REVOKED: Kind.SETUP_LINK_REVOKED,
    SetupLink.Status.EXPIRED: Kind.SETUP_LINK_EXPIRED,
}


def _end_link(link: SetupLink, status: str, source: str, **changes: Any) -> bool:
    """Give an active link another status; one that ended before keeps how it ended."""
    changed = SetupLink.objects.filter(pk=link.pk, status=SetupLink.Status.ACTIVE).update(
        status=status, **changes
    )
    link.status = status
    if changed and status in LINK_ENDS:
        delivery.record(
            LINK_ENDS[SetupLink.Status(status)],
            source=source,
            customer=link.customer,
            setup_link=link,
        )
    return bool(changed)


def follow_link(link: SetupLink, remote: KapsoSetupLink | None) -> bool:
    """Make what is recorded of an active link what ``remote``, just read from the API, says.

    None stands for a link that Kapso no longer has. True where the link has ended.
    """
    status = SetupLink.Status.REVOKED if remote is None else remote.status
    if remote is not None and status == SetupLink.Status.ACTIVE:
        if remote.expires_at != link.expires_at:
            SetupLink.objects.filter(pk=link.pk).update(expires_at=remote.expires_at)
        return False
    return retrying(lambda: _end_link(link, status, Source.SYNC))


def expire_links() -> int:
    """Mark the links past their ``expires_at`` as expired; return how many there were."""
    past = SetupLink.objects.filter(
        status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now()
    ).select_related("customer")
    expired = 0
    while batch := list(past[:500]):
        for link in batch:
            expired += retrying(partial(_end_link, link, SetupLink.Status.EXPIRED, Source.SYNC))
    return expired


# Connecting


def claim(link: SetupLink, number: Number, *, source: str = Source.REDIRECT) -> Connection | None:
    """Settle what a returning browser says: that ``link`` led to ``number``.

    A redirect is unsigned, so the API decides. Returns the connection, or None while the API is
    away or cannot tell: the claim is kept then, and the webhook or ``kapso_sync`` settles it.
    Raises ClaimRefused where the number is not the customer's, or is no longer connected.
    """
    known = Connection.objects.filter(
        phone_number_id=number.phone_number_id, customer_id=link.customer_id
    ).first()
    is_connected = known is not None and known.is_connected
    if known is not None and is_connected and known.display_phone_number:
        try:
            return connect(link.customer, number, source=source, setup_link=link)
        except NeedsConfirmation:
            is_connected = False  # closed or moved this very moment
    if not is_connected and link.setup_status == SetupLink.SetupStatus.COMPLETED:
        raise ClaimRefused("This setup link was completed before; a link connects once.")
    asked_at = timezone.now()
    try:
        with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            remote = client.get_phone_number(number.phone_number_id)
        if remote.customer_id is None or remote.customer_id != link.customer.kapso_id:
            raise ClaimRefused("This number does not belong to the customer of this link.")
        connection = follow(
            link.customer,
            remote,
            asked_at=asked_at,
            source=source,
            setup_link=link,
            provisioned_phone_number_id=number.provisioned_phone_number_id,
        )
        if connection is None:
            raise ClaimRefused("Kapso says that this number is not connected.")
    except (KapsoNotFound, KapsoValidationError, ClaimRefused) as refusal:
        SetupLink.objects.filter(pk=link.pk, claimed_phone_number_id=number.phone_number_id).update(
            claimed_phone_number_id="", claimed_at=None
        )
        if isinstance(refusal, ClaimRefused):
            raise
        raise ClaimRefused("Kapso does not know this number.") from None
    except (KapsoError, TryLater):
        if is_connected:
            with suppress(NeedsConfirmation):
                return connect(link.customer, number, source=source, setup_link=link)
        # A page that is loaded again is the same claim, as old as it was.
        SetupLink.objects.filter(pk=link.pk).exclude(
            setup_status=SetupLink.SetupStatus.COMPLETED
        ).exclude(claimed_phone_number_id=number.phone_number_id).update(
            claimed_phone_number_id=number.phone_number_id, claimed_at=timezone.now()
        )
        return None
    return connection


def follow_api(
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
    return follow(
        customer, remote, asked_at=asked_at, source=source, webhook_event=webhook_event, data=data
    )


def customer_from_api(kapso_id: str, client: KapsoClient) -> Customer:
    """Return the local customer with Kapso's id, asking Kapso who it is where nobody knows it."""
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is not None:
        return customer
    return add_customer_from_api(client.get_customer(kapso_id))


def add_customer_from_api(remote: KapsoCustomer) -> Customer:
    """Return the local customer that ``remote``, just read from the API, stands for."""
    return retrying(
        lambda: find_or_add_customer(remote.id, remote.external_customer_id or "", remote.name)
    )


def find_or_add_customer(kapso_id: str, external_customer_id: str, name: str = "") -> Customer:
    """Return the customer Kapso speaks of, by Kapso's id or else by ours; make an unknown one.

    Call it in a transaction that is retried: two processes may hear of the same customer at once.
    """
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is None and external_customer_id:
        customer = Customer.objects.filter(external_customer_id=external_customer_id).first()
        if customer is not None and customer.external_customer_id != external_customer_id:
            # MySQL and MariaDB take "Ab3" for "aB3", and cannot keep both.
            raise ValueError(
                f"Kapso's external customer id {external_customer_id!r} is almost, but not quite, "
                f"that of a customer here: {customer.external_customer_id!r}. Correct one of them."
            )
        if customer is not None and customer.kapso_id is None:
            customer.kapso_id = kapso_id
            customer.save(update_fields=["kapso_id", "updated_at"])
    if customer is None:
        customer = Customer.objects.create(
            kapso_id=kapso_id,
            external_customer_id=external_customer_id or None,
            name=(name or external_customer_id or f"Kapso customer {kapso_id[:8]}")[:255],
        )
    return customer


def is_closed(remote: KapsoPhoneNumber) -> bool:
    """True where the API shows a number that no longer works here."""
    return (remote.status or "").upper() in CLOSED_STATUSES


def follow(
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
    Returns and raises as ``follow_api`` does.
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
) -> Connection:
    """Record that ``number`` is connected for ``customer``, once, whoever says so first.

    Already connected for this customer: what was unknown is filled in (and corrected, where the API
    was asked), nothing is announced.
    ``asked_at`` is when the API was asked and said so; without it NeedsConfirmation is raised where
    the number is another customer's or was disconnected, with it TryLater where that was recorded
    meanwhile. ``since`` is when Kapso got the number, where known: no link made later led to it.
    ``kind`` is the event for a number that was connected before: CONNECTED or RECONNECTED.
    """

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
            connection.setup_link = None
        connection.customer = customer
        connection.status = Connection.Status.CONNECTED
        connection.connected_at = now
        _apply(connection, number, overwrite=True)
        link = setup_link or _open_link(customer, number.phone_number_id, since)
        if link is not None:
            connection.setup_link = link
            _complete(link)
        connection.save()
        delivery.record(
            kind,
            source=source,
            customer=customer,
            connection=connection,
            setup_link=link,
            webhook_event=webhook_event,
            occurred_at=now,
        )
        return connection

    return retrying(change)


CHANGED = "The number changed while Kapso's API was asked about it."


def _changed_since(connection: Connection, asked_at: datetime) -> bool:
    times = connection.connected_at, connection.disconnected_at
    return any(moment is not None and moment >= asked_at for moment in times)


def _open_link(
    customer: Customer, phone_number_id: str, since: datetime | None
) -> SetupLink | None:
    """The link a connection that names none came by: the one that a browser claimed the number
    for, or else the newest that is not completed, not claimed for another number, and not made
    after Kapso got the number."""
    claimed = Q(claimed_phone_number_id=phone_number_id)
    free = Q(claimed_phone_number_id="")
    if since is not None:
        free &= Q(created_at__lte=since)
    return (
        SetupLink.objects.filter(
            claimed | free,
            customer=customer,
            status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.USED],
        )
        .exclude(setup_status=SetupLink.SetupStatus.COMPLETED)
        .order_by("-claimed_phone_number_id", "-created_at", "-pk")
        .first()
    )


def _complete(link: SetupLink) -> None:
    link.status = SetupLink.Status.USED
    link.setup_status = SetupLink.SetupStatus.COMPLETED
    link.last_error_code = ""
    link.claimed_phone_number_id = ""
    link.claimed_at = None
    link.save(
        update_fields=[
            "status",
            "setup_status",
            "last_error_code",
            "claimed_phone_number_id",
            "claimed_at",
        ]
    )


def _fill(
    connection: Connection, number: Number, link: SetupLink | None, *, overwrite: bool
) -> None:
    changed = _apply(connection, number, overwrite=overwrite)
    if link is not None and connection.setup_link_id is None:
        connection.setup_link = link
        changed.append("setup_link")
    if link is not None and link.setup_status != SetupLink.SetupStatus.COMPLETED:
        _complete(link)
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
        _close(connection, source, webhook_event, now, dict(data or {}))
        return connection

    return retrying(change)


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
) -> None:
    connection.status = Connection.Status.DISCONNECTED
    connection.disconnected_at = now
    connection.save(update_fields=["status", "disconnected_at", "updated_at"])
    delivery.record(
        Kind.DISCONNECTED,
        source=source,
        customer=connection.customer,
        connection=connection,
        setup_link=connection.setup_link,
        webhook_event=webhook_event,
        occurred_at=now,
        data=data,
    )


# Meta's decisions


def update_account(
    name: str,
    *,
    business_account_id: str,
    phone_number_ids: Collection[str],
    source: str,
    event_id: str = "",
    occurred_at: datetime | None = None,
    restrictions: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    webhook_event: WebhookEvent | None = None,
) -> tuple[int, int]:
    """Record that Meta ``name`` (disabled, restricted, reinstated, violation) an account.

    It concerns the connected numbers that are named or belong to the account. Returns how many
    there are, and for how many this was news: a repeated ``event_id``, and anything but a violation
    that is older than what is known, changes nothing.
    """

    def change() -> tuple[int, int]:
        now = occurred_at or timezone.now()
        concerned = list(
            Connection.objects.select_for_update()
            .filter(
                Q(phone_number_id__in=phone_number_ids)
                | Q(business_account_id=business_account_id),
                status=Connection.Status.CONNECTED,
            )
            .order_by("pk")  # the same order in every process: no deadlock
        )
        news = [c for c in concerned if _is_account_news(c, name, event_id, now)]
        for connection in news:
            if name in ACCOUNT_STATUSES:
                connection.account_status = ACCOUNT_STATUSES[name]
                connection.restrictions = list(restrictions)
                connection.account_updated_at = now
                connection.save(
                    update_fields=[
                        "account_status",
                        "restrictions",
                        "account_updated_at",
                        "updated_at",
                    ]
                )
            delivery.record(
                Kind.ACCOUNT_UPDATED,
                source=source,
                customer=connection.customer,
                connection=connection,
                setup_link=connection.setup_link,
                webhook_event=webhook_event,
                occurred_at=now,
                data={
                    "event": name,
                    "id": event_id,
                    "business_account_id": business_account_id,
                    "restrictions": list(restrictions),
                    **(data or {}),
                },
            )
        return len(concerned), len(news)

    return retrying(change)


ACCOUNT_STATUSES = {
    "disabled": AccountStatus.DISABLED,
    "restricted": AccountStatus.RESTRICTED,
    "reinstated": AccountStatus.ACTIVE,
}


def _is_account_news(connection: Connection, name: str, event_id: str, now: datetime) -> bool:
    known = connection.events.filter(kind=Kind.ACCOUNT_UPDATED)
    if event_id and known.filter(data__id=event_id).exists():
        return False
    if name not in ACCOUNT_STATUSES:
        return True
    return connection.account_updated_at is None or connection.account_updated_at < now


# Failing


def record_failure(link: SetupLink, error_code: str, *, source: str = Source.REDIRECT) -> bool:
    """Record that the customer came back from ``link`` with Kapso's ``error_code``.

    True where that was news. A page that is loaded again, a link that was completed, and a
    link with ``MAX_FAILURES`` failures change nothing.
    """

    def change() -> bool:
        locked = SetupLink.objects.select_for_update().get(pk=link.pk)
        if locked.setup_status == SetupLink.SetupStatus.COMPLETED or (
            locked.setup_status == SetupLink.SetupStatus.FAILED
            and locked.last_error_code == error_code
        ):
            return False
        failures = ConnectionEvent.objects.filter(setup_link=locked, kind=Kind.SETUP_FAILED)
        if failures.count() >= MAX_FAILURES:
            return False
        locked.setup_status = SetupLink.SetupStatus.FAILED
        locked.last_error_code = error_code
        locked.save(update_fields=["setup_status", "last_error_code"])
        delivery.record(
            Kind.SETUP_FAILED,
            source=source,
            customer=locked.customer,
            setup_link=locked,
            data={"error_code": error_code},
        )
        return True

    return retrying(change)
