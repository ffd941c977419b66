"""Setup links: created, sent, opened, extended, revoked, and completed or failed."""

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
from ..kapso.languages import Language
from ..kapso.setup_link_options import SetupLinkOptions
from ..kapso.types import KapsoSetupLink
from ..models import Customer, SetupLink, Source, TimelineEvent, new_connect_key
from ..statements import Slot, Update, insert
from ..utils import validate_same_site_url
from .customers import registration_steps
from .steps import BulkWrite, Steps, run

Kind = TimelineEvent.Kind

MAX_FAILURES = 20
"""The most failures recorded for one setup link: the redirect is unsigned, so anybody who has the
link's id could report any number of them."""

CLOCK_SKEW = timedelta(seconds=60)
"""How far Kapso's clock may be behind this site's."""

EXPIRE_BATCH_SIZE = 500

ACTIVE = Q(status=SetupLink.Status.ACTIVE)
REVOCABLE = ~Q(status=SetupLink.Status.REVOKED) & ~Q(setup_status=SetupLink.SetupStatus.COMPLETED)
"""The condition for links of which ``is_revocable`` is True."""

EVENT_KINDS_BY_STATUS = {
    SetupLink.Status.REVOKED: Kind.SETUP_LINK_REVOKED,
    SetupLink.Status.EXPIRED: Kind.SETUP_LINK_EXPIRED,
}
"""The event that the timeline gets when a link's status becomes this one."""

COMPLETED_FIELDS: dict[str, Any] = {
    "status": SetupLink.Status.USED,
    "setup_status": SetupLink.SetupStatus.COMPLETED,
    "last_error_code": "",
    "unconfirmed_phone_number_id": "",
    "unconfirmed_since": None,
}


def create_setup_link(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    client: KapsoClient | None = None,
) -> SetupLink:
    """Create a setup link for ``customer`` and return it; the customer's older links end.

    The customer is registered with Kapso first if needed. ``options`` are Kapso's (see
    ``kapso.setup_link_options.SetupLinkOptions``) and override ``SETUP_LINK_DEFAULTS``.
    ``next_url`` is the page of this site that the success page links to: ``/welcome/``, or a URL
    that begins with ``PUBLIC_URL``. ``created_by`` is stored with the link and in the timeline.
    ``client`` lets many calls share one budget; by default each has ``API_BUDGET``.

    Raise InvalidOptions before any request is made, a KapsoError if Kapso refuses or is
    unavailable, and ImproperlyConfigured without ``PUBLIC_URL``. In each case nothing is recorded,
    and it is safe to call again. Do not call it inside a transaction: it waits for Kapso.
    """
    steps = setup_link_steps(customer, options=options, next_url=next_url, created_by=created_by)
    with _client_or_own(client) as api:
        return run(steps, api)


