"""What a returning browser reports, confirmed by Kapso's API."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
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
from ..log import log_event
from ..models import Connection, Customer, SetupLink, Source
from .numbers import Number, connect
from .remote_numbers import apply_remote_number
from .status import update_status


@dataclass(frozen=True)
class Connected:
    """The number is connected for the link's customer."""

    connection: Connection


@dataclass(frozen=True)
class Pending:
    """The API is unavailable or cannot tell yet. The number is stored on the link as unconfirmed,
    until the webhook or ``kapso_sync`` confirms it."""


@dataclass(frozen=True)
class Rejected:
    """The number is not the customer's or is no longer connected, or the link has already connected
    another number. ``reason`` is for staff."""

    reason: str


def confirm_redirect(
    link: SetupLink, number: Number, *, source: str = Source.REDIRECT
) -> Connected | Pending | Rejected:
    """Confirm with the API what a returning browser reports: that ``link`` led to ``number``.

    A redirect is unsigned, so the API decides, within ``REQUEST_BUDGET``; only a number of this
    customer that is connected already, with its details, needs no request. Raise
    CalledInTransaction inside a transaction.
    """
    refuse_in_transaction()
    customer = link.customer
    known = (
        Connection.objects.connected()
        .filter(phone_number_id=number.phone_number_id, customer=customer)
        .first()
    )
    if known is not None and known.display_phone_number:
        # Unless it was disconnected or moved at this very moment.
        with suppress(NeedsConfirmation):
            return Connected(connect(customer, number, source=source, setup_link=link))
        known = None
    if known is None and link.setup_status == SetupLink.SetupStatus.COMPLETED:
        return Rejected("This setup link has already connected a number.")
    outcome = _ask(link, number, source)
    row = SetupLink.objects.filter(pk=link.pk)
    if isinstance(outcome, Rejected):
        reported = row.filter(unconfirmed_phone_number_id=number.phone_number_id)
        _update(reported, link, unconfirmed_phone_number_id="", unconfirmed_since=None)
        log_event(
            "redirect.rejected",
            setup_link_id=link.pk,
            customer_id=link.customer_id,
            reason=outcome.reason,
        )
    elif isinstance(outcome, Pending):
        if known is not None:
            with suppress(NeedsConfirmation):
                return Connected(connect(customer, number, source=source, setup_link=link))
        # Reloading the page keeps the time.
        unreported = row.exclude(setup_status=SetupLink.SetupStatus.COMPLETED).exclude(
            unconfirmed_phone_number_id=number.phone_number_id
        )
        if _update(
            unreported,
            link,
            unconfirmed_phone_number_id=number.phone_number_id,
            unconfirmed_since=timezone.now(),
        ):
            log_event("redirect.unconfirmed", setup_link_id=link.pk, customer_id=link.customer_id)
    return outcome


def _ask(link: SetupLink, number: Number, source: str) -> Connected | Pending | Rejected:
    asked_at = timezone.now()
    try:
        client = KapsoClient.from_settings(budget=get_conf().request_budget)
        remote = client.get_phone_number(number.phone_number_id)
        if remote.customer_id is None or remote.customer_id != link.customer.kapso_id:
            return Rejected("This number does not belong to the customer of this link.")
        connection = apply_remote_number(
            link.customer,
            remote,
            asked_at=asked_at,
            source=source,
            setup_link=link,
            provisioned_phone_number_id=number.provisioned_phone_number_id,
        )
    except (KapsoNotFound, KapsoValidationError):
        return Rejected("Kapso has no such number.")
    except (KapsoError, TryLater):
        return Pending()
    if connection is None:
        return Rejected("Kapso says that this number is not connected.")
    return Connected(connection)


def _update(rows: QuerySet[SetupLink], link: SetupLink, **changes: Any) -> bool:
    """Change ``rows``, which are ``link`` or nothing, and the status of its customer. Return
    whether there was a row."""

    def change() -> bool:
        customers = list(Customer.objects.locked().filter(pk=link.customer_id))
        updated = rows.update(**changes)
        update_status(*customers)
        return bool(updated)

    return retry_on_conflict(change)
