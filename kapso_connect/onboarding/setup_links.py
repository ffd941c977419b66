"""Setup links: created, sent, opened, extended, revoked, and completed or failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Case, Q, When
from django.utils import timezone

from .. import outbox, theme
from ..conf import get_conf
from ..db import bulk_insert, refuse_in_transaction, retry_on_conflict
from ..exceptions import (
    CustomerErased,
    InvalidOptions,
    KapsoError,
    KapsoNotFound,
    KapsoValidationError,
)
from ..kapso.client import KapsoClient
from ..kapso.error_codes import SETUP_ERRORS
from ..kapso.languages import Language
from ..kapso.setup_link_options import SetupLinkOptions
from ..kapso.types import KapsoSetupLink
from ..log import log_event
from ..models import Connection, Customer, SetupLink, Source, TimelineEvent, new_connect_key
from ..phone_numbers import comparable_digits, only_digits
from ..translation import gettext as _
from ..utils import as_aware, as_instant, reverse_path, validate_same_site_url
from .arguments import check_customer, check_setup_link
from .connect_urls import failure_token
from .customers import register
from .status import OnboardingStatus, update_status

Kind = TimelineEvent.Kind

CLOCK_SKEW = timedelta(seconds=60)
"""How far Kapso's clock may be behind this site's."""

EXPIRE_BATCH_SIZE = 500

EVENT_KINDS_BY_STATUS = {
    SetupLink.Status.REVOKED: Kind.SETUP_LINK_REVOKED,
    SetupLink.Status.EXPIRED: Kind.SETUP_LINK_EXPIRED,
}
"""The event that the timeline gets when a link's status becomes this one."""

COMPLETED = SetupLink.SetupStatus.COMPLETED

INVITED_STATUSES = {OnboardingStatus.INVITED, OnboardingStatus.OPENED, OnboardingStatus.FAILED}

