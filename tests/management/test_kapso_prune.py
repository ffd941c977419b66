from __future__ import annotations

import re
import signal
from datetime import timedelta

import pytest
from django.core.management import CommandError
from django.db import connection
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.management.commands import kapso_prune
from kapso_connect.models import (
    Customer,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    TimelineEvent,
    WebhookEvent,
)

from ..factories import make_connection, make_customer
from .conftest import run_command

pytestmark = pytest.mark.django_db

LONG_AGO = timezone.now() - timedelta(days=1000)


def prune(*arguments: str) -> str:
    return run_command("kapso_prune", *arguments)


def webhook(status: str = "processed", **fields: object) -> WebhookEvent:
    key = f"k{WebhookEvent.objects.count()}"
    given = {"idempotency_key": key, "event": "x.y", "payload": {}, "received_at": LONG_AGO}
    return WebhookEvent.objects.create(**{**given, **fields}, status=status)


def event(kind: str = "disconnected", **fields: object) -> TimelineEvent:
    return TimelineEvent.objects.create(
        **{
            "kind": kind,
            "source": "webhook",
            "occurred_at": LONG_AGO,
            "delivered_at": LONG_AGO,
            **fields,
        }
    )


def test_old_rows_are_deleted_and_new_ones_kept() -> None:
    webhook(), webhook("ignored"), event()
    kept = WebhookEvent.objects.create(
        idempotency_key="new", event="x.y", payload={}, status="processed"
    )
    kept_event = event(occurred_at=timezone.now())
    assert prune() == (
        "kapso_prune: deleted 2 webhooks, 1 timeline event, 0 batches of invitations, "
        "0 idempotency keys\n"
    )
    assert WebhookEvent.objects.get() == kept
    assert TimelineEvent.objects.get() == kept_event


@pytest.mark.parametrize("status", ["pending", "failed"])
def test_waiting_and_failed_webhooks_are_kept(status: str) -> None:
    webhook(status)
    prune()
    assert WebhookEvent.objects.exists()


def test_undelivered_signals_are_kept_with_their_webhook() -> None:
    event("webhook_received", webhook_event=webhook(), delivered_at=None)
    prune()
    assert TimelineEvent.objects.exists()
    assert WebhookEvent.objects.exists()


DISMISSED = {"dismissed_at": timezone.now(), "dismissed_because": "A test."}


def test_dismissed_webhooks_and_signals_are_deleted_in_time() -> None:
    recently = timezone.now() - timedelta(days=30)
    webhook("failed", **DISMISSED)
    kept = webhook("failed", **{**DISMISSED, "received_at": recently})
    event(delivered_at=None, next_attempt_at=None, **DISMISSED)
    kept_event = event(
        delivered_at=None, next_attempt_at=None, **{**DISMISSED, "occurred_at": recently}
    )
    assert "deleted 1 webhook, 1 timeline event" in prune()
    assert WebhookEvent.objects.get() == kept
    assert TimelineEvent.objects.get() == kept_event


def test_dismissed_webhook_is_kept_for_its_undelivered_signal_unless_that_is_dismissed() -> None:
    for fields in ({}, DISMISSED):
        event(
            "webhook_received",
            webhook_event=webhook("failed", **DISMISSED),
            occurred_at=timezone.now(),
            delivered_at=None,
            next_attempt_at=None,
            **fields,
        )
    assert "deleted 1 webhook, 0 timeline events" in prune()
    undismissed = TimelineEvent.objects.get(dismissed_at=None)
    assert WebhookEvent.objects.get() == undismissed.webhook_event


def test_dismissed_event_that_connected_a_number_is_kept() -> None:
    kept = event("connected", connection=make_connection(), delivered_at=None, **DISMISSED)
    prune()
    assert TimelineEvent.objects.get() == kept


def test_event_that_connected_a_number_is_kept() -> None:
    connection = make_connection()
    kept = event("connected", connection=connection)
    event("disconnected", connection=connection)
    event("connected", connection=make_connection(status="disconnected"))
    prune()
    assert TimelineEvent.objects.get() == kept


def test_rows_are_deleted_in_batches(monkeypatch) -> None:
    monkeypatch.setattr(kapso_prune, "ROWS_PER_DELETE", 2)
    for _ in range(5):
        event(webhook_event=webhook())
    assert "deleted 5 webhooks, 5 timeline events" in prune()


