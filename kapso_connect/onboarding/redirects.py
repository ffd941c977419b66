"""What a returning browser reports, confirmed by Kapso's API."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from ..conf import get_conf
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import (
    KapsoError,
    KapsoNotFound,
    KapsoValidationError,
    NeedsConfirmation,
    TryLater,
)
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoPhoneNumber
from ..log import log_event
from ..models import Connection, Customer, SetupLink, Source
from ..phone_numbers import comparable_digits
from ..utils import as_instant, time_since
from .numbers import Number, connect
from .remote_numbers import (
    NOT_SHOWN_YET_WINDOW,
    apply_remote_number,
    find_remote_number,
    is_closed,
)
from .setup_links import find_remote_link, is_completed_at_kapso
from .status import update_status


@dataclass(frozen=True)
class Connected:
    """The number is connected for the link's customer."""

    connection: Connection


@dataclass(frozen=True)
class Pending:
    """The API is unavailable, cannot tell yet, or was not asked. Unless it was not asked, the
    number is stored on the link as unconfirmed, until the webhook or ``kapso_sync`` confirms it."""


@dataclass(frozen=True)
class Rejected:
    """The number is not the customer's or is no longer connected, or the link has already connected
    another number. ``reason`` is for staff."""

    reason: str


NOT_FOUND = Rejected("Kapso has no such number.")


def outcome_without_api(link: SetupLink, number: Number) -> Connected | Rejected | None:
    """Return what a redirect from ``link`` with ``number`` means, if this site knows that without
    Kapso's API; else None."""
    if link.setup_status != SetupLink.SetupStatus.COMPLETED:
        return None
    known = connected_number(link, number)
    if known is None:
        return Rejected("This setup link has already connected a number.")
    return Connected(known) if known.display_phone_number else None


def connected_number(link: SetupLink, number: Number) -> Connection | None:
    """Return the connection, if ``number`` is connected for the link's customer. Without an id, the
    number is the one that the link connected."""
    connected = Connection.objects.connected().filter(customer=link.customer_id)
    if number.phone_number_id:
        known = connected.filter(phone_number_id=number.phone_number_id).first()
    else:
        known = connected.filter(setup_link=link).first()
    if known is not None:
        known.customer = link.customer
    return known


def confirm_redirect(
    link: SetupLink, number: Number, *, source: str = Source.REDIRECT, by_visitor: bool = False
) -> Connected | Pending | Rejected:
    """Confirm with the API what a returning browser reports: that ``link`` led to ``number``.

    The oldest form of the redirect does not say which number; ``number`` has no id then, and is
    looked for among those of the link's customer.

    A redirect is unsigned, so the API decides, within ``REQUEST_BUDGET``: whether the number is the
    customer's, and whether this link connected it. While the API is unavailable, or may not show
    the number yet, the number is stored as unconfirmed. The first one that was reported stays, but
    one that was reported with ``by_visitor`` (by a browser with the visit cookie) replaces one that
    was not. A number that is connected here for this customer stays connected, whatever the API
    says, unless it says that the number does not work any more.
    Raise CalledInTransaction inside a transaction.
    """
    refuse_in_transaction()
    settled = outcome_without_api(link, number)
    if settled is not None:
        return settled
    outcome: Connected | Pending | Rejected
    try:
        outcome = _ask(link, number, source, by_visitor=by_visitor)
    except KapsoValidationError:
        outcome = NOT_FOUND
    except (KapsoError, TryLater, NeedsConfirmation):
        _store_unconfirmed(link, number, by_visitor=by_visitor)
        known = connected_number(link, number)
        return Connected(known) if known else Pending()
    # One that does not appear stays until kapso_sync: a page that is loaded again waits no more.
    if outcome != NOT_FOUND or source == Source.SYNC:
        _clear_unconfirmed(link, number)
    if isinstance(outcome, Rejected):
        known = connected_number(link, number)
        if known is not None:
            return Connected(known)
        log_event(
            "redirect.rejected",
            setup_link_id=link.pk,
            customer_id=link.customer_id,
            reason=outcome.reason,
        )
    return outcome


def confirm_unconfirmed(link: SetupLink) -> Connected | Pending | Rejected:
    """Ask the API once more about the unconfirmed number of ``link``, as ``confirm_redirect`` does,
    and forget the number if Kapso does not know it by now: ``kapso_sync`` and staff do that."""
    number = Number(link.unconfirmed_phone_number_id)
    return confirm_redirect(link, number, source=Source.SYNC)


def _ask(link: SetupLink, number: Number, source: str, *, by_visitor: bool) -> Connected | Rejected:
    asked_at = timezone.now()
    # One attempt: the customer's page, or kapso_sync, asks again.
    client = KapsoClient.from_settings(
        budget=get_conf().request_budget, attempts=1, paced=source == Source.SYNC
    )
    customer, remote = link.customer, None
    known = connected_number(link, number)
    if known is not None:
        number = replace(number, phone_number_id=known.phone_number_id)
    if known is None or not known.display_phone_number:
        if number.phone_number_id:
            remote = find_remote_number(number.phone_number_id, client)
        else:
            remote = _find_new_number(link, client, is_last_attempt=source == Source.SYNC)
        if remote is None:
            if _may_appear(link, number, client, by_visitor=by_visitor):
                raise TryLater("Kapso's API does not show the number yet.")
            return NOT_FOUND
        if remote.customer_id is None or remote.customer_id != customer.kapso_id:
            return Rejected("This number does not belong to the customer of this link.")
    setup_link = link if _led_to_number(link, remote, client) else None
    if remote is None:
        return Connected(connect(customer, number, source=source, setup_link=setup_link))
    connection = apply_remote_number(
        customer,
        remote,
        asked_at=asked_at,
        source=source,
        setup_link=setup_link,
        provisioned_phone_number_id=number.provisioned_phone_number_id,
    )
    if connection is None or not connection.is_connected:
        return Rejected("Kapso says that this number is not connected.")
    return Connected(connection)


