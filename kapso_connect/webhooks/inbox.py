"""The inbox: store each delivery once, process it, and retry what could not be finished.

From the top: ``receive`` is called by the webhook's view, ``process`` by a task and by
``kapso_sync`` for events that wait, ``process_again`` by staff.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, cast

from django.db import IntegrityError, OperationalError
from django.utils import timezone

from .. import db, outbox
from ..conf import get_conf
from ..db import on_commit, retry_on_conflict, task
from ..exceptions import (
    Ignored,
    KapsoError,
    MalformedPayload,
    NeedsConfirmation,
    TryLater,
    UnprocessableEvent,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Source, TimelineEvent, WebhookEvent
from ..onboarding.remote_numbers import STALE_READ_WINDOW, refresh_number
from ..utils import describe
from .handlers import CONNECTING_EVENTS, apply, disconnection_data
from .payloads import PARSERS, Message, PhoneNumberEvent, is_test, read

EXPECTED_ERRORS = (Ignored, UnprocessableEvent, MalformedPayload, NeedsConfirmation)
"""A handler raises these to decide what becomes of an event; any other error is a bug or an outage
and is logged."""

OUTCOME_FIELDS = [
    "status",
    "last_error",
    "processed_at",
    "next_attempt_at",
    "leased_at",
    "leased_until",
]
"""What processing an event changes of its row."""


class AlreadyStored(Exception):
    """Another process stored the same delivery first."""


# Receiving


def receive(message: Message) -> WebhookEvent | None:
    """Store one event and process it, in one transaction. Return None for a duplicate.

    If processing fails, everything it changed is rolled back, and the event is stored with the
    error. Raise a database error, or AlreadyStored, if the event could not be stored: Kapso then
    has to send it again.
    """
    try:
        webhook_event = None if _is_stored(message) else _store(message)
    except AlreadyStored:
        if not _is_stored(message):
            raise
        webhook_event = None
    if webhook_event is None:
        log_event("webhook.duplicate", event_name=message.name, idempotency_key=message.key)
    return webhook_event


def _is_stored(message: Message) -> bool:
    return WebhookEvent.objects.filter(idempotency_key=message.key).exists()


def _store(message: Message) -> WebhookEvent:
    try:
        return retry_on_conflict(partial(_insert, message))
    except AlreadyStored:
        raise
    except Exception as raised:
        error = raised
    # Outside the except block: what is logged from here on must not be logged as part of ``error``.
    webhook_event = retry_on_conflict(partial(_insert, message, error=error), seconds=3)
    _log_error(webhook_event, error)
    return webhook_event


def _insert(message: Message, *, error: Exception | None = None) -> WebhookEvent:
    """Insert an event and apply it. With ``error``, which an earlier attempt to apply it raised,
    only insert it. Raise AlreadyStored, and what the handler raises. Call it in a transaction."""
    webhook_event = WebhookEvent(
        idempotency_key=message.key, event=message.name, payload=message.payload
    )
    if error:
        classify_error(webhook_event, error)
    else:
        _set_expected_outcome(webhook_event, message)
    try:
        webhook_event.save(force_insert=True)
    except IntegrityError as conflict:
        raise AlreadyStored from conflict
    # The fields are read after the commit, when the outcome is final.
    on_commit(lambda: log_event("webhook.stored", **_log_fields(webhook_event)))
    if outbox.has_receivers(TimelineEvent.Kind.WEBHOOK_RECEIVED):
        outbox.record(
            TimelineEvent.Kind.WEBHOOK_RECEIVED,
            source=Source.WEBHOOK,
            webhook_event=webhook_event,
            data={"event": webhook_event.event},
        )
    if message.event is not None and error is None:
        apply(message.event, webhook_event)
    elif isinstance(error, NeedsConfirmation):
        db.enqueue_on_commit(process_webhook_event, webhook_event.pk)
    return webhook_event


def _set_expected_outcome(webhook_event: WebhookEvent, message: Message) -> None:
    """Set the outcome that the event has if its handler raises nothing, so that the row is written
    only once. Does not save."""
    status = WebhookEvent.Status
    if message.error:
        finish(webhook_event, status.FAILED, message.error)
    elif is_test(message.payload):
        finish(webhook_event, status.IGNORED, "A test delivery; it changes nothing.")
    elif message.event is None:
        finish(webhook_event, status.IGNORED, "This app does not handle this event.")
    else:
        finish(webhook_event, status.PROCESSED)


# Processing events that wait


@task()
def process_webhook_event(webhook_event_id: int) -> None:
    """Process one stored delivery that the request could not finish."""
    process(webhook_event_id)


def process(webhook_event_id: int, client: KapsoClient | None = None) -> bool:
    """Process a stored event that is due. Return True if it is finished.

    Asks Kapso's API where the event alone decides nothing, with ``client``, or one of its own that
    has ``REQUEST_BUDGET``. Safe to call from several processes at once: one of them processes the
    event. While the API is unavailable the event stays pending and is retried, up to
    ``RETRY_LIMIT`` times.
    """
    webhook_event = WebhookEvent.objects.waiting().filter(pk=webhook_event_id).first()
    if webhook_event is None or not webhook_event.acquire_lease():
        return False
    started = time.monotonic()
    try:
        _handle_or_confirm(webhook_event, client)
    except Exception as error:
        _log_error(webhook_event, error)
        schedule_retry(webhook_event, describe(error))
    log_event(
        "webhook.retried",
        attempts=webhook_event.attempts,
        seconds=time.monotonic() - started,
        **_log_fields(webhook_event),
    )
    return webhook_event.status != WebhookEvent.Status.PENDING


def process_again(webhook_event: WebhookEvent) -> bool | None:
    """Process now an event that failed or waits, with the full number of attempts again.

    Return True if it succeeded, False if it failed again or waits, and None if there is nothing to
    do or another process may be processing it.
    """
    status = WebhookEvent.Status
    rows = WebhookEvent.objects.filter(
        pk=webhook_event.pk, status__in=[status.FAILED, status.PENDING], event__in=PARSERS
    )
    if not rows.retry_now(status=status.PENDING):
        return None
    process(webhook_event.pk)
    webhook_event.refresh_from_db()
    return webhook_event.status in {status.PROCESSED, status.IGNORED}


def _handle_or_confirm(webhook_event: WebhookEvent, client: KapsoClient | None) -> None:
    message = read(webhook_event.idempotency_key, webhook_event.event, webhook_event.payload)
    try:
        retry_on_conflict(partial(_apply, message, webhook_event))
    except NeedsConfirmation:
        # Handlers of account events never raise it.
        confirm(cast(PhoneNumberEvent, message.event), webhook_event, client)
    except (IntegrityError, OperationalError):
        raise
    except Exception as error:
        classify_error(webhook_event, error)
        _log_error(webhook_event, error)
        webhook_event.save(update_fields=OUTCOME_FIELDS)


def _apply(message: Message, webhook_event: WebhookEvent) -> None:
    _set_expected_outcome(webhook_event, message)
    webhook_event.save(update_fields=OUTCOME_FIELDS)
    if message.event is not None:
        apply(message.event, webhook_event)


def confirm(
    event: PhoneNumberEvent, webhook_event: WebhookEvent, client: KapsoClient | None = None
) -> None:
    """Apply what Kapso's API says about the number of an event that cannot be trusted alone."""
    connects = webhook_event.event in CONNECTING_EVENTS
    try:
        with client or KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            connection = refresh_number(
                event.phone_number_id,
                source=Source.WEBHOOK,
                client=client,
                webhook_event=webhook_event,
                data=None if connects else disconnection_data(webhook_event.event, event),
            )
    except (KapsoError, TryLater) as error:
        schedule_retry(webhook_event, str(error))
        return
    is_connected = connection is not None and connection.is_connected
    is_fresh = timezone.now() - webhook_event.received_at < STALE_READ_WINDOW
    if is_connected and not connects and event.occurred_at is None and is_fresh:
        schedule_retry(webhook_event, "Kapso's API still shows the number as connected.")
        return
    if is_connected == connects:
        finish(webhook_event, WebhookEvent.Status.PROCESSED)
    else:
        finish(
            webhook_event, WebhookEvent.Status.IGNORED, "Out of date: Kapso's API says otherwise."
        )
    webhook_event.save(update_fields=OUTCOME_FIELDS)


