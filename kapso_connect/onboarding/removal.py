"""Numbers that are removed from Kapso, on behalf of staff."""

from __future__ import annotations

from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import (
    KapsoBlocked,
    KapsoError,
    KapsoNotFound,
    KapsoUnavailable,
    KapsoUnexpectedResponse,
    NumberMoved,
)
from ..kapso.client import KapsoClient
from ..models import DISCONNECTED_BY_STAFF, Connection, Customer, SetupLink, Source
from .arguments import check_connection
from .disconnections import disconnect
from .remote_numbers import confirm_owner
from .setup_links import revoke_setup_link


def disconnect_number(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> Connection:
    """Remove a number from Kapso and record that it is disconnected, on behalf of ``actor``.

    Kapso confirms first that the number is this customer's. The customer's links are revoked
    before, and the connect URL afterwards: whoever has them must not connect the number again. A
    number that is disconnected already stays as it is. Whatever reports the disconnection first,
    a webhook or this, its event names ``actor`` and the reason ``DISCONNECTED_BY_STAFF``.
    Raise NumberMoved if the number is not this customer's, a KapsoError if Kapso refuses or is
    unavailable, TryLater if the API may not show the number yet or it was connected again in the
    meantime, and CalledInTransaction inside a transaction; it stays at Kapso then, or what happened
    since stays recorded.
    """
    check_connection(connection, "disconnect_number")
    refuse_in_transaction()
    if not connection.is_connected:
        return connection
    client = client or KapsoClient.from_settings()
    asked_at = timezone.now()
    exists = confirm_owner(connection, client)
    active = SetupLink.objects.active().filter(customer=connection.customer_id)
    for link in active.select_related("customer"):
        revoke_setup_link(link, actor=actor, client=client)
    if exists:
        asked_at = timezone.now()
        _remove(connection, asked_at, actor, client)
    disconnected = disconnect(
        connection.phone_number_id,
        source=Source.MANUAL,
        asked_at=asked_at,
        data={"reason": DISCONNECTED_BY_STAFF},
        actor=actor,
        is_gone=True,
    )
    owner = Customer.objects.filter(pk=connection.customer_id)
    retry_on_conflict(lambda: owner.update(connect_key=None))
    return disconnected or connection


def _remove(
    connection: Connection,
    asked_at: datetime,
    actor: AbstractBaseUser | None,
    client: KapsoClient,
) -> None:
    """Remove a number from Kapso, after recording who asked for it: the webhook about it may be
    faster than the API's answer. That stays recorded unless Kapso refuses, since an error may have
    come after the removal. Raise NumberMoved if the number is another customer's by now."""
    number = Connection.objects.filter(pk=connection.pk, customer=connection.customer_id)
    request = {"removal_requested_at": asked_at, "removal_requested_by": actor}
    if not retry_on_conflict(lambda: number.update(**request)):
        raise NumberMoved
    try:
        client.delete_phone_number(connection.phone_number_id)
    except KapsoNotFound:
        pass  # It no longer exists, which is what was wanted.
    except KapsoError as error:
        if not _may_have_happened(error):
            withdrawn = {"removal_requested_at": None, "removal_requested_by": None}
            own = number.filter(removal_requested_at=asked_at)
            retry_on_conflict(lambda: own.update(**withdrawn))
        raise


def _may_have_happened(error: KapsoError) -> bool:
    """Return whether Kapso may have removed the number although it answered with ``error``, whose
    ``outcome_unknown`` is about POST requests only."""
    if isinstance(error, KapsoBlocked):
        return False
    return isinstance(error, (KapsoUnavailable, KapsoUnexpectedResponse))