def _find_new_number(
    link: SetupLink, client: KapsoClient, *, is_last_attempt: bool
) -> KapsoPhoneNumber | None:
    """Return the number that ``link`` led to, as far as the numbers of its customer tell; None if
    there is none.

    It is the only one that no other link connected and that was added to Kapso since the link was
    created, or else the only one that is not connected here. Of a link that reconnects a number, it
    is that number. Raise TryLater if there are several, unless ``is_last_attempt``.
    """
    remotes = [
        remote
        for remote in client.list_phone_numbers(customer_id=link.customer.kapso_id or "")
        if not is_closed(remote)
    ]
    reconnected = comparable_digits(link.reconnect_number)
    if reconnected:
        found = [
            r for r in remotes if comparable_digits(r.display_phone_number or "") == reconnected
        ]
    else:
        connected = dict(
            Connection.objects.connected()
            .filter(customer=link.customer_id)
            .values_list("phone_number_id", "setup_link_id")
        )
        since = as_instant(link.created_at)
        unknown = [r for r in remotes if r.phone_number_id not in connected]
        without_link = [r for r in remotes if connected.get(r.phone_number_id) is None]
        found = [r for r in without_link if as_instant(r.created_at) >= since] or unknown
    if len(found) > 1 and not is_last_attempt:
        raise TryLater("The customer has several new numbers.")
    return found[0] if len(found) == 1 else None


def _may_appear(link: SetupLink, number: Number, client: KapsoClient, *, by_visitor: bool) -> bool:
    """Return whether the API may show ``number`` soon: it was reported just now, by the visitor or
    from a link that was used."""
    is_reported = link.unconfirmed_phone_number_id == number.phone_number_id
    since = link.unconfirmed_since if is_reported else None
    if since is not None and time_since(since) >= NOT_SHOWN_YET_WINDOW:
        return False
    was_visitor = since is not None and link.unconfirmed_by_visitor
    return by_visitor or was_visitor or _was_used(link, client)


def _was_used(link: SetupLink, client: KapsoClient) -> bool:
    """Return whether the API says that a number was connected by ``link``, or is just now."""
    try:
        remote = find_remote_link(link, client)
    except KapsoNotFound:  # The customer was deleted at Kapso, and the link with it.
        return False
    if remote is None:
        return False
    status = SetupLink.SetupStatus
    is_connecting = remote.whatsapp_setup_status in {status.PROCESSING, status.COMPLETED}
    return is_connecting or remote.status == SetupLink.Status.USED


def _led_to_number(link: SetupLink, remote: KapsoPhoneNumber | None, client: KapsoClient) -> bool:
    """Return whether ``link`` connected a number that is the customer's, and was not completed
    before. ``remote`` is the number, if it was just read from the API."""
    if link.setup_status == SetupLink.SetupStatus.COMPLETED:
        return False
    is_newer = remote is not None and as_instant(remote.created_at) >= as_instant(link.created_at)
    # Only the latest link can have added the number to Kapso. Of others, Kapso knows it.
    return (is_newer and link.is_latest and link.is_open) or is_completed_at_kapso(link, client)


def _store_unconfirmed(link: SetupLink, number: Number, *, by_visitor: bool) -> None:
    # A redirect without a number must not keep the webhook about one from finding the link.
    by_visitor = by_visitor and bool(number.phone_number_id)
    row = SetupLink.objects.filter(pk=link.pk).exclude(setup_status=SetupLink.SetupStatus.COMPLETED)
    same = row.filter(
        unconfirmed_phone_number_id=number.phone_number_id, unconfirmed_since__isnull=False
    )
    if same.exists():  # Reloading the page keeps the time.
        if by_visitor:
            _update(same, link, unconfirmed_by_visitor=True)
        return
    replaceable = Q(unconfirmed_phone_number_id="")
    if by_visitor:
        replaceable |= Q(unconfirmed_by_visitor=False)
    if _update(
        row.filter(replaceable),
        link,
        unconfirmed_phone_number_id=number.phone_number_id,
        unconfirmed_since=timezone.now(),
        unconfirmed_by_visitor=by_visitor,
    ):
        log_event("redirect.unconfirmed", setup_link_id=link.pk, customer_id=link.customer_id)


def _clear_unconfirmed(link: SetupLink, number: Number) -> None:
    """Forget that ``number`` was reported: the API has answered."""
    row = SetupLink.objects.filter(pk=link.pk, unconfirmed_phone_number_id=number.phone_number_id)
    if row.exists():
        _update(
            row,
            link,
            unconfirmed_phone_number_id="",
            unconfirmed_since=None,
            unconfirmed_by_visitor=False,
        )


def _update(rows: QuerySet[SetupLink], link: SetupLink, **changes: Any) -> bool:
    """Change ``rows``, which are ``link`` or nothing, and ``link`` with it; and the status of its
    customer. Return whether there was a row."""

    def change() -> bool:
        customers = list(Customer.objects.locked().filter(pk=link.customer_id))
        updated = rows.update(**changes)
        update_status(*customers)
        return bool(updated)

    is_updated = retry_on_conflict(change)
    if is_updated:
        for name, value in changes.items():
            setattr(link, name, value)
    return is_updated