# Outcomes


def classify_error(webhook_event: WebhookEvent, error: Exception) -> None:
    """Set on ``webhook_event`` what follows from the ``error`` its handler raised: ignored, failed,
    or pending. Does not save."""
    status = WebhookEvent.Status
    if isinstance(error, NeedsConfirmation):
        webhook_event.status = status.PENDING
        webhook_event.next_attempt_at = timezone.now()
        webhook_event.last_error = "Waiting for the API to confirm it."
    elif isinstance(error, Ignored):
        finish(webhook_event, status.IGNORED, str(error))
    elif isinstance(error, (MalformedPayload, UnprocessableEvent)):
        finish(webhook_event, status.FAILED, str(error))
    elif isinstance(error, (IntegrityError, OperationalError)):
        webhook_event.status = status.PENDING
        webhook_event.schedule_retry(describe(error))
    else:
        finish(webhook_event, status.FAILED, describe(error))


def finish(webhook_event: WebhookEvent, status: str, reason: str = "") -> None:
    """Set the final ``status`` of ``webhook_event``, and the reason for it. Does not save."""
    webhook_event.status = status
    webhook_event.last_error = reason
    webhook_event.processed_at = timezone.now()
    webhook_event.finish()


def schedule_retry(webhook_event: WebhookEvent, error: str) -> None:
    """Save when an event is retried; after the last attempt, that it failed."""
    webhook_event.status = WebhookEvent.Status.PENDING
    webhook_event.processed_at = None
    webhook_event.schedule_retry(error)
    if webhook_event.next_attempt_at is None:
        finish(webhook_event, WebhookEvent.Status.FAILED, error)
    webhook_event.save(update_fields=OUTCOME_FIELDS)


def _log_fields(webhook_event: WebhookEvent) -> dict[str, Any]:
    return {
        "webhook_event_id": webhook_event.pk,
        "event_name": webhook_event.event,
        "idempotency_key": webhook_event.idempotency_key,
        "outcome": str(webhook_event.status),
    }


def _log_error(webhook_event: WebhookEvent, error: Exception) -> None:
    if not isinstance(error, EXPECTED_ERRORS):
        log_event(
            "webhook.error",
            webhook_event_id=webhook_event.pk,
            event_name=webhook_event.event,
            idempotency_key=webhook_event.idempotency_key,
            error=type(error).__name__,
            exc_info=error,
        )
