"""The setup link that a customer can use now: the latest one, or a new one if that has ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Exists, OuterRef

from ..conf import get_conf
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import (
    AlreadyConnected,
    InvitationWithdrawn,
    KapsoError,
    KapsoNotFound,
    KapsoUnavailable,
    KapsoValidationError,
    RenewalInProgress,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Connection, Customer, IdempotentRequest, SetupLink
from ..phone_numbers import comparable_digits
from ..utils import as_aware, as_stored, utc_now, validate_same_site_url
from .remote_numbers import record_numbers
from .setup_links import (
    CLOCK_SKEW,
    apply_remote_link,
    create,
    prepare,
    record_completed,
    revoke_setup_link,
)

RENEWAL_POLL_SECONDS = 0.1
"""Seconds between two checks whether another request has created the link."""

LEASE_MARGIN = 10
"""Seconds after ``REQUEST_BUDGET`` in which a request is still expected to end. After that, its
process has died."""

NOT_FOR_RECONNECTING = {
    "allowed_connection_types",
    "provision_phone_number",
    "phone_number_country_isos",
    "phone_number_area_code",
}
"""Options that choose a number. A link that reconnects one takes them from that number."""


def usable_setup_link(
    customer: Customer, *, may_ask: bool = True, client: KapsoClient | None = None
) -> SetupLink:
    """Return a setup link that ``customer`` can use now; create one if the latest has ended.

    A link has ended when it expired, was used, or was replaced by one made in Kapso's dashboard.
    The new link gets the old link's options and ``next_url``, but does not reconnect or provide a
    number that the old one connected already. However many requests ask at the same moment, one
    link is created: a second one would revoke the first, which a customer may be using already. All
    API requests together take at most ``REQUEST_BUDGET``, or what ``client`` has left of its
    budget. While the API is unavailable, or with ``may_ask`` False, a link that is usable as far as
    this site knows is returned unchecked.

    Raise InvitationWithdrawn, AlreadyConnected or RenewalInProgress; a KapsoError if Kapso refuses
    or is unavailable; InvalidOptions, ImproperlyConfigured and CalledInTransaction as
    ``create_setup_link`` does.
    """
    refuse_in_transaction()
    latest = _read_latest_link(customer)
    if is_onboarded(customer, latest):
        raise AlreadyConnected
    if latest is None:
        raise InvitationWithdrawn
    client = client or KapsoClient.from_settings(budget=get_conf().request_budget)
    try:
        if not may_ask:
            raise KapsoUnavailable("Kapso's API was slow a moment ago, so it was not asked.")
        is_usable = _check_link(latest, client)
    except KapsoError as error:
        if not latest.is_usable:
            raise
        log_event(
            "setup_link.unchecked",
            setup_link_id=latest.pk,
            customer_id=customer.pk,
            error=str(error),
        )
        return latest
    return latest if is_usable else _renew(latest, client)


def self_service_link(
    customer: Customer,
    *,
    reconnect: Connection | None = None,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    may_ask: bool = True,
    client: KapsoClient | None = None,
) -> SetupLink:
    """Return a setup link that ``customer`` can use now, for a user who may connect numbers for
    the customer: unlike ``usable_setup_link``, create one also for a customer who was never
    invited, or whose invitation was withdrawn.

    It is for the number of ``reconnect``, or for any number. One that is usable already, and for
    the same, is returned with its options; it gets this ``next_url``. However many requests ask at
    the same moment, one link is created. Where Kapso does not have the number of ``reconnect`` any
    more, the link is for any number.

    Raise what ``usable_setup_link`` raises, except InvitationWithdrawn; and CustomerErased.
    """
    refuse_in_transaction()
    next_url = validate_same_site_url(next_url)
    client = client or KapsoClient.from_settings(budget=get_conf().request_budget)
    options = dict(options or {})
    if reconnect is not None:
        number = f"+{reconnect.phone_digits}"
        options = {name: options[name] for name in options.keys() - NOT_FOR_RECONNECTING}
        options["reconnect_phone_number"] = number
    wanted = comparable_digits(str(options.get("reconnect_phone_number") or ""))
    latest = _read_latest_link(customer)
    # A link that has reconnected the number once has ended, but the number may need it again.
    is_same = latest is not None and comparable_digits(latest.reconnect_number) == wanted
    if is_same if latest is not None and latest.is_revocable else not wanted:
        if is_onboarded(customer, latest):
            raise AlreadyConnected
        customer.refresh_from_db(fields=["connect_key"])
        if customer.connect_key:  # else the invitation was withdrawn
            try:
                link = usable_setup_link(customer, may_ask=may_ask, client=client)
            except InvitationWithdrawn:
                latest = _read_latest_link(customer)
            else:
                return _with_next_url(link, next_url)
    try:
        return _create_once(customer, latest, options, next_url, created_by, client)
    except KapsoValidationError:
        if reconnect is None or reconnect.is_connected:
            raise
        # Kapso has removed the number.
        del options["reconnect_phone_number"]
        return _create_once(customer, latest, options, next_url, created_by, client)


def _with_next_url(link: SetupLink, next_url: str) -> SetupLink:
    if next_url and link.next_url != next_url:
        SetupLink.objects.filter(pk=link.pk).update(next_url=next_url)
        link.next_url = next_url
    return link


def _create_once(
    customer: Customer,
    latest: SetupLink | None,
    options: Mapping[str, Any],
    next_url: str,
    created_by: AbstractBaseUser | AnonymousUser | None,
    client: KapsoClient,
) -> SetupLink:
    """Create a link to follow the ``latest`` one. Of all requests for that at the same moment, one
    creates it, and the others wait for it."""
    seconds, now = get_conf().request_budget + LEASE_MARGIN, utc_now()
    key = ["self-service", customer.pk, latest and latest.pk, options.get("reconnect_phone_number")]
    leased = {
        "customer": customer,
        "leased_at": now,
        "leased_until": now + timedelta(seconds=seconds),
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    row, is_new = retry_on_conflict(
        lambda: IdempotentRequest.objects.get_or_create(digest=digest, defaults=leased)
    )
    rows = IdempotentRequest.objects.filter(pk=row.pk)
    if not is_new and not retry_on_conflict(lambda: rows.acquire_lease(seconds)):
        try:
            link = _wait_for_other_request(
                customer, latest, lambda: not any(row.is_leased for row in rows.all())
            )
        except RenewalInProgress:
            if rows.exists():
                raise
            # Kapso refused the other request, and says here, too, what is wrong.
            return _create_once(customer, latest, options, next_url, created_by, client)
        customer.refresh_from_db(fields=["connect_key"])  # the other request may have set it
        return link
    # Set if the outcome of an earlier attempt is not known. A link that it created is used then.
    since = None if is_new else row.created_at
    try:
        newest = _read_latest_link(customer)
        if newest is not None and (latest is None or newest.pk != latest.pk):
            link = newest  # another request has created it just before
            customer.refresh_from_db(fields=["connect_key"])
        else:
            request = prepare(
                customer, options=options, next_url=next_url, created_by=created_by, since=since
            )
            link = create(request, client)
    except Exception as error:
        is_unknown = isinstance(error, KapsoError) and error.outcome_unknown
        retry_on_conflict(rows.release_lease if is_unknown or since else rows.delete)
        raise
    retry_on_conflict(rows.delete)
    return link


def _read_latest_link(customer: Customer) -> SetupLink | None:
    customer.refresh_from_db(fields=["latest_setup_link"])
    latest = customer.latest_setup_link
    if latest is not None:
        latest.customer = customer
    return latest


def is_onboarded(customer: Customer, latest: SetupLink | None) -> bool:
    """Return whether ``customer`` has nothing left to do: the ``latest`` link is not an invitation
    to connect another number, and the one that it connected is the customer's own, and its account
    is not restricted. Where no number of that link is connected, any of the customer's counts."""
    if latest is not None and latest.is_revocable:
        return False
    numbers = Connection.objects.filter(customer=customer)
    of_latest = numbers.filter(setup_link=latest) if latest else numbers.none()
    if of_latest.connected().exists():
        numbers = of_latest
    return numbers.usable().exists()