COMPLETED_FIELDS: dict[str, Any] = {
    "status": SetupLink.Status.USED,
    "setup_status": COMPLETED,
    "last_error_code": "",
    "unconfirmed_phone_number_id": "",
    "unconfirmed_since": None,
    "unconfirmed_by_visitor": False,
    "failed_by_visitor": False,
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

    Raise InvalidOptions or CustomerErased before any request is made, a KapsoError if Kapso refuses
    or is unavailable, and ImproperlyConfigured without ``PUBLIC_URL``. In each case nothing is
    recorded, and it is safe to call again. Raise CalledInTransaction, before anything else, inside
    a transaction: a rollback would lose a link that exists at Kapso.
    """
    check_customer(customer, "create_setup_link")
    refuse_in_transaction()
    request = prepare(customer, options=options, next_url=next_url, created_by=created_by)
    return create(request, client or KapsoClient.from_settings())


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
    Raise ValueError for a time in the past, CalledInTransaction inside a transaction, and a
    KapsoError if Kapso refuses or is unavailable; the link is then unchanged.
    """
    check_setup_link(link, "extend_setup_link")
    refuse_in_transaction()
    if expires_at <= timezone.now():
        raise ValueError("A setup link can only be extended into the future.")
    if link.status != SetupLink.Status.ACTIVE:
        return False
    # Naive if USE_TZ is off: astimezone() takes it as local time, which it is.
    changes = {"expires_at": expires_at.astimezone().isoformat()}
    client = client or KapsoClient.from_settings()
    try:
        remote = client.update_setup_link(link.customer.kapso_id or "", link.kapso_id, changes)
    except KapsoNotFound:
        remote = None
    if remote is None or remote.status != SetupLink.Status.ACTIVE:
        apply_remote_link(link, remote)
        return False

    until = remote.expires_at or expires_at

    def change() -> bool:
        if not SetupLink.objects.active().filter(pk=link.pk).update(expires_at=until):
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
    as it is. Raise a KapsoError if Kapso is unavailable, and CalledInTransaction inside a
    transaction; the link is then unchanged.
    """
    check_setup_link(link, "revoke_setup_link")
    refuse_in_transaction()
    if not link.is_revocable:
        return False
    if link.status == SetupLink.Status.ACTIVE:
        client = client or KapsoClient.from_settings()
        try:
            client.revoke_setup_link(link.customer.kapso_id or "", link.kapso_id)
        except KapsoNotFound:
            pass  # It no longer exists, which is what was wanted.
        except KapsoValidationError:
            # Kapso does not revoke a link that was used.
            remote = find_remote_link(link, client)
            if remote is None or not apply_remote_link(link, remote):
                raise
            return False

    return retry_on_conflict(
        partial(_end_link, link, SetupLink.Status.REVOKED, Source.MANUAL, actor)
    )


@dataclass(frozen=True)
class LinkRequest:
    """A setup link that Kapso is asked for: see ``prepare``."""

    customer: Customer
    options: SetupLinkOptions
    sent_options: dict[str, Any] = field(repr=False)
    next_url: str
    created_by: AbstractBaseUser | None
    known_ids: Collection[str]
    since: datetime | None
    on_recorded: Callable[[SetupLink], object] | None


def prepare(
    customer: Customer,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    since: datetime | None = None,
    known_ids: Collection[str] | None = None,
    on_recorded: Callable[[SetupLink], object] | None = None,
) -> LinkRequest:
    """Read what is needed to ask Kapso for a setup link. Raise as ``create_setup_link`` does for
    wrong arguments and settings.

    ``since`` is when an earlier attempt for the same purpose began whose outcome is not known: an
    unrecorded link that Kapso created since then is used instead of creating a second one.
    ``known_ids`` are Kapso's ids of the customer's recorded links, if they were just read.
    ``on_recorded`` is called in the transaction that records the link.
    """
    if customer.erased_at is not None:
        raise erased_error(customer)
    if known_ids is None:
        known_ids = set(customer.setup_links.values_list("kapso_id", flat=True))
    built, next_url = validate(customer, options, next_url)
    return LinkRequest(
        customer,
        built,
        _sent_options(customer, built),
        next_url,
        created_by if isinstance(created_by, AbstractBaseUser) else None,
        known_ids,
        since,
        on_recorded,
    )


def erased_error(customer: Customer) -> CustomerErased:
    text = _("%(customer)s cannot be invited: its personal data were erased.")
    return CustomerErased(text % {"customer": customer})


def ask(request: LinkRequest, client: KapsoClient) -> KapsoSetupLink:
    """Let Kapso create the link, for a customer that is registered there. Touches no row, so any
    thread may call it."""
    kapso_id = request.customer.kapso_id or ""
    if request.since and (found := _find_unrecorded(client, request, request.since)):
        return found
    started = timezone.now()
    try:
        return client.create_setup_link(kapso_id, request.sent_options)
    except KapsoError as error:
        # The link may exist. If the search fails as well, the first error is raised.
        with suppress(KapsoError):
            created = error.outcome_unknown and _find_unrecorded(client, request, started)
            if created:
                return created
        raise


def _sent_options(customer: Customer, options: SetupLinkOptions) -> dict[str, Any]:
    """Return the options for Kapso. This site's own failure page gets a token in its URL, by which
    it recognizes the customer's browser without a cookie; the token is not stored."""
    sent = options.payload()
    if sent.get("failure_redirect_url") == failure_url():
        path = reverse_path("kapso_connect:failed", args=[failure_token(customer)])
        sent["failure_redirect_url"] = get_conf().public_url + path
    return sent


def failure_url() -> str:
    """Return the URL of this site's own failure page."""
    return get_conf().public_url + reverse_path("kapso_connect:failed")


def _find_unrecorded(
    client: KapsoClient, request: LinkRequest, since: datetime
) -> KapsoSetupLink | None:
    """Return an active link that Kapso created after ``since`` and that is not recorded here."""
    since = as_aware(since) - CLOCK_SKEW
    kapso_id = request.customer.kapso_id or ""
    for link in client.list_setup_links(kapso_id, status="active", created_after=since):
        if link.id not in request.known_ids and as_aware(link.created_at) >= since:
            return link
    return None


def record(answers: Sequence[tuple[LinkRequest, KapsoSetupLink]]) -> list[SetupLink | None]:
    """Record links that Kapso created for different customers, in one transaction, and return them
    in the same order; None for a customer who no longer exists."""
    pks = [request.customer.pk for request, _ in answers]

    def change() -> tuple[list[SetupLink | None], list[SetupLink]]:
        # Two members of staff may invite the same customer at once: the lock makes the second
        # wait, and Kapso's own times say which link is still active there.
        customers = Customer.objects.locked().in_bulk(pks)
        known = {link.kapso_id: link for link in SetupLink.objects.filter(customer__in=customers)}
        for recorded in known.values():
            recorded.customer = customers[recorded.customer_id]
            if recorded.pk == recorded.customer.latest_setup_link_id:
                recorded.customer.latest_setup_link = recorded
        links: list[SetupLink | None] = []
        new: list[SetupLink] = []
        for request, remote in answers:
            customer = customers.get(request.customer.pk)
            link = known.get(remote.id)
            if customer is not None and link is None:
                link = _new_link(request, remote, customer, known.values())
                new.append(link)
            links.append(link)
        bulk_insert(new)
        for customer in customers.values():
            if customer.erased_at is None:
                customer.connect_key = customer.connect_key or new_connect_key()
        for created in new:
            latest = created.customer.latest_setup_link
            if latest is None or as_instant(latest.created_at) <= as_instant(created.created_at):
                created.customer.latest_setup_link = created
        Customer.objects.bulk_update(customers.values(), ["connect_key", "latest_setup_link"])
        outbox.record_all(
            TimelineEvent(
                kind=Kind.SETUP_LINK_CREATED,
                source=Source.MANUAL,
                customer=link.customer,
                setup_link_id=link.pk,  # not the object, which gets the token
                actor_id=link.created_by_id,
            )
            for link in new
        )
        update_status(*customers.values())
        for (request, remote), link in zip(answers, links, strict=True):
            if link is not None:
                # The caller's object is brought up to date.
                for name in Customer.WRITTEN_BY_ONBOARDING:
                    setattr(request.customer, name, getattr(link.customer, name))
                link.token = remote.token
                if request.on_recorded is not None:
                    request.on_recorded(link)
        return links, new

    links, new = retry_on_conflict(change)
    for link in new:
        if problems := theme.problems(link.options.get("theme_config")):
            log_event(
                "setup_link.hard_to_read",
                setup_link_id=link.pk,
                customer_id=link.customer_id,
                problems="; ".join(map(str, problems)),
            )
    return links


def _new_link(
    request: LinkRequest, remote: KapsoSetupLink, customer: Customer, others: Iterable[SetupLink]
) -> SetupLink:
    """Return the link that is to be inserted. It ends the customer's older links, as at Kapso."""
    relevant = [
        link
        for link in others
        if link.customer_id == customer.pk
        and (link.status == SetupLink.Status.ACTIVE or link.pk == customer.latest_setup_link_id)
    ]
    created_at = as_instant(remote.created_at)
    is_superseded = any(as_instant(link.created_at) > created_at for link in relevant)
    for older in relevant:
        if older.status == SetupLink.Status.ACTIVE and as_instant(older.created_at) <= created_at:
            _mark_ended(
                older,
                SetupLink.Status.REVOKED,
                Source.MANUAL,
                request.created_by,
                {"reason": "replaced"},
            )
    return SetupLink(
        customer=customer,
        kapso_id=remote.id,
        url=remote.url,
        status=SetupLink.Status.REVOKED if is_superseded else remote.status,
        options=request.options.payload(),
        next_url=request.next_url,
        expires_at=remote.expires_at,
        created_at=remote.created_at,
        created_by_id=request.created_by.pk if request.created_by else None,
    )


def validate(
    customer: Customer, options: Mapping[str, Any] | None, next_url: str
) -> tuple[SetupLinkOptions, str]:
    """Return the options of a new link, as ``build_options`` does, and the path or URL to continue
    to. Raise InvalidOptions with all that is wrong with both."""
    errors: dict[str, str] = {}
    try:
        next_url = validate_same_site_url(next_url)
    except InvalidOptions as error:
        errors |= error.errors
    try:
        built = build_options(customer, options)
    except InvalidOptions as error:
        raise InvalidOptions({**errors, **error.errors}) from None
    if errors:
        raise InvalidOptions(errors)
    return built, next_url


def build_options(customer: Customer, options: Mapping[str, Any] | None) -> SetupLinkOptions:
    """Return the options of a new link: this site's URLs, ``SETUP_LINK_DEFAULTS``, the customer's
    language, and ``options``; later ones override earlier ones. Raise InvalidOptions, also for a
    number to reconnect that is not one of the customer's."""
    origin = get_conf().public_url
    if not origin:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set: Kapso needs to know where to send customers "
            "back to. Set it to the https origin of this site, such as https://crm.example.com."
        )
    urls = {
        "success_redirect_url": origin + reverse_path("kapso_connect:success"),
        "failure_redirect_url": failure_url(),
    }
    language: dict[str, str | None] = {}
    if customer.language:
        # One that Kapso does not have goes before the default all the same.
        known = customer.language in Language.values
        language["language"] = customer.language if known else None
    built = SetupLinkOptions.build(urls, get_conf().setup_link_defaults, language, options)
    if built.reconnect_phone_number is None or customer.pk is None:
        return built
    return _check_reconnection(customer, built, built.reconnect_phone_number)


