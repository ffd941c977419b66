"""Numbers that are removed from Kapso, on behalf of staff."""

from __future__ import annotations

from contextlib import suppress

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import KapsoNotFound
from ..kapso.client import KapsoClient
from ..models import (
    DISCONNECTED_BY_STAFF,
    Connection,
    Customer,
    SetupLink,
    Source,
    TimelineEvent,
)
from .disconnections import disconnect
from .remote_numbers import check_owner, confirm_owner
from .setup_links import revoke_setup_link
from .status import update_status


def disconnect_number(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> Connection:
    """Remove a number from Kapso and record that it is disconnected, on behalf of ``actor``.

    Kapso confirms first that the number is this customer's. The customer's links are revoked
    before, and the connect URL afterwards: whoever has them must not connect the number again. A
    number that is disconnected already stays as it is.
    Raise NumberMoved if the number is not this customer's, a KapsoError if Kapso refuses or is
    unavailable, TryLater if the API may not show the number yet or it was connected again in the
    meantime, and CalledInTransaction inside a transaction; it stays at Kapso then, or what happened
    since stays recorded.
    """
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
        check_owner(connection)
        asked_at = timezone.now()
        with suppress(KapsoNotFound):  # It no longer exists, which is what was wanted.
            client.delete_phone_number(connection.phone_number_id)
    disconnected = disconnect(
        connection.phone_number_id,
        source=Source.MANUAL,
        asked_at=asked_at,
        data={"reason": DISCONNECTED_BY_STAFF},
        actor=actor,
    )

    def change() -> None:
        owners = list(Customer.objects.locked().filter(pk=connection.customer_id))
        Customer.objects.filter(pk=connection.customer_id).update(connect_key=None)
        # The webhook about it may have been faster than the API's answer.
        TimelineEvent.objects.filter(
            connection=connection,
            customer=connection.customer_id,
            kind=TimelineEvent.Kind.DISCONNECTED,
            actor=None,
            occurred_at__gte=asked_at,
        ).update(actor=actor)
        Connection.objects.filter(
            pk=connection.pk,
            customer=connection.customer_id,
            status=Connection.Status.DISCONNECTED,
            disconnected_at__gte=asked_at,
        ).update(disconnect_reason=DISCONNECTED_BY_STAFF)
        update_status(*owners)

    retry_on_conflict(change)
    return disconnected or connection