def extend_setup_link(
    link: SetupLink,
    expires_at: datetime,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> bool:
    """Let ``link`` be used until ``expires_at``, at Kapso first; return whether it was extended.

    ``expires_at`` is an aware datetime if USE_TZ is on. A link that has ended, here or at Kapso,
    cannot be extended.
    Raise ValueError for a time in the past, and a KapsoError if Kapso refuses or is unavailable;
    the link is then unchanged.
    """
    if expires_at <= timezone.now():
        raise ValueError("A setup link can only be extended into the future.")
    if link.status != SetupLink.Status.ACTIVE:
        return False
    # Naive if USE_TZ is off: astimezone() takes it as local time, which it is.
    changes = {"expires_at": expires_at.astimezone().isoformat()}
    try:
        remote = _update_remote(link, changes, client)
    except KapsoNotFound:
        remote = None
    if remote is None or remote.status != SetupLink.Status.ACTIVE:
        apply_remote_link(link, remote)
        return False

    def change() -> bool:
        until = remote.expires_at or expires_at
        active = SetupLink.objects.filter(ACTIVE, pk=link.pk)
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


def revoke_setup_link(
    link: SetupLink, *, actor: AbstractBaseUser | None = None, client: KapsoClient | None = None
) -> bool:
    """End ``link``, at Kapso first, and with it the customer's connect URL.

    A link that expired or failed can be revoked, too: its customer's URL would lead to a new one.
    Return whether it ended now; one that was revoked or completed before, here or at Kapso, stays
    as it is. Raise a KapsoError if Kapso is unavailable; the link is then unchanged.
    """
    if not is_revocable(link):
        return False
    if link.status == SetupLink.Status.ACTIVE:
        try:
            _update_remote(link, {"status": "revoked"}, client)
        except KapsoNotFound:
            pass  # It no longer exists, which is what was wanted.
        except KapsoValidationError:
            # Kapso does not revoke a link that was used.
            remote = _find_remote(link, client)
            if remote is None or not apply_remote_link(link, remote):
                raise
            return False

    def change() -> bool:
        ended = _end_link(link, SetupLink.Status.REVOKED, Source.MANUAL, actor, condition=REVOCABLE)
        latest = SetupLink.objects.filter(customer=link.customer_id, is_latest=True)
        if ended and not latest.exclude(pk=link.pk).exists():
            Customer.objects.filter(pk=link.customer_id).update(connect_key=None)
        return ended

    return retry_on_conflict(change)


def is_revocable(link: SetupLink) -> bool:
    """Return whether ``link``, or a newer one that replaces it at the same connect URL, can still
    connect a number."""
    return (
        link.status != SetupLink.Status.REVOKED
        and link.setup_status != SetupLink.SetupStatus.COMPLETED
    )


def setup_link_steps(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    since: datetime | None = None,
    known_ids: Collection[str] | None = None,
    on_recorded: Callable[[SetupLink], object] = lambda link: None,
) -> Steps[SetupLink]:
    """Create a setup link like ``create_setup_link``, as Steps.

    ``since`` is when an earlier attempt for the same purpose began whose outcome is not known: an
    unrecorded link that Kapso created since then is used instead of creating a second one.
    ``known_ids`` are Kapso's ids of the customer's recorded links, if they were just read.
    ``on_recorded`` is called in the transaction that records the link.
    """
    link_options = build_options(customer, options)
    next_url = validate_same_site_url(next_url)
    if known_ids is None:
        links = SetupLink.objects.filter(customer=customer)
        known_ids = set(links.values_list("kapso_id", flat=True))
    kapso_id = yield from registration_steps(customer)
    try:
        remote = yield partial(_find_or_create_remote, kapso_id, link_options, known_ids, since)
    except KapsoNotFound:
        # The customer was deleted at Kapso: register it again.
        customer.kapso_id = None
        kapso_id = yield from registration_steps(customer)
        remote = yield partial(_find_or_create_remote, kapso_id, link_options, known_ids, since)
    new = NewLink(customer, remote, link_options, next_url, created_by, on_recorded)
    link: SetupLink | None = yield BulkWrite(new, record_links)
    if link is None:
        raise Customer.DoesNotExist
    link.token = remote.token
    return link


def build_options(customer: Customer, options: Mapping[str, Any] | None) -> SetupLinkOptions:
    """Return the options of a new link: this site's URLs, ``SETUP_LINK_DEFAULTS``, the customer's
    language, and ``options``; later ones override earlier ones. Raise InvalidOptions."""
    origin = get_conf().public_url
    if not origin:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set: Kapso needs to know where to send customers "
            "back to. Set it to the https origin of this site, such as https://crm.example.com."
        )
    urls = {
        "success_redirect_url": origin + reverse("kapso_connect:success"),
        "failure_redirect_url": origin + reverse("kapso_connect:failed"),
    }
    language = {"language": customer.language} if customer.language in Language.values else {}
    return SetupLinkOptions.build(urls, get_conf().setup_link_defaults, language, options)


def _find_or_create_remote(
    kapso_id: str,
    options: SetupLinkOptions,
    known_ids: Collection[str],
    since: datetime | None,
    client: KapsoClient,
) -> KapsoSetupLink:
    found = since and _find_unrecorded(client, kapso_id, known_ids, since)
    if found:
        return found
    started = timezone.now()
    try:
        return client.create_setup_link(kapso_id, options.payload())
    except KapsoError as error:
        # The link may exist. If the search fails as well, the first error is raised.
        with suppress(KapsoError):
            created = error.outcome_unknown and _find_unrecorded(
                client, kapso_id, known_ids, started
            )
            if created:
                return created
        raise


def _find_unrecorded(
    client: KapsoClient, kapso_id: str, known_ids: Collection[str], since: datetime
) -> KapsoSetupLink | None:
    """Return an active link that Kapso created after ``since`` and that is not in ``known_ids``."""
    since -= CLOCK_SKEW
    for link in client.list_setup_links(kapso_id, status="active", created_after=since):
        if link.id not in known_ids and link.created_at >= since:
            return link
    return None


@dataclass(frozen=True)
class NewLink:
    """A link that exists at Kapso and is to be recorded here; see ``setup_link_steps``."""

    customer: Customer
    remote: KapsoSetupLink
    options: SetupLinkOptions
    next_url: str
    created_by: AbstractBaseUser | AnonymousUser | None
    on_recorded: Callable[[SetupLink], object]


