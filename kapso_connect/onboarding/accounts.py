"""Meta's decisions about the WhatsApp Business Accounts of numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q
from django.utils import timezone

from .. import outbox
from ..db import retry_on_conflict
from ..models import (
    AccountStatus,
    Connection,
    ConnectionQuerySet,
    Customer,
    TimelineEvent,
    WebhookEvent,
)
from ..utils import as_aware, as_instant

Kind = TimelineEvent.Kind

ACCOUNT_STATUSES = {
    "disabled": AccountStatus.DISABLED,
    "restricted": AccountStatus.RESTRICTED,
    "reinstated": AccountStatus.ACTIVE,
}
"""The status of an account after an event ``whatsapp.account.…``. A violation changes none."""


def update_account(
    name: str,
    *,
    business_account_id: str,
    phone_number_ids: Collection[str],
    source: str,
    event_id: str = "",
    occurred_at: datetime | None = None,
    restrictions: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    webhook_event: WebhookEvent | None = None,
) -> tuple[int, int]:
    """Record Meta's decision ``name`` about an account: disabled, restricted, reinstated or
    violation.

    It affects the connected numbers that are listed or belong to the account; "" is the id of no
    account, although numbers whose account is unknown have it. Return how many there are, and for
    how many this was new. A repeated ``event_id`` changes nothing, and neither does a decision that
    is older than the number's connection, or (other than a violation) than the last one recorded.
    """

    def change() -> tuple[int, int]:
        now = occurred_at or timezone.now()
        numbers = affected_numbers(business_account_id, phone_number_ids)
        customers = numbers.order_by().values("customer")
        owners = Customer.objects.locked().filter(pk__in=customers).in_bulk()
        affected = list(numbers.filter(customer__in=owners).select_for_update().order_by("pk"))
        changed = [row for row in affected if _is_new(row, name, event_id, now)]
        for connection in changed:
            if name in ACCOUNT_STATUSES:
                connection.account_status = ACCOUNT_STATUSES[name]
                connection.restrictions = list(restrictions)
                connection.account_updated_at = now
                connection.save()
            outbox.record(
                Kind.ACCOUNT_UPDATED,
                source=source,
                customer=owners[connection.customer_id],
                connection=connection,
                setup_link_id=connection.setup_link_id,
                webhook_event=webhook_event,
                occurred_at=now,
                data={
                    "event": name,
                    "id": event_id,
                    "business_account_id": business_account_id,
                    "restrictions": list(restrictions),
                    **(data or {}),
                },
            )
        return len(affected), len(changed)

    return retry_on_conflict(change)


def affected_numbers(
    business_account_id: str, phone_number_ids: Collection[str]
) -> ConnectionQuerySet:
    """Return the connected numbers that a decision about an account affects."""
    is_affected = Q(phone_number_id__in=phone_number_ids)
    if business_account_id:
        is_affected |= Q(business_account_id=business_account_id)
    return Connection.objects.connected().filter(is_affected)


def _is_new(connection: Connection, name: str, event_id: str, occurred_at: datetime) -> bool:
    connected_at, occurred = connection.connected_at, as_aware(occurred_at)
    if connected_at is not None and occurred < as_instant(connected_at):
        return False
    recorded = connection.events.filter(kind=Kind.ACCOUNT_UPDATED)
    if event_id and recorded.filter(data__id=event_id).exists():
        return False
    if name not in ACCOUNT_STATUSES:
        return True
    updated_at = connection.account_updated_at
    return updated_at is None or as_instant(updated_at) < occurred
