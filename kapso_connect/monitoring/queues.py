"""What waits and what failed: the few figures by which an installation is watched."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import models
from django.db.models import Min
from django.utils import timezone

from ..models import TimelineEvent, WebhookEvent
from ..retries import due


@dataclass(frozen=True)
class Queue:
    """``waiting`` rows are tried again by themselves, ``failed`` ones are not. ``lag`` is for how
    many seconds the oldest has been due; 0.0 where none is."""

    name: str
    waiting: int
    failed: int
    lag: float


def read() -> list[Queue]:
    """Return how the inbox and the outbox are. Six counts, each by an index."""
    inbox = WebhookEvent.objects.order_by()
    outbox = TimelineEvent.objects.order_by().filter(delivered_at=None)
    pending = inbox.filter(status=WebhookEvent.Status.PENDING)
    return [
        Queue(
            "webhooks",
            waiting=pending.count(),
            failed=inbox.filter(status=WebhookEvent.Status.FAILED).count(),
            lag=_lag(pending),
        ),
        Queue(
            "signals",
            waiting=outbox.filter(next_attempt_at__isnull=False).count(),
            failed=outbox.filter(next_attempt_at=None).count(),
            lag=_lag(outbox),
        ),
    ]


def _lag(rows: models.QuerySet[WebhookEvent] | models.QuerySet[TimelineEvent]) -> float:
    oldest: datetime | None = rows.filter(due()).aggregate(Min("next_attempt_at"))[
        "next_attempt_at__min"
    ]
    return 0.0 if oldest is None else (timezone.now() - oldest).total_seconds()