def test_rows_that_are_kept_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kapso_prune, "ROWS_PER_DELETE", 2)
    rows = [webhook("pending" if number % 2 else "processed").pk for number in range(8)]
    with CaptureQueriesContext(connection) as queries:
        assert "deleted 4 webhooks" in prune()
    texts = [query["sql"] for query in queries if "LIMIT 2" in query["sql"]]
    bounds = [
        int(number) for sql in texts for number in re.findall(r"webhookevent\W+id\W+> (\d+)", sql)
    ]
    assert bounds == [0, rows[2], rows[6]], "each query goes on behind what was read before"


def test_payloads_are_not_read() -> None:
    webhook()
    with CaptureQueriesContext(connection) as queries:
        assert "deleted 1 webhook," in prune()
    assert not [query["sql"] for query in queries if "payload" in query["sql"]]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_deletes_the_rest_next_time(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.setattr(kapso_prune, "ROWS_PER_DELETE", 2)
    for _ in range(5):
        webhook()
    stopped: list[None] = []

    def stop(**kwargs: object) -> None:
        if not stopped:
            stopped.append(None)
            signal.raise_signal(number)

    post_delete.connect(stop, sender=WebhookEvent)
    try:
        with pytest.raises(CommandError, match="Interrupted") as caught:
            prune()
    finally:
        post_delete.disconnect(stop, sender=WebhookEvent)
    assert caught.value.returncode == status
    assert "deleted 3 webhooks" in prune()


def test_dry_run_deletes_nothing() -> None:
    webhook(), event()
    assert "would delete 1 webhook, 1 timeline event" in prune("--dry-run")
    assert WebhookEvent.objects.exists()
    assert TimelineEvent.objects.exists()


def test_number_of_days_can_be_chosen() -> None:
    event(occurred_at=timezone.now() - timedelta(days=2))
    assert "0 timeline events" in prune()
    assert "1 timeline event" in prune("--timeline-days", "1")


def batch(status: str, **fields: object) -> InvitationBatch:
    made = InvitationBatch.objects.create(
        **{"created_at": LONG_AGO, "started_at": LONG_AGO, **fields}
    )
    for _ in range(3):
        Invitation.objects.create(batch=made, customer=make_customer(), status=status)
    return made


@pytest.mark.parametrize("status", ["done", "failed"])
def test_old_finished_batches_are_deleted_without_their_customers(status: str) -> None:
    batch(status)
    assert "would delete 0 webhooks, 0 timeline events, 1 batch of" in prune("--dry-run")
    assert InvitationBatch.objects.exists()
    assert "1 batch of invitations" in prune()
    assert not InvitationBatch.objects.exists()
    assert Customer.objects.count() == 3


def test_drafts_are_deleted_after_a_day() -> None:
    yesterday = timezone.now() - timedelta(hours=25)
    batch("pending", started_at=None, created_at=yesterday)
    kept = batch("pending", started_at=None, created_at=timezone.now())
    prune()
    assert InvitationBatch.objects.get() == kept
    assert kept.invitations.count() == 3


def test_unfinished_and_new_batches_are_kept() -> None:
    batch("pending"), batch("pending", stopped="No key."), batch("done", started_at=timezone.now())
    prune()
    assert InvitationBatch.objects.count() == 3
    assert Invitation.objects.count() == 9
    prune("--batch-days", "1")
    assert InvitationBatch.objects.count() == 3


@pytest.mark.parametrize("days", ["0", "-1", "x", "1.5", "99999999"])
def test_invalid_days_are_refused(days: str) -> None:
    with pytest.raises(CommandError):
        prune("--inbox-days", days)


def test_idempotency_keys_are_deleted_after_a_week_unless_in_use() -> None:
    now = timezone.now()

    def key(digest: str, days: float, lease: float = -1, answer: object = None) -> None:
        IdempotentRequest.objects.create(
            digest=digest,
            created_at=now - timedelta(days=days),
            leased_until=now + timedelta(hours=lease),
            response=answer,
        )

    key("answered", 8, 1, {"id": 1}), key("died", 8), key("new", 6), key("in use", 8, 1)
    assert "2 idempotency keys" in prune("--dry-run")
    assert "2 idempotency keys" in prune()
    assert set(IdempotentRequest.objects.values_list("digest", flat=True)) == {"new", "in use"}
    assert "1 idempotency key" in prune("--key-days=5")