def leads_to_setup(customer: Customer, latest: SetupLink | None) -> bool:
    """Return whether the personal link of ``customer`` leads to a setup link: the ``latest`` one,
    or a new one if that has ended. It leads to none once it was withdrawn, or the customer has
    nothing left to do; and after a link was revoked in Kapso's dashboard, only Kapso knows."""
    return (
        bool(customer.connect_key)
        and latest is not None
        and latest.status != SetupLink.Status.REVOKED
        and not is_onboarded(customer, latest)
    )


def _check_link(link: SetupLink, client: KapsoClient) -> bool:
    """Ask Kapso whether ``link`` can be used, and record what has changed. That a redirect reported
    it as used or expired does not matter: redirects are unsigned."""
    customer = link.customer
    if link.status == SetupLink.Status.EXPIRED or not customer.kapso_id:
        return False
    since = as_aware(link.created_at) - CLOCK_SKEW
    try:
        remotes = list(client.list_setup_links(customer.kapso_id, created_after=since))
    except KapsoNotFound:  # The customer was deleted at Kapso, and the link with it.
        return False
    remote = next((remote for remote in remotes if remote.id == link.kapso_id), None)
    if link.status == SetupLink.Status.ACTIVE:
        apply_remote_link(link, remote)
    if remote is not None and remote.whatsapp_setup_status == SetupLink.SetupStatus.COMPLETED:
        # Neither a webhook nor a redirect reported the one that the link led to.
        record_numbers(customer, client)
        record_completed(link)
        if is_onboarded(customer, _read_latest_link(customer)):
            raise AlreadyConnected
        return False
    if remote is not None and link.status == SetupLink.Status.REVOKED:
        if any(as_aware(r.created_at) > as_aware(remote.created_at) for r in remotes):
            return False
        raise InvitationWithdrawn
    return link.is_usable


