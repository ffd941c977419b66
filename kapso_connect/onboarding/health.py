"""The health of numbers, as Kapso checks it."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth.models import AbstractBaseUser
from django.utils import timezone

from .. import outbox
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import NumberGone
from ..kapso.client import KapsoClient
from ..kapso.health import find_problems
from ..kapso.types import KapsoHealth
from ..models import Connection, Health, Source, TimelineEvent
from .arguments import check_connection
from .disconnections import disconnect
from .funding import refresh_funding
from .remote_numbers import check_owner, confirm_owner

MAX_HOLD = timedelta(hours=1)
"""For how long Kapso holds the answer to a health check at most."""


def check_health(
    connection: Connection,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> KapsoHealth:
    """Ask Kapso for the health of ``connection``, record and return it.

    Kapso confirms first that the number is its customer's. It checks a number at most every 3
    minutes, and accepts 5 such requests a second and 60 a minute for a whole project. After
    repeated errors it holds its answer; until that time (``retry_after``) it is not asked, and
    what is recorded is returned, without the checks.
    Raise NumberMoved or NumberGone if the number is not this customer's any more, or not at Kapso;
    that is recorded then. Raise TryLater if the API may not show it yet, a KapsoError if Kapso
    refuses (KapsoRateLimited) or is unavailable, and CalledInTransaction inside a transaction;
    nothing is recorded then.
    """
    check_connection(connection, "check_health")
    refuse_in_transaction()
    if is_held(connection):
        return KapsoHealth(
            status=connection.health_status,
            timestamp=connection.health_checked_at or timezone.now(),
            error=connection.health_error or None,
            retry_after=connection.health_retry_after,
        )
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


def is_held(connection: Connection) -> bool:
    """Return whether Kapso would only repeat the recorded result of its last health check."""
    until = connection.health_retry_after
    return until is not None and until > timezone.now()


def ask_and_record(
    connection: Connection, client: KapsoClient, *, actor: AbstractBaseUser | None = None
) -> KapsoHealth:
    """Do what ``check_health`` does, for a number that Kapso has just confirmed. Kapso is also
    asked whether it pays Meta, if it shall."""
    health = client.get_phone_number_health(connection.phone_number_id)
    status = health.status if health.status in Health.values else Health.ERROR.value
    problems = find_problems(health)
    error = health.error or "; ".join(
        f"{problem['check']}: {problem['description']}" for problem in problems
    )
    now = timezone.now()
    values = {
        "health_status": status,
        "health_error": error[:2000],
        "health_problems": problems,
        "health_checked_at": now,
        "health_retry_after": health.retry_after and min(health.retry_after, now + MAX_HOLD),
    }

    def change() -> None:
        check_owner(connection)
        for name, value in values.items():
            setattr(connection, name, value)
        connection.save(update_fields=[*values, "updated_at"])
        outbox.record(
            TimelineEvent.Kind.HEALTH_CHECKED,
            source=Source.MANUAL,
            customer=connection.customer,
            connection=connection,
            actor=actor,
            data={"status": status, "error": connection.health_error},
        )

    retry_on_conflict(change)
    refresh_funding(connection, client)
    return health
