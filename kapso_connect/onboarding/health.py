"""The health of numbers, as Kapso checks it."""

from __future__ import annotations

from collections.abc import Mapping

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from .. import outbox
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import NumberGone
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoHealth
from ..models import Connection, Health, Source, TimelineEvent
from .disconnections import disconnect
from .remote_numbers import check_owner, confirm_owner


def check_health(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> KapsoHealth:
    """Ask Kapso for the health of ``connection``, record and return it.

    Kapso confirms first that the number is its customer's. It checks a number at most every 3
    minutes, and accepts 5 such requests a second and 60 a minute for a whole project.
    Raise NumberMoved or NumberGone if the number is not this customer's any more, or not at Kapso;
    that is recorded then. Raise TryLater if the API may not show it yet, a KapsoError if Kapso
    refuses (KapsoRateLimited) or is unavailable, and CalledInTransaction inside a transaction;
    nothing is recorded then.
    """
    refuse_in_transaction()
    client = client or KapsoClient.from_settings()
    asked_at = timezone.now()
    if not confirm_owner(connection, client):
        disconnect(
            connection.phone_number_id,
            source=Source.SYNC,
            asked_at=asked_at,
            data={"reason": "not_found"},
            is_gone=True,
        )
        raise NumberGone
    return ask_and_record(connection, client, actor=actor)


def ask_and_record(
    connection: Connection, client: KapsoClient, *, actor: AbstractBaseUser | None = None
) -> KapsoHealth:
    """Do what ``check_health`` does, for a number that Kapso has just confirmed."""
    health = client.get_phone_number_health(connection.phone_number_id)
    status = health.status if health.status in Health.values else Health.ERROR.value
    error = health.error or "; ".join(_failed_checks(health))

    def change() -> None:
        check_owner(connection)
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
