"""Setup links: made, sent, opened, extended, and how they end."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models import BigAutoField, CharField, DateTimeField, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone

from .. import outbox
from ..conf import get_conf
from ..db import alias, retry_on_conflict
from ..exceptions import KapsoError, KapsoNotFound, KapsoValidationError
from ..kapso.client import KapsoClient
from ..kapso.setup_link_options import SetupLinkOptions
from ..kapso.types import KapsoSetupLink, Language
from ..models import Customer, SetupLink, Source, TimelineEvent, new_connect_key
from ..statements import Slot, Update, insert
from ..utils import validate_same_site_url
from .customers import registration_steps
from .steps import Steps, Writing, run

Kind = TimelineEvent.Kind

MAX_FAILURES = 20
"""Failures recorded for one setup link: the redirect is unsigned, so anybody who has the link's id
could report them without end."""

CLOCKS_APART = timedelta(seconds=60)
"""By how much Kapso's clock may be behind ours."""


# Inviting


def create_setup_link(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    client: KapsoClient | None = None,
) -> SetupLink:
    """Create a setup link for ``customer`` and return it; the customer's older links end.

    The customer is registered with Kapso first where needed. ``options`` are Kapso's (see
    ``options.SetupLinkOptions``) and win over ``SETUP_LINK_DEFAULTS``. ``next_url`` is the page of
    this site that the success page leads on to, ``/welcome/`` or beginning with ``PUBLIC_URL``.
    ``created_by`` is noted on the link and on the timeline. ``client`` lets many calls share one
    budget; by default each has ``API_BUDGET``.

    Raises InvalidOptions before anything is asked, a KapsoError where Kapso refuses or is away, and
    ImproperlyConfigured without ``PUBLIC_URL``. In each case nothing is recorded, and calling
    again is safe. Do not call it inside a transaction: it waits for Kapso.
    """
    steps = setup_link_steps(customer, options=options, next_url=next_url, created_by=created_by)
    with _asking(client) as asked:
        return run(steps, asked)


def setup_link_steps(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    since: datetime | None = None,
    known: Collection[str] | None = None,
    recorded: Callable[[SetupLink], object] = lambda link: None,
) -> Steps[SetupLink]:
    """``create_setup_link`` in steps, for those who ask Kapso several things at a time.

    ``since`` is when an earlier attempt for the same purpose began, whose end is not known: a link
    that Kapso made since then, and nobody recorded, is taken instead of making a second one.
    ``known`` are Kapso's ids of the customer's recorded links, where they were just read.
    ``recorded`` is called in the transaction that records the link.
    """
    wanted = link_options(customer, options)
    next_url = validate_same_site_url(next_url)
    if known is None:
        known = set(SetupLink.objects.filter(customer=customer).values_list("kapso_id", flat=True))
    kapso_id = yield from registration_steps(customer)
    try:
        made = yield partial(_find_or_make, kapso_id, wanted, known, since)
    except KapsoNotFound:
        # Kapso no longer knows this customer (it was deleted there): register it anew.
        customer.kapso_id = None
        kapso_id = yield from registration_steps(customer)
        made = yield partial(_find_or_make, kapso_id, wanted, known, since)
    new = NewLink(customer, made, wanted, next_url, created_by, recorded)
    link: SetupLink | None = yield Writing(new, record_links)
    if link is None:
        raise Customer.DoesNotExist
    link.token = made.token
    return link


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


def _find_or_make(
    kapso_id: str,
    options: SetupLinkOptions,
    known: Collection[str],
    since: datetime | None,
    client: KapsoClient,
) -> KapsoSetupLink:
    found = since and _unrecorded(client, kapso_id, known, since)
    if found:
        return found
    started = timezone.now()
    try:
        return client.create_setup_link(kapso_id, options.payload())
    except KapsoError as error:
        # The link may exist. Where looking for it fails as well, that stays the last word.
        with suppress(KapsoError):
            made = error.outcome_unknown and _unrecorded(client, kapso_id, known, started)
            if made:
                return made
        raise


def _unrecorded(
    client: KapsoClient, kapso_id: str, known: Collection[str], since: datetime
) -> KapsoSetupLink | None:
    """Return the active link that Kapso made ``since`` then and that is not among the ``known``."""
    since -= CLOCKS_APART
    for link in client.list_setup_links(kapso_id, status="active", created_after=since):
        if link.id not in known and link.created_at >= since:
            return link
    return None


@dataclass(frozen=True)
class NewLink:
    """A link that Kapso made and nobody recorded yet; see ``setup_link_steps``."""

    customer: Customer
    made: KapsoSetupLink
    options: SetupLinkOptions
    next_url: str
    created_by: AbstractBaseUser | AnonymousUser | None
    recorded: Callable[[SetupLink], object]


