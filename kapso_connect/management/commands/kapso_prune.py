from __future__ import annotations

import time
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.db import models
from django.db.models import Q
from django.utils import timezone

from kapso_connect.log import log_event
from kapso_connect.models import (
    Connection,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    TimelineEvent,
    WebhookEvent,
)

BATCH = 1000


def days(text: str) -> int:
    # Kapso repeats a delivery for some minutes; the inbox must know it for longer than that.
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise ArgumentTypeError("must be a whole number of days, 1 or more")
    return int(text)


class Command(BaseCommand):
    help = (
        "Deletes old rows of the inbox, the timeline, the batches of invitations and the REST "
        "API's idempotency keys, a thousand at a time. Kept whatever their age: webhooks that wait "
        "or failed, signals not delivered, what connected a number that is still connected, and "
        "batches with something left to do. "
        "Batches that nobody started go after a day."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--inbox-days", type=days, default=90, help="Days webhooks are kept (default 90)."
        )
        parser.add_argument(
            "--timeline-days",
            type=days,
            default=730,
            help="Days the timeline is kept (default 730).",
        )
        parser.add_argument(
            "--batch-days",
            type=days,
            default=90,
            help="Days finished batches of invitations are kept (default 90); their links stay.",
        )
        parser.add_argument(
            "--key-days",
            type=days,
            default=7,
            help="Days the REST API's idempotency keys are kept (default 7).",
        )
        parser.add_argument("--dry-run", action="store_true", help="Only count; delete nothing.")

    def handle(
        self,
        *args: Any,
        inbox_days: int,
        timeline_days: int,
        batch_days: int,
        key_days: int,
        dry_run: bool,
        **options: Any,
    ) -> None:
        now, began = timezone.now(), time.monotonic()
        inbox = old_webhooks(now - timedelta(days=inbox_days))
        timeline = old_events(now - timedelta(days=timeline_days))
        count = models.QuerySet.count if dry_run else delete
        batches = old_batches(now - timedelta(days=batch_days), now - timedelta(days=1))
        if not dry_run:
            # First: a batch takes its invitations along, however many there are.
            delete(Invitation.objects.filter(batch__in=batches))
        keys = old_keys(now - timedelta(days=key_days), now)
        counts = count(inbox), count(timeline), count(batches), count(keys)
        if not dry_run:
            names = ("webhooks", "events", "batches", "keys")
            told: dict[str, Any] = dict(zip(names, counts, strict=True))
            log_event("prune.finished", seconds=time.monotonic() - began, **told)
        if options["verbosity"] > 0:
            verb = "would delete" if dry_run else "deleted"
            self.stdout.write(
                f"kapso_prune: {verb} {counts[0]} webhooks, {counts[1]} events, "
                f"{counts[2]} batches of invitations, {counts[3]} idempotency keys"
            )


def old_webhooks(before: Any) -> models.QuerySet[WebhookEvent]:
    # A signal that is still to be sent may carry its webhook's payload.
    undelivered = TimelineEvent.objects.filter(
        webhook_event=models.OuterRef("pk"), delivered_at=None
    )
    return WebhookEvent.objects.filter(
        ~models.Exists(undelivered),
        received_at__lt=before,
        status__in=[WebhookEvent.Status.PROCESSED, WebhookEvent.Status.IGNORED],
    )


def old_events(before: Any) -> models.QuerySet[TimelineEvent]:
    explains_a_connection = Q(
        kind__in=[TimelineEvent.Kind.CONNECTED, TimelineEvent.Kind.RECONNECTED],
        connection__status=Connection.Status.CONNECTED,
    )
    return TimelineEvent.objects.filter(occurred_at__lt=before, delivered_at__isnull=False).exclude(
        explains_a_connection
    )


def old_batches(before: Any, drafted_before: Any) -> models.QuerySet[InvitationBatch]:
    left = Invitation.objects.filter(batch=models.OuterRef("pk"), status=Invitation.Status.PENDING)
    return InvitationBatch.objects.filter(
        Q(started_at=None, created_at__lt=drafted_before)
        | Q(~models.Exists(left), started_at__lt=before)
    )


def old_keys(before: Any, now: Any) -> models.QuerySet[IdempotentRequest]:
    under_way = Q(answer__isnull=True, leased_until__gt=now)
    return IdempotentRequest.objects.filter(~under_way, created_at__lt=before)


def delete(rows: models.QuerySet[Any]) -> int:
    """Delete in batches, so that no lock is held for long; return how many rows went."""
    deleted = 0
    while keys := list(rows.order_by("pk").values_list("pk", flat=True)[:BATCH]):
        # The condition once more: what became needed meanwhile stays.
        _total, by_model = rows.filter(pk__in=keys).delete()
        gone = by_model.get(rows.model._meta.label, 0)
        deleted += gone
        if not gone:
            break
    return deleted
