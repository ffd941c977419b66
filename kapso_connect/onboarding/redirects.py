"""What a returning browser says, confirmed by Kapso's API."""

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
from ..models import (
    Connection,
    SetupLink,
    Source,
)
from .numbers import Number, apply_remote_number, connect

UNKNOWN_NUMBER = "Kapso does not know this number."


def confirm_redirect(
    link: SetupLink, number: Number, *, source: str = Source.REDIRECT
) -> Connection | None:
    """Settle what a returning browser says: that ``link`` led to ``number``.

    A redirect is unsigned, so the API decides. Returns the connection, or None while the API is
    away or cannot tell: the claim is kept then, and the webhook or ``kapso_sync`` settles it.
    Raises Rejected where the number is not the customer's, or is no longer connected.
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
        raise Rejected("This setup link was completed before; a link connects once.")
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
    except (KapsoNotFound, KapsoValidationError, Rejected) as refusal:
        SetupLink.objects.filter(
            pk=link.pk, unconfirmed_phone_number_id=number.phone_number_id
        ).update(unconfirmed_phone_number_id="", unconfirmed_since=None)
        reason = str(refusal) if isinstance(refusal, Rejected) else UNKNOWN_NUMBER
        log_event(
            "redirect.rejected", setup_link_id=link.pk, customer_id=link.customer_id, reason=reason
        )
        raise Rejected(reason) from None
    except (KapsoError, TryLater):
        if is_connected:
            with suppress(NeedsConfirmation):
                return connect(link.customer, number, source=source, setup_link=link)
        # A page that is loaded again is the same claim, as old as it was.
        kept = (
            SetupLink.objects.filter(pk=link.pk)
            .exclude(setup_status=SetupLink.SetupStatus.COMPLETED)
            .exclude(unconfirmed_phone_number_id=number.phone_number_id)
            .update(
                unconfirmed_phone_number_id=number.phone_number_id, unconfirmed_since=timezone.now()
            )
        )
        if kept:
            log_event("redirect.unconfirmed", setup_link_id=link.pk, customer_id=link.customer_id)
        return None
    return connection
