"""The health of numbers, and Meta's decisions about their accounts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Q
from django.utils import timezone

from .. import outbox
from ..db import retry_on_conflict
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoHealth
from ..models import AccountStatus, Connection, Health, Source, TimelineEvent, WebhookEvent

Kind = TimelineEvent.Kind

ACCOUNT_STATUSES = {
    "disabled": AccountStatus.DISABLED,
    "restricted": AccountStatus.RESTRICTED,
    "reinstated": AccountStatus.ACTIVE,
}
"""The status of an account after an event ``whatsapp.account.…``. A violation changes none."""


def check_health(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> KapsoHealth:
    """Ask Kapso for the health of ``connection``, record and return it.

    Kapso checks a number at most every 3 minutes, and accepts 5 such requests a second and 60 a
    minute for a whole project. Raise a KapsoError if it refuses (KapsoRateLimited) or is
    unavailable; nothing is recorded then.
    """
    if client is not None:
        health = client.get_phone_number_health(connection.phone_number_id)
    else:
        with KapsoClient.from_settings() as own_client:
            health = own_client.get_phone_number_health(connection.phone_number_id)
    status = health.status if health.status in Health.values else Health.ERROR.value
    error = health.error or "; ".join(_failed_checks(health))

    def change() -> None:
        connection.health_status = status
        connection.health_error = error[:2000]
        connection.health_checked_at = timezone.now()
        connection.save(
            update_fields=["health_status", "health_error", "health_checked_at", "updated_at"]
        )
        outbox.record(
            Kind.HEALTH_CHECKED,
            source=Source.MANUAL,
            customer=connection.customer,
            connection=connection,
            actor=actor,
            data={"status": status, "error": connection.health_error},
        )

    retry_on_conflict(change)
    return health


def _failed_checks(health: KapsoHealth) -> list[str]:
    """Return the checks that did not pass, as "name: error"."""
    return [
        f"{name}: {check.get('error') or 'failed'}"
        for name, check in health.checks.items()
        if isinstance(check, Mapping) and check.get("passed") is False
    ]


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

    It affects the connected numbers that are listed or belong to the account. Return how many there
    are, and for how many this was new. A repeated ``event_id`` changes nothing, and neither does a
    decision (other than a violation) that is older than the last one recorded.
    """

    def change() -> tuple[int, int]:
        now = occurred_at or timezone.now()
        affected = list(
            Connection.objects.select_for_update()
            .filter(
                Q(phone_number_id__in=phone_number_ids)
                | Q(business_account_id=business_account_id),
                status=Connection.Status.CONNECTED,
            )
            .order_by("pk")  # the same order in every process prevents deadlocks
        )
        changed = [row for row in affected if _is_new(row, name, event_id, now)]
        for connection in changed:
            if name in ACCOUNT_STATUSES:
                connection.account_status = ACCOUNT_STATUSES[name]
                connection.restrictions = list(restrictions)
                connection.account_updated_at = now
                connection.save(
                    update_fields=[
                        "account_status",
                        "restrictions",
                        "account_updated_at",
                        "updated_at",
                    ]
                )
            outbox.record(
                Kind.ACCOUNT_UPDATED,
                source=source,
                customer=connection.customer,
                connection=connection,
                setup_link=connection.setup_link,
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


def _is_new(connection: Connection, name: str, event_id: str, occurred_at: datetime) -> bool:
    recorded = connection.events.filter(kind=Kind.ACCOUNT_UPDATED)
    if event_id and recorded.filter(data__id=event_id).exists():
        return False
    if name not in ACCOUNT_STATUSES:
        return True
    return connection.account_updated_at is None or connection.account_updated_at < occurred_at