def record_links(new: Sequence[NewLink]) -> list[SetupLink | None]:
    """Record links of different customers in one transaction; None where a customer is gone."""

    def change() -> list[SetupLink | None]:
        rows = _lock([one.customer.pk for one in new])
        return [
            _record_link(one, *rows[one.customer.pk]) if one.customer.pk in rows else None
            for one in new
        ]

    return retry_on_conflict(change)


def _lock(customers: Collection[int]) -> dict[int, tuple[Customer, list[SetupLink]]]:
    """Return the customers, locked and with a key for their address each, and all their links."""
    # Two members of staff may invite the same customer at once: the lock makes the second wait,
    # and Kapso's own times say which link it left alive.
    # It is one that rows which point to the customer need not wait for: no deadlock with those
    # that hold a link's row and write the timeline.
    no_key = connections[alias()].features.has_select_for_no_key_update
    # In the same order in every process: no deadlock among them.
    locked = Customer.objects.select_for_update(no_key=no_key).filter(pk__in=customers)
    rows: dict[int, tuple[Customer, list[SetupLink]]] = {
        customer.pk: (customer, []) for customer in locked.order_by("pk")
    }
    for link in SetupLink.objects.filter(customer__in=customers):
        rows[link.customer_id][1].append(link)
    keyless = [customer for customer, _ in rows.values() if customer.connect_key is None]
    for customer in keyless:
        customer.connect_key = new_connect_key()
    Customer.objects.bulk_update(keyless, ["connect_key"])
    return rows


def _record_link(new: NewLink, locked: Customer, links: Sequence[SetupLink]) -> SetupLink:
    customer, made = new.customer, new.made
    customer.connect_key = locked.connect_key
    for known in links:
        if known.kapso_id == made.id:
            new.recorded(known)
            return known
    actor = new.created_by if isinstance(new.created_by, AbstractBaseUser) else None
    active = [link for link in links if link.status == SetupLink.Status.ACTIVE]
    latest = [link for link in links if link.is_latest]
    superseded = any(link.created_at > made.created_at for link in (*active, *latest))
    for older in active:
        if older.created_at <= made.created_at:
            _end_link(older, SetupLink.Status.REVOKED, Source.MANUAL, actor, {"reason": "replaced"})
    if latest and not superseded:
        SetupLink.objects.filter(customer=customer, is_latest=True).update(is_latest=False)
    link = SetupLink(
        customer=customer,
        kapso_id=made.id,
        url=made.url,
        status=SetupLink.Status.REVOKED if superseded else made.status,
        is_latest=not superseded,
        options=new.options.payload(),
        next_url=new.next_url,
        expires_at=made.expires_at,
        created_at=made.created_at,
        created_by_id=actor.pk if actor else None,
    )
    insert(link)
    outbox.record(
        Kind.SETUP_LINK_CREATED,
        source=Source.MANUAL,
        customer=customer,
        setup_link=link,
        actor=actor,
    )
    new.recorded(link)
    return link


def record_sent(
    link: SetupLink, channel: str, *, actor: AbstractBaseUser | None = None, to: str = ""
) -> TimelineEvent:
    """Write to the timeline that ``link`` was given to its customer by ``channel``: email, copy,
    qr or share; ``to`` is the e-mail address."""
    data = {"channel": channel, "to": to} if to else {"channel": channel}
    return retry_on_conflict(
        lambda: outbox.record(
            Kind.SETUP_LINK_SENT,
            source=Source.MANUAL,
            customer=link.customer,
            setup_link=link,
            actor=actor,
            data=data,
        )
    )


# Opening


def record_opened(link: SetupLink, *, source: str) -> bool:
    """Record that the customer followed ``link``, the first time; True where it was."""

    def change() -> bool:
        now = timezone.now()
        first = SetupLink.objects.filter(pk=link.pk, opened_at=None).update(opened_at=now)
        if first:
            link.opened_at = now
            outbox.record(
                Kind.SETUP_LINK_OPENED,
                source=source,
                customer=link.customer,
                setup_link=link,
                occurred_at=now,
            )
        return bool(first)

    return retry_on_conflict(change)


# Extending


