"""How much work is waiting, how much has failed, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Min

from ..models import Invitation, SetupLink, TimelineEvent, WebhookEvent
from ..utils import time_since


@dataclass(frozen=True)
class Queue:
    """A queue at one moment.

    ``waiting`` rows will be tried again. ``failed`` ones will not, and were not dismissed. ``lag``
    is how many seconds ago the oldest waiting row was due; 0.0 if none is due.
    """

    name: str
    waiting: int
    failed: int
    lag: float


def read_queues() -> list[Queue]:
    """Return the queues of stored webhooks and of signals. Four queries, each on an index."""
    return [
        _read_queue("webhooks", WebhookEvent.objects.waiting(), WebhookEvent.objects.failed()),
        _read_queue("signals", TimelineEvent.objects.waiting(), TimelineEvent.objects.failed()),
    ]


def read_all_queues() -> list[Queue]:
    """Return also the queues of bulk invitations and of redirects to confirm: eight queries."""
    started = Invitation.objects.filter(batch__started_at__isnull=False)
    pending = started.pending().filter(batch__stopped="")
    redirects = SetupLink.objects.unconfirmed()
    return [
        *read_queues(),
        _read_queue("invitations", pending, started.failed()),
        _read_queue("redirects", redirects, SetupLink.objects.none(), "unconfirmed_since"),
    ]


def _read_queue(
    name: str,
    waiting: models.QuerySet[Any],
    failed: models.QuerySet[Any],
    due: str = "next_attempt_at",
) -> Queue:
    count, lag = count_and_age(waiting, due)
    return Queue(name, waiting=count, failed=failed.count(), lag=lag.total_seconds())


def count_and_age(rows: models.QuerySet[Any], field: str) -> tuple[int, timedelta]:
    """Return how many ``rows`` there are, and how long ago the earliest ``field`` of them was.

    The age is 0 if there are no rows, or if all moments are in the future.
    """
    found = rows.aggregate(count=Count("pk"), earliest=Min(field))
    age = time_since(found["earliest"]) if found["earliest"] else timedelta()
    return found["count"], max(age, timedelta())