def _check_reconnection(
    customer: Customer, options: SetupLinkOptions, phone_number: str
) -> SetupLinkOptions:
    """Return ``options`` with the number to reconnect as Kapso wrote it. Raise InvalidOptions for
    what Kapso would refuse, as far as that is known here."""
    wanted = comparable_digits(phone_number)
    numbers = list(customer.connections.order_by("status", "-pk"))
    number = next((n for n in numbers if comparable_digits(n.phone_digits) == wanted), None)
    if number is None:
        others = Connection.objects.connected().exclude(customer=customer)
        may_be_theirs = not all(known.phone_digits for known in numbers) or not numbers
        if may_be_theirs and not others.filter(phone_digits=only_digits(phone_number)).exists():
            return options  # Kapso knows
        raise InvalidOptions(
            {"reconnect_phone_number": _("Must be one of this customer's numbers.")}
        )
    types = set(options.allowed_connection_types or ())
    if types and number.connection_type and types != {number.connection_type}:
        raise InvalidOptions(
            {
                "allowed_connection_types": _(
                    "The number is connected as “%(type)s”, and reconnecting does not change that."
                )
                % {"type": number.get_connection_type_display()}
            }
        )
    return replace(options, reconnect_phone_number=f"+{number.phone_digits}")


def create(request: LinkRequest, client: KapsoClient) -> SetupLink:
    """Create the link at Kapso and record it; register the customer first if needed."""
    refuse_in_transaction()
    customer = request.customer
    register(customer, client)
    try:
        remote = ask(request, client)
    except KapsoNotFound:
        # The customer was deleted at Kapso: register it again.
        customer.kapso_id = None
        register(customer, client)
        remote = ask(request, client)
    [link] = record([(request, remote)])
    if link is None:
        raise Customer.DoesNotExist
    if link.customer.erased_at is not None:  # while Kapso was asked
        revoke_setup_link(link, client=client)
        raise erased_error(link.customer)
    return link