def record_links(new_links: Sequence[NewLink]) -> list[SetupLink | None]:
    """Record links of different customers in one transaction, and return them in the same order;
    None for a customer who no longer exists."""

    def change() -> list[SetupLink | None]:
        customers = _lock_customers([new.customer.pk for new in new_links])
        return [
            _record_link(new, *customers[new.customer.pk]) if new.customer.pk in customers else None
            for new in new_links
        ]

    return retry_on_conflict(change)


def _lock_customers(pks: Collection[int]) -> dict[int, tuple[Customer, list[SetupLink]]]:
    """Lock the customers, give each a connect key, and return them with all their links."""
    # Two members of staff may invite the same customer at once: the lock makes the second wait,
    # and Kapso's own times say which link is still active there.
    # Rows that refer to the customer can be written under this kind of lock, so there is no
    # deadlock with a process that holds a link's row and writes the timeline.
    no_key = connections[alias()].features.has_select_for_no_key_update
    # In the same order in every process, so that they do not deadlock each other.
    locked = Customer.objects.select_for_update(no_key=no_key).filter(pk__in=pks)
    rows: dict[int, tuple[Customer, list[SetupLink]]] = {
        customer.pk: (customer, []) for customer in locked.order_by("pk")
    }
    for link in SetupLink.objects.filter(customer__in=pks):
        rows[link.customer_id][1].append(link)
    without_key = [customer for customer, _ in rows.values() if customer.connect_key is None]
    for customer in without_key:
        customer.connect_key = new_connect_key()
    Customer.objects.bulk_update(without_key, ["connect_key"])
    return rows


def _record_link(new: NewLink, locked: Customer, links: Sequence[SetupLink]) -> SetupLink:
    customer, remote = new.customer, new.remote
    customer.connect_key = locked.connect_key
    for known in links:
        if known.kapso_id == remote.id:
            new.on_recorded(known)
            return known
    actor = new.created_by if isinstance(new.created_by, AbstractBaseUser) else None
    active = [link for link in links if link.status == SetupLink.Status.ACTIVE]
    latest = [link for link in links if link.is_latest]
    superseded = any(link.created_at > remote.created_at for link in (*active, *latest))
    for older in active:
        if older.created_at <= remote.created_at:
            _end_link(older, SetupLink.Status.REVOKED, Source.MANUAL, actor, {"reason": "replaced"})
    if latest and not superseded:
        SetupLink.objects.filter(customer=customer, is_latest=True).update(is_latest=False)
    link = SetupLink(
        customer=customer,
        kapso_id=remote.id,
        url=remote.url,
        status=SetupLink.Status.REVOKED if superseded else remote.status,
        is_latest=not superseded,
        options=new.options.payload(),
        next_url=new.next_url,
        expires_at=remote.expires_at,
        created_at=remote.created_at,
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
    new.on_recorded(link)
    return link


def record_sent(
    link: SetupLink, channel: str, *, actor: AbstractBaseUser | None = None, to: str = ""
) -> TimelineEvent:
    """Record that ``link`` was given to its customer by ``channel``: email, copy, qr or share.
    ``to`` is the e-mail address."""
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


def record_opened(link: SetupLink, *, source: str) -> bool:
    """Record that the customer opened ``link``; return whether it was the first time."""

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


def record_failure(link: SetupLink, error_code: str, *, source: str = Source.REDIRECT) -> bool:
    """Record that the customer came back from ``link`` with Kapso's ``error_code``.

    Return whether that was new. A page that is reloaded, a link that was completed, and a link
    with ``MAX_FAILURES`` failures change nothing.
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


def apply_remote_link(link: SetupLink, remote: KapsoSetupLink | None) -> bool:
    """Update an active ``link`` to what ``remote``, just read from the API, says.

    ``remote`` is None for a link that Kapso no longer has. Return whether the link has ended.
    """
    if remote is not None and remote.whatsapp_setup_status not in {
        None,
        SetupLink.SetupStatus.PENDING,
    }:
        # The hosted page was used, whether or not a browser came back from it.
        record_opened(link, source=Source.SYNC)
    if (
        remote is not None
        and remote.whatsapp_setup_status == SetupLink.SetupStatus.FAILED
        and link.setup_status != SetupLink.SetupStatus.FAILED
    ):
        # No redirect reported the failure.
        record_failure(link, _error_code(remote.whatsapp_setup_error), source=Source.SYNC)
    status = SetupLink.Status.REVOKED if remote is None else remote.status
    if remote is not None and status == SetupLink.Status.ACTIVE:
        if remote.expires_at != link.expires_at:
            SetupLink.objects.filter(pk=link.pk).update(expires_at=remote.expires_at)
            link.expires_at = remote.expires_at
        return False
    return retry_on_conflict(lambda: _end_link(link, status, Source.SYNC))


def _error_code(error: str | None) -> str:
    """Return the API's ``error`` as a code like those of the redirect."""
    return error if error and re.fullmatch(r"[0-9A-Za-z_-]{1,64}", error) else "unknown"


def expire_links() -> int:
    """Mark the links past their ``expires_at`` as expired, and return how many there were."""
    links = SetupLink.objects.past_expiry().select_related("customer")
    expired = 0
    while batch := list(links[:EXPIRE_BATCH_SIZE]):
        for link in batch:
            expired += retry_on_conflict(
                partial(_end_link, link, SetupLink.Status.EXPIRED, Source.SYNC)
            )
    return expired


def _end_link(
    link: SetupLink,
    status: str,
    source: str,
    actor: AbstractBaseUser | None = None,
    data: Mapping[str, Any] | None = None,
    *,
    condition: Q = ACTIVE,
) -> bool:
    """Give an active link its final ``status``, and return whether it was still active.

    ``condition`` is for links that are not active and yet can end: the revocable ones.
    """
    changed = SetupLink.objects.filter(condition, pk=link.pk).update(status=status)
    link.status = status
    if changed and status in EVENT_KINDS_BY_STATUS:
        outbox.record(
            EVENT_KINDS_BY_STATUS[SetupLink.Status(status)],
            source=source,
            customer=link.customer,
            setup_link=link,
            actor=actor,
            data=dict(data or {}),
        )
    return bool(changed)


def open_links(
    customer: Customer | OuterRef, phone_number_id: str | Slot, since: datetime | None = None
) -> QuerySet[SetupLink]:
    """Return the links that may have led to a connection that was reported without one, likeliest
    first.

    That is the link for which a browser reported this number, then the newest one that is not
    completed, not reported for another number, and not created after ``since``, when the number
    was added to Kapso.
    """
    links = SetupLink.objects.filter(_is_open(phone_number_id, since), customer=customer)
    return links.order_by("-unconfirmed_phone_number_id", "-created_at", "-pk")


def _is_open(phone_number_id: str | Slot, since: datetime | None = None) -> Q:
    for_this_number = Q(unconfirmed_phone_number_id=phone_number_id)
    for_no_number = Q(unconfirmed_phone_number_id="")
    if since is not None:
        for_no_number &= Q(created_at__lte=since)
    active_or_used = Q(status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.USED])
    not_completed = ~Q(setup_status=SetupLink.SetupStatus.COMPLETED)
    return (for_this_number | for_no_number) & active_or_used & not_completed