def extend_setup_link(
    link: SetupLink,
    expires_at: datetime,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> bool:
    """Let ``link`` work until ``expires_at``, at Kapso first.

    ``expires_at`` is an aware datetime where USE_TZ is on. False where the link has ended, here or
    at Kapso: an ended link cannot be extended.
    Raises ValueError for a time that is over, a KapsoError where Kapso refuses or is away; the link
    is then as it was.
    """
    if expires_at <= timezone.now():
        raise ValueError("A setup link can only be extended into the future.")
    if link.status != SetupLink.Status.ACTIVE:
        return False
    # Naive where USE_TZ is off; astimezone() takes it for the local time it is.
    changes = {"expires_at": expires_at.astimezone().isoformat()}
    try:
        remote = _change_remote(link, changes, client)
    except KapsoNotFound:
        remote = None
    if remote is None or remote.status != SetupLink.Status.ACTIVE:
        apply_remote_link(link, remote)
        return False

    def change() -> bool:
        until = remote.expires_at or expires_at
        active = SetupLink.objects.filter(pk=link.pk, status=SetupLink.Status.ACTIVE)
        if not active.update(expires_at=until):
            return False
        link.expires_at = until
        outbox.record(
            Kind.SETUP_LINK_EXTENDED,
            source=Source.MANUAL,
            customer=link.customer,
            setup_link=link,
            actor=actor,
            data={"expires_at": until},
        )
        return True

    return retry_on_conflict(change)


def _change_remote(
    link: SetupLink, changes: Mapping[str, Any], client: KapsoClient | None
) -> KapsoSetupLink:
    with _asking(client) as asked:
        return asked.update_setup_link(link.customer.kapso_id or "", link.kapso_id, changes)


def _find_remote(link: SetupLink, client: KapsoClient | None) -> KapsoSetupLink | None:
    with _asking(client) as asked:
        remotes = asked.list_setup_links(link.customer.kapso_id or "")
        return next((remote for remote in remotes if remote.id == link.kapso_id), None)


def _asking(client: KapsoClient | None) -> AbstractContextManager[KapsoClient]:
    """``client``, left open, or one of its own."""
    return nullcontext(client) if client is not None else KapsoClient.from_settings()


# Ending


def revoke_setup_link(
    link: SetupLink, *, actor: AbstractBaseUser | None = None, client: KapsoClient | None = None
) -> bool:
    """End ``link``, at Kapso first, and with it the customer's address on this site.

    The address of one that expired or failed would lead to a new link, so these can be revoked,
    too. True where it ended now; nothing happens where it was revoked or completed before, here or
    at Kapso. Raises a KapsoError where Kapso is away; the link is then as it was.
    """
    if not is_revocable(link):
        return False
    if link.status == SetupLink.Status.ACTIVE:
        try:
            _change_remote(link, {"status": "revoked"}, client)
        except KapsoNotFound:
            pass  # It is gone, which is what was wanted.
        except KapsoValidationError:
            # Kapso takes nothing back that was used.
            remote = _find_remote(link, client)
            if remote is None or not apply_remote_link(link, remote):
                raise
            return False

    def change() -> bool:
        ended = _end_link(link, SetupLink.Status.REVOKED, Source.MANUAL, actor, among=REVOCABLE)
        newer = SetupLink.objects.filter(customer=link.customer_id, is_latest=True)
        if ended and not newer.exclude(pk=link.pk).exists():
            Customer.objects.filter(pk=link.customer_id).update(connect_key=None)
        return ended

    return retry_on_conflict(change)


def is_revocable(link: SetupLink) -> bool:
    """True while ``link``, or a newer one behind the same address, can connect a number."""
    return (
        link.status != SetupLink.Status.REVOKED
        and link.setup_status != SetupLink.SetupStatus.COMPLETED
    )


ACTIVE = Q(status=SetupLink.Status.ACTIVE)
REVOCABLE = ~Q(status=SetupLink.Status.REVOKED) & ~Q(setup_status=SetupLink.SetupStatus.COMPLETED)
"""The condition for what ``is_revocable`` says."""

LINK_ENDS = {
    SetupLink.Status.REVOKED: Kind.SETUP_LINK_REVOKED,
    SetupLink.Status.EXPIRED: Kind.SETUP_LINK_EXPIRED,
}


def _end_link(
    link: SetupLink,
    status: str,
    source: str,
    actor: AbstractBaseUser | None = None,
    data: Mapping[str, Any] | None = None,
    *,
    among: Q = ACTIVE,
) -> bool:
    """Give an active link another status; one that ended before keeps how it ended."""
    changed = SetupLink.objects.filter(among, pk=link.pk).update(status=status)
    link.status = status
    if changed and status in LINK_ENDS:
        outbox.record(
            LINK_ENDS[SetupLink.Status(status)],
            source=source,
            customer=link.customer,
            setup_link=link,
            actor=actor,
            data=dict(data or {}),
        )
    return bool(changed)


def apply_remote_link(link: SetupLink, remote: KapsoSetupLink | None) -> bool:
    """Make what is recorded of an active link what ``remote``, just read from the API, says.

    None stands for a link that Kapso no longer has. True where the link has ended.
    """
    if remote is not None and remote.whatsapp_setup_status not in {
        None,
        SetupLink.SetupStatus.PENDING,
    }:
        # Its page was used, whether or not a browser came back from it.
        record_opened(link, source=Source.SYNC)
    if (
        remote is not None
        and remote.whatsapp_setup_status == SetupLink.SetupStatus.FAILED
        and link.setup_status != SetupLink.SetupStatus.FAILED
    ):
        # The browser that should have told did not come back.
        record_failure(link, _error_code(remote.whatsapp_setup_error), source=Source.SYNC)
    status = SetupLink.Status.REVOKED if remote is None else remote.status
    if remote is not None and status == SetupLink.Status.ACTIVE:
        if remote.expires_at != link.expires_at:
            SetupLink.objects.filter(pk=link.pk).update(expires_at=remote.expires_at)
            link.expires_at = remote.expires_at
        return False
    return retry_on_conflict(lambda: _end_link(link, status, Source.SYNC))


def _error_code(error: str | None) -> str:
    """Return what the API tells of a failure as a code, as the redirect would have brought it."""
    return error if error and re.fullmatch(r"[0-9A-Za-z_-]{1,64}", error) else "unknown"


def expire_links() -> int:
    """Mark the links past their ``expires_at`` as expired; return how many there were."""
    past = SetupLink.objects.filter(
        status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now()
    ).select_related("customer")
    expired = 0
    while batch := list(past[:500]):
        for link in batch:
            expired += retry_on_conflict(
                partial(_end_link, link, SetupLink.Status.EXPIRED, Source.SYNC)
            )
    return expired


def open_links(
    customer: Customer | OuterRef, phone_number_id: str | Slot, since: datetime | None = None
) -> QuerySet[SetupLink]:
    """The links a connection that names none may have come by, the likeliest first: the one that a
    browser claimed the number for, then the newest that is not completed, not claimed for another
    number, and not made after Kapso got the number."""
    links = SetupLink.objects.filter(_is_open(phone_number_id, since), customer=customer)
    return links.order_by("-unconfirmed_phone_number_id", "-created_at", "-pk")


def _is_open(phone_number_id: str | Slot, since: datetime | None = None) -> Q:
    claimed = Q(unconfirmed_phone_number_id=phone_number_id)
    free = Q(unconfirmed_phone_number_id="")
    if since is not None:
        free &= Q(created_at__lte=since)
    alive = Q(status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.USED])
    return (claimed | free) & alive & ~Q(setup_status=SetupLink.SetupStatus.COMPLETED)