def record_sent(
    link: SetupLink,
    channel: str,
    *,
    source: str = Source.MANUAL,
    actor: AbstractBaseUser | None = None,
    to: str = "",
    message: str = "",
) -> TimelineEvent:
    """Record that ``link`` was given to its customer by ``channel``: email, copy, qr or share.
    ``to`` is the e-mail address; ``message`` is "reminder" for a reminder."""
    given = {"channel": channel, "to": to, "message": message}
    data = {name: value for name, value in given.items() if value}
    return retry_on_conflict(
        lambda: outbox.record(
            Kind.SETUP_LINK_SENT,
            source=source,
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
        customers = list(Customer.objects.locked().filter(pk=link.customer_id))
        if source == Source.REDIRECT:
            SetupLink.objects.filter(pk=link.pk).update(last_opened_at=now)
        if not SetupLink.objects.filter(pk=link.pk, opened_at=None).update(opened_at=now):
            return False
        link.opened_at = now
        outbox.record(
            Kind.SETUP_LINK_OPENED,
            source=source,
            customer_id=link.customer_id,
            setup_link=link,
            occurred_at=now,
        )
        update_status(*customers)
        return True

    return retry_on_conflict(change)


def set_language(link: SetupLink, language: str, client: KapsoClient | None = None) -> None:
    """Store the ``language`` that the customer of ``link`` chose, one of the pages' languages.

    If Kapso has this language, ``client`` sets it for the hosted page, too. Without a ``client``,
    or after an error (it is logged), the hosted page stays as it is. Raise CalledInTransaction
    inside a transaction.
    """
    refuse_in_transaction()
    customer = link.customer
    options = {name: value for name, value in link.options.items() if name != "language"}
    if link.options.get("language") == language:
        options["language"] = language
    elif client is not None and language in Language.values:
        try:
            client.update_setup_link(customer.kapso_id or "", link.kapso_id, {"language": language})
            options["language"] = language
        except KapsoError as error:
            log_event(
                "setup_link.language_not_set",
                setup_link_id=link.pk,
                customer_id=link.customer_id,
                error=str(error),
            )

    if (customer.language, link.options) == (language, options):
        return
    # A link without a language is in the customer's.
    customer.language, link.options = language, options

    def change() -> None:
        rows = Customer.objects.filter(pk=customer.pk)
        rows.update(language=language, updated_at=timezone.now())
        SetupLink.objects.filter(pk=link.pk).update(options=options)

    retry_on_conflict(change)


def record_failure(
    link: SetupLink, error_code: str, *, source: str = Source.REDIRECT, by_visitor: bool = False
) -> bool:
    """Record that the customer came back from ``link`` with Kapso's ``error_code``.

    A redirect is unsigned, so anybody who has the link's id can report anything. Therefore each
    known code is added to the timeline once, and all unknown codes together once. An unknown code
    replaces no known one as the link's error code, and without ``by_visitor`` (the customer's
    browser) no code replaces one that such a browser reported. With ``Source.SYNC``, Kapso's
    API reported the failure. Return whether the timeline got an event; a link that was completed
    gets none.
    """
    is_known = error_code in SETUP_ERRORS

    def change() -> bool:
        customers = list(Customer.objects.locked().filter(pk=link.customer_id))
        locked = SetupLink.objects.get(pk=link.pk)
        if locked.setup_status == COMPLETED:
            return False
        changes: dict[str, Any] = {"setup_status": SetupLink.SetupStatus.FAILED}
        is_believed = by_visitor or source != Source.REDIRECT or not locked.failed_by_visitor
        if is_believed and (is_known or locked.last_error_code not in SETUP_ERRORS):
            changes |= {"last_error_code": error_code, "failed_by_visitor": by_visitor}
        if locked.opened_at is None:
            changes["opened_at"] = timezone.now()
        changed = [name for name, value in changes.items() if getattr(locked, name) != value]
        for name in changed:
            setattr(locked, name, changes[name])
        if changed:
            locked.save(update_fields=changed)
        failures = TimelineEvent.objects.filter(setup_link=locked, kind=Kind.SETUP_FAILED)
        recorded = {str(data.get("error_code")) for data in failures.values_list("data", flat=True)}
        is_new = error_code not in recorded if is_known else recorded <= SETUP_ERRORS.keys()
        if is_new:
            outbox.record(
                Kind.SETUP_FAILED,
                source=source,
                customer_id=link.customer_id,
                setup_link=locked,
                data={"error_code": error_code},
            )
        update_status(*customers)
        return is_new

    return retry_on_conflict(change)


def apply_remote_link(link: SetupLink, remote: KapsoSetupLink | None) -> bool:
    """Update an active ``link`` to what ``remote``, just read from the API, says.

    ``remote`` is None for a link that Kapso no longer has. Return whether the link has ended.
    """
    if remote is None:
        return retry_on_conflict(partial(_end_link, link, SetupLink.Status.REVOKED, Source.SYNC))
    setup_status = remote.whatsapp_setup_status
    if setup_status not in {None, SetupLink.SetupStatus.PENDING}:
        # The hosted page was used, whether or not a browser came back from it.
        record_opened(link, source=Source.SYNC)
    failed = SetupLink.SetupStatus.FAILED
    if setup_status == failed:
        code = _error_code(remote.whatsapp_setup_error)
        if (link.setup_status, link.last_error_code) != (failed, code):
            # No redirect reported the failure, or one reported another.
            record_failure(link, code, source=Source.SYNC)
    elif setup_status == SetupLink.SetupStatus.PENDING and link.setup_status == failed:
        retry_on_conflict(partial(_clear_unproven_failure, link))
    if remote.status != SetupLink.Status.ACTIVE:
        return retry_on_conflict(partial(_end_link, link, remote.status, Source.SYNC))
    if remote.expires_at != link.expires_at:
        SetupLink.objects.filter(pk=link.pk).update(expires_at=remote.expires_at)
        link.expires_at = remote.expires_at
    return False


def _clear_unproven_failure(link: SetupLink) -> None:
    """Forget a failure that only a redirect without the visit cookie reported: Kapso knows of
    none."""
    customers = list(Customer.objects.locked().filter(pk=link.customer_id))
    unproven = SetupLink.objects.active().filter(
        pk=link.pk, setup_status=SetupLink.SetupStatus.FAILED, failed_by_visitor=False
    )
    changes: dict[str, Any] = {"setup_status": SetupLink.SetupStatus.PENDING, "last_error_code": ""}
    opened = TimelineEvent.objects.filter(setup_link=link, kind=Kind.SETUP_LINK_OPENED)
    if not opened.exists():
        changes["opened_at"] = None
    if unproven.update(**changes):
        for name, value in changes.items():
            setattr(link, name, value)
        update_status(*customers)


def _error_code(error: str | None) -> str:
    """Return the API's ``error`` as a code like those of the redirect."""
    return error if error and re.fullmatch(r"[0-9A-Za-z_-]{1,64}", error) else "unknown"


def expire_links() -> int:
    """Mark the links past their ``expires_at`` as expired, and return how many there were."""
    links = SetupLink.objects.active().expired().select_related("customer")
    expired = 0
    while batch := list(links[:EXPIRE_BATCH_SIZE]):
        for link in batch:
            expired += retry_on_conflict(
                partial(_end_link, link, SetupLink.Status.EXPIRED, Source.SYNC)
            )
    return expired


def _end_link(
    link: SetupLink, status: str, source: str, actor: AbstractBaseUser | None = None
) -> bool:
    """Give a link its final ``status``, and return whether it ended now. A link that staff revoke
    need not be active; one that they revoke as the latest ends the connect URL, too."""
    customer = Customer.objects.locked().filter(pk=link.customer_id).first()
    if customer is None:
        return False  # It was deleted, and the link with it.
    link.refresh_from_db(fields=["status", "setup_status"])
    by_staff = source == Source.MANUAL
    can_end = link.is_revocable if by_staff else link.status == SetupLink.Status.ACTIVE
    if can_end:
        _mark_ended(link, status, source, actor)
        if by_staff and customer.latest_setup_link_id in {None, link.pk}:
            Customer.objects.filter(pk=customer.pk).update(connect_key=None)
        update_status(customer)
    return can_end


def _mark_ended(
    link: SetupLink,
    status: str,
    source: str,
    actor: AbstractBaseUser | None,
    data: Mapping[str, Any] | None = None,
) -> None:
    link.status = status
    link.save(update_fields=["status"])
    if status in EVENT_KINDS_BY_STATUS:
        outbox.record(
            EVENT_KINDS_BY_STATUS[SetupLink.Status(status)],
            source=source,
            customer=link.customer,
            setup_link=link,
            actor=actor,
            data=dict(data or {}),
        )


def find_open_link(
    customer: Customer, phone_number_id: str, since: datetime | None = None
) -> SetupLink | None:
    """Return the link that may have led ``customer`` to a number that was reported without a link.

    That is the newest one that is not completed, and not created after ``since``, when the number
    was added to Kapso; one for which a browser reported this number goes before the others. What a
    browser with the visit cookie reported also counts for a link that was created after ``since``,
    and leaves out a link for which it reported another number.
    """
    latest = customer.latest_setup_link
    if latest is None:
        return None
    # With one of these statuses, the customer has no link with an unconfirmed number.
    is_newest = customer.status in INVITED_STATUSES and (
        since is None or as_instant(latest.created_at) <= as_instant(since)
    )
    if latest.is_open and is_newest:
        return latest
    is_reported = Q(unconfirmed_phone_number_id=phone_number_id)
    others = Q(unconfirmed_by_visitor=False)
    if since is not None:
        others &= Q(created_at__lte=since)
    return (
        SetupLink.objects.open()
        .filter((is_reported & Q(unconfirmed_by_visitor=True)) | others, customer=customer)
        .order_by(Case(When(is_reported, then=0), default=1), "-created_at", "-pk")
        .first()
    )


def complete(link: SetupLink) -> None:
    """Record that ``link`` connected a number."""
    link.opened_at = link.opened_at or timezone.now()
    for name, value in COMPLETED_FIELDS.items():
        setattr(link, name, value)
    link.save(update_fields=["opened_at", *COMPLETED_FIELDS])


def record_completed(link: SetupLink) -> None:
    """Record that ``link`` was completed, as the API says, if a number of its customer is
    connected. Before that, the number is still to be recorded, and with it the link."""

    def change() -> None:
        list(Customer.objects.locked().filter(pk=link.customer_id))
        link.refresh_from_db(fields=["opened_at", *COMPLETED_FIELDS])
        connected = Connection.objects.connected().filter(customer=link.customer_id)
        if link.setup_status != COMPLETED and connected.exists():
            complete(link)

    retry_on_conflict(change)


def is_completed_at_kapso(link: SetupLink, client: KapsoClient) -> bool:
    """Ask the API whether ``link`` connected a number. Raise a KapsoError if it cannot tell."""
    try:
        remote = find_remote_link(link, client)
    except KapsoNotFound:  # The customer was deleted at Kapso, and the link with it.
        return False
    return remote is not None and remote.whatsapp_setup_status == COMPLETED


def find_remote_link(link: SetupLink, client: KapsoClient) -> KapsoSetupLink | None:
    """Return what the API says about ``link``; None if Kapso does not have it any more."""
    remotes = client.list_setup_links(link.customer.kapso_id or "")
    return next((remote for remote in remotes if remote.id == link.kapso_id), None)