def complete(link: SetupLink) -> None:
    """Record that ``link`` connected a number."""
    link.opened_at = link.opened_at or timezone.now()
    for field, value in COMPLETED_FIELDS.items():
        setattr(link, field, value)
    link.save(update_fields=["opened_at", *COMPLETED_FIELDS])


def complete_open(link_id: int, phone_number_id: str) -> bool:
    """Complete a link that ``open_links`` just returned; return whether it was still open."""
    now = timezone.now()
    return bool(_completion.execute(link_id=link_id, phone_number_id=phone_number_id, now=now))


def _complete_open(
    link_id: Slot, phone_number_id: Slot, now: Slot
) -> tuple[QuerySet[SetupLink], dict[str, Any]]:
    still_open = SetupLink.objects.filter(_is_open(phone_number_id), pk=link_id).order_by()
    return still_open, {"opened_at": Coalesce("opened_at", now), **COMPLETED_FIELDS}


_completion = Update(
    _complete_open, link_id=BigAutoField(), phone_number_id=CharField(), now=DateTimeField()
)


def _update_remote(
    link: SetupLink, changes: Mapping[str, Any], client: KapsoClient | None
) -> KapsoSetupLink:
    with _client_or_own(client) as api:
        return api.update_setup_link(link.customer.kapso_id or "", link.kapso_id, changes)


def _find_remote(link: SetupLink, client: KapsoClient | None) -> KapsoSetupLink | None:
    with _client_or_own(client) as api:
        remotes = api.list_setup_links(link.customer.kapso_id or "")
        return next((remote for remote in remotes if remote.id == link.kapso_id), None)


def _client_or_own(client: KapsoClient | None) -> AbstractContextManager[KapsoClient]:
    """Return ``client``, which stays open afterwards, or a new client, which is closed."""
    return nullcontext(client) if client is not None else KapsoClient.from_settings()