def _renew(link: SetupLink, client: KapsoClient) -> SetupLink:
    customer = link.customer
    key = customer.connect_key
    rows = SetupLink.objects.filter(pk=link.pk)
    # Set if the outcome of an earlier attempt is not known. A link that it created is used then.
    earlier = rows.values_list("leased_at", flat=True).first()
    since = as_stored(earlier) if earlier else None
    is_latest = Exists(Customer.objects.filter(latest_setup_link=OuterRef("pk")))
    # Longer than the API requests can take: the lease expires only if its process was killed.
    if not rows.filter(is_latest).acquire_lease(get_conf().request_budget + LEASE_MARGIN):
        return _wait_for_other_request(
            customer, link, lambda: SetupLink.objects.filter(pk=link.pk).not_leased().exists()
        )
    # This site's own URLs may have changed since.
    options = {
        name: value for name, value in link.options.items() if not name.endswith("_redirect_url")
    }
    if link.setup_status == SetupLink.SetupStatus.COMPLETED:
        # If the number cannot be used all the same, another of the customer's own may be. Kapso
        # would provide another one at the site's cost.
        for name in ("reconnect_phone_number", "phone_number_area_code"):
            options.pop(name, None)
        if options.get("provision_phone_number"):
            options["provision_phone_number"] = False  # also where it is a default
    request = prepare(customer, options=options, next_url=link.next_url, since=since)
    try:
        new_link = create(request, client)
    except Exception as error:
        if not (isinstance(error, KapsoError) and error.outcome_unknown):
            rows.update(leased_at=earlier, leased_until=None)
        raise
    if customer.connect_key != key:  # Staff withdrew the invitation in the meantime.
        revoke_setup_link(new_link, client=client)
        raise InvitationWithdrawn
    return new_link


def _wait_for_other_request(
    customer: Customer, latest: SetupLink | None, is_free: Callable[[], bool]
) -> SetupLink:
    """Return the link that another request creates to follow the ``latest`` one. Raise
    RenewalInProgress if that takes too long, or if it was given up: ``is_free`` says so."""
    deadline = time.monotonic() + get_conf().request_budget
    while True:
        is_over = is_free()
        newest = _read_latest_link(customer)
        if newest is None and latest is not None:
            raise InvitationWithdrawn
        if newest is not None and (latest is None or newest.pk != latest.pk):
            return newest
        if is_over or time.monotonic() > deadline:
            raise RenewalInProgress
        time.sleep(RENEWAL_POLL_SECONDS)
