from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from kapso_connect.log import log_event
from kapso_connect.management.arguments import whole_number
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.interruption import interruption
from kapso_connect.management.plain import format_count
from kapso_connect.models import (
    Connection,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.retries import not_leased

ROWS_PER_DELETE = 1000


# At least one: duplicates, which Kapso may send for minutes, are recognised by the inbox.
days = whole_number("days", 36500)


class Command(KapsoCommand):
    help = (
        "Deletes old webhooks, timeline events, batches of invitations and idempotency keys of the "
        "REST API. Never deletes webhooks that are waiting or have failed, events whose signal was "
        "not delivered, the events that connected a number that is still connected, or unfinished "
        "batches. Failed webhooks and signals that a member of staff has dismissed are deleted as "
        "if they had succeeded. Batches that were never started are deleted after a day. Exit "
        "status: 0 success, 130 interrupted by Ctrl-C, 143 by SIGTERM."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name, default, kept in (
            ("--inbox-days", 90, "webhooks (default: 90)."),
            ("--timeline-days", 730, "timeline events (default: 730)."),
            (
                "--batch-days",
                90,
                "finished batches of invitations (default: 90). Their setup links are not deleted.",
            ),
            ("--key-days", 7, "idempotency keys of the REST API (default: 7)."),
        ):
            parser.add_argument(name, type=days, default=default, help=f"Days to keep {kept}")
        parser.add_argument(
            "--dry-run", action="store_true", help="Only count what would be deleted."
        )

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
        now, started = timezone.now(), time.monotonic()
        batches = old_batches(now - timedelta(days=batch_days), now - timedelta(days=1))
        old: dict[str, models.QuerySet[Any]] = {
            "webhooks": old_webhooks(now - timedelta(days=inbox_days)),
            "events": old_events(now - timedelta(days=timeline_days)),
            "batches": batches,
            "keys": old_keys(now - timedelta(days=key_days)),
        }
        with interruption() as interrupted:
            if dry_run:
                counts: dict[str, Any] = {name: rows.count() for name, rows in old.items()}
            else:
                # Invitations first, some at a time: deleting a batch deletes all of them at once.
                delete(Invitation.objects.filter(batch__in=batches), interrupted.is_set)
                counts = {name: delete(rows, interrupted.is_set) for name, rows in old.items()}
        if not dry_run:
            log_event("prune.finished", seconds=time.monotonic() - started, **counts)
        if options["verbosity"] > 0:
            verb = "would delete" if dry_run else "deleted"
            batches_text = format_count(
                counts["batches"], "batch of invitations", "batches of invitations"
            )
            self.stdout.write(
                f"kapso_prune: {verb} {format_count(counts['webhooks'], 'webhook')}, "
                f"{format_count(counts['events'], 'timeline event')}, {batches_text}, "
                f"{format_count(counts['keys'], 'idempotency key')}"
            )
        if interrupted.is_set():
            message = "Interrupted. The next run deletes the rest."
            raise CommandError(message, returncode=interrupted.exit_status)


def old_webhooks(before: Any) -> models.QuerySet[WebhookEvent]:
    # A signal that has not been sent yet may include its webhook's payload.
    undelivered = TimelineEvent.objects.undelivered().filter(
        webhook_event=models.OuterRef("pk"), dismissed_at=None
    )
    is_done = Q(status__in=[WebhookEvent.Status.PROCESSED, WebhookEvent.Status.IGNORED])
    is_dismissed = Q(status=WebhookEvent.Status.FAILED, dismissed_at__isnull=False)
    # Django reads the rows that it deletes. Of a thousand, the payloads may be large.
    return WebhookEvent.objects.defer("payload").filter(
        is_done | is_dismissed, ~models.Exists(undelivered), received_at__lt=before
    )


def old_events(before: Any) -> models.QuerySet[TimelineEvent]:
    is_delivered, is_dismissed = Q(delivered_at__isnull=False), Q(dismissed_at__isnull=False)
    return TimelineEvent.objects.filter(
        is_delivered | is_dismissed, occurred_at__lt=before
    ).exclude(
        kind__in=[TimelineEvent.Kind.CONNECTED, TimelineEvent.Kind.RECONNECTED],
        connection__status=Connection.Status.CONNECTED,
    )


def old_batches(before: Any, drafted_before: Any) -> models.QuerySet[InvitationBatch]:
    unfinished = Q(pk__in=Invitation.objects.pending().values("batch"))
    return InvitationBatch.objects.filter(
        Q(started_at=None, created_at__lt=drafted_before) | Q(~unfinished, started_at__lt=before)
    )


def old_keys(before: Any) -> models.QuerySet[IdempotentRequest]:
    is_over = Q(response__isnull=False) | not_leased()
    return IdempotentRequest.objects.filter(is_over, created_at__lt=before)


def delete(rows: models.QuerySet[Any], should_stop: Callable[[], bool]) -> int:
    """Delete ``rows`` some at a time, so that no lock is held for long, until ``should_stop``
    returns True. Return their number."""
    deleted, last = 0, 0
    by_key = rows.order_by("pk")
    while not should_stop() and (
        keys := list(by_key.filter(pk__gt=last).values_list("pk", flat=True)[:ROWS_PER_DELETE])
    ):
        # Filtered again, since a row may have changed in the meantime.
        _total, by_model = rows.filter(pk__in=keys).delete()
        deleted += by_model.get(rows.model._meta.label, 0)
        # The next query does not read those again that are kept.
        last = keys[-1]
    return deleted