def complete_open(link_id: int, phone_number_id: str) -> bool:
    """Complete a link that ``open_links`` found a moment ago; False where that is no longer so."""
    now = timezone.now()
    return bool(_completion.execute(link_id=link_id, phone_number_id=phone_number_id, now=now))


def _complete_open(
    link_id: Slot, phone_number_id: Slot, now: Slot
) -> tuple[QuerySet[SetupLink], dict[str, Any]]:
    still_open = SetupLink.objects.filter(_is_open(phone_number_id), pk=link_id).order_by()
    return still_open, {"opened_at": Coalesce("opened_at", now), **COMPLETE}


COMPLETE: dict[str, Any] = {
    "status": SetupLink.Status.USED,
    "setup_status": SetupLink.SetupStatus.COMPLETED,
    "last_error_code": "",
    "unconfirmed_phone_number_id": "",
    "unconfirmed_since": None,
}

_completion = Update(
    _complete_open, link_id=BigAutoField(), phone_number_id=CharField(), now=DateTimeField()
)


def complete(link: SetupLink) -> None:
    link.opened_at = link.opened_at or timezone.now()
    for field, value in COMPLETE.items():
        setattr(link, field, value)
    link.save(update_fields=["opened_at", *COMPLETE])


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
        failures = TimelineEvent.objects.filter(setup_link=locked, kind=Kind.SETUP_FAILED)
        if failures.count() >= MAX_FAILURES:
            return False
        locked.setup_status = SetupLink.SetupStatus.FAILED
        locked.last_error_code = error_code
        locked.opened_at = locked.opened_at or timezone.now()
        locked.save(update_fields=["setup_status", "last_error_code", "opened_at"])
        outbox.record(
            Kind.SETUP_FAILED,
            source=source,
            customer=locked.customer,
            setup_link=locked,
            data={"error_code": error_code},
        )
        return True

    return retry_on_conflict(change)
