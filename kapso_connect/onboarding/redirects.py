"""What a returning browser reports, confirmed by Kapso's API."""

from __future__ import annotations

from contextlib import suppress

from django.utils import timezone

from ..conf import get_conf
from ..exceptions import (
    KapsoError,
    KapsoNotFound,
    KapsoValidationError,
    NeedsConfirmation,
    Rejected,
    TryLater,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Connection, SetupLink, Source
from .numbers import Number, apply_remote_number, connect

UNKNOWN_NUMBER = "Kapso has no such number."


def confirm_redirect(
    link: SetupLink, number: Number, *, source: str = Source.REDIRECT
) -> Connection | None:
    """Confirm with the API what a returning browser reports: that ``link`` led to ``number``.

    A redirect is unsigned, so the API decides, within ``REQUEST_BUDGET``. Return the connection, or
    None while the API is unavailable or cannot tell yet: then the number is stored on the link as
    unconfirmed, until the webhook or ``kapso_sync`` confirms it.
    Raise Rejected if the number is not the customer's or is no longer connected, or the link has
    already connected another number.
    """
    known = Connection.objects.filter(
        phone_number_id=number.phone_number_id, customer_id=link.customer_id
    ).first()
    is_connected = known is not None and known.is_connected
    if known is not None and is_connected and known.display_phone_number:
        try:
            return connect(link.customer, number, source=source, setup_link=link)
        except NeedsConfirmation:
            is_connected = False  # It was disconnected or moved at this very moment.
    if not is_connected and link.setup_status == SetupLink.SetupStatus.COMPLETED:
        raise Rejected("This setup link has already connected a number.")
    asked_at = timezone.now()
    try:
        with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            remote = client.get_phone_number(number.phone_number_id)
        if remote.customer_id is None or remote.customer_id != link.customer.kapso_id:
            raise Rejected("This number does not belong to the customer of this link.")
        connection = apply_remote_number(
            link.customer,
            remote,
            asked_at=asked_at,
            source=source,
            setup_link=link,
            provisioned_phone_number_id=number.provisioned_phone_number_id,
        )
        if connection is None:
            raise Rejected("Kapso says that this number is not connected.")
    except (KapsoNotFound, KapsoValidationError, Rejected) as error:
        reason = str(error) if isinstance(error, Rejected) else UNKNOWN_NUMBER
        _clear_unconfirmed_number(link, number, reason)
        raise Rejected(reason) from None
    except (KapsoError, TryLater):
        if is_connected:
            with suppress(NeedsConfirmation):
                return connect(link.customer, number, source=source, setup_link=link)
        _store_unconfirmed_number(link, number)
        return None
    return connection


def _clear_unconfirmed_number(link: SetupLink, number: Number, reason: str) -> None:
    SetupLink.objects.filter(pk=link.pk, unconfirmed_phone_number_id=number.phone_number_id).update(
        unconfirmed_phone_number_id="", unconfirmed_since=None
    )
    log_event(
        "redirect.rejected", setup_link_id=link.pk, customer_id=link.customer_id, reason=reason
    )


def _store_unconfirmed_number(link: SetupLink, number: Number) -> None:
    """Store the number as unconfirmed; reloading the page keeps the original time."""
    stored = (
        SetupLink.objects.filter(pk=link.pk)
        .exclude(setup_status=SetupLink.SetupStatus.COMPLETED)
        .exclude(unconfirmed_phone_number_id=number.phone_number_id)
        .update(
            unconfirmed_phone_number_id=number.phone_number_id, unconfirmed_since=timezone.now()
        )
    )
    if stored:
        log_event("redirect.unconfirmed", setup_link_id=link.pk, customer_id=link.customer_id)
