"""The health of numbers, as Kapso checks it."""

from __future__ import annotations

from collections.abc import Mapping

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from .. import outbox
from ..db import refuse_in_transaction, retry_on_conflict
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoHealth
from ..models import Connection, Health, Source, TimelineEvent


def check_health(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> KapsoHealth:
    """Ask Kapso for the health of ``connection``, record and return it.

    Kapso checks a number at most every 3 minutes, and accepts 5 such requests a second and 60 a
    minute for a whole project. Raise a KapsoError if it refuses (KapsoRateLimited) or is
    unavailable, and CalledInTransaction inside a transaction; nothing is recorded then.
    """
    refuse_in_transaction()
    client = client or KapsoClient.from_settings()
    health = client.get_phone_number_health(connection.phone_number_id)
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
            TimelineEvent.Kind.HEALTH_CHECKED,
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
