"""The inbox: store each delivery once, process it, and retry what could not be finished.

From the top: ``receive`` is called by the webhook's view, ``process`` by a task and by
``kapso_sync`` for events that wait, ``process_again`` by staff.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import IntegrityError, OperationalError
from django.db.models import CharField, Exists, OuterRef, QuerySet, Subquery
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
from ..models import Connection, Customer, Source, TimelineEvent, WebhookEvent
from ..onboarding import numbers, setup_links
from ..retries import not_leased
from ..statements import Lookup, Slot, insert
from ..utils import describe
from .handlers import CONNECTING_EVENTS, HANDLERS, NUMBER_CREATED, disconnection_data
from .payloads import Message, is_test, phone_number_event

EXPECTED_ERRORS = (Ignored, UnprocessableEvent, MalformedPayload, NeedsConfirmation)
"""A handler raises these to decide what becomes of an event; any other error is a bug or an outage
and is logged."""

OUTCOME_FIELDS = ["status", "last_error", "processed_at", "next_attempt_at", "leased_at"]


class AlreadyStored(Exception):
    """Another process stored the same delivery first."""


# Receiving


def receive(message: Message) -> WebhookEvent | None:
    """Store one event and process it, in one transaction. Return None for a duplicate.

    If processing fails, everything it changed is rolled back, and the event is stored with the
    error. Raise a database error, or AlreadyStored, if the event could not be stored: Kapso then
    has to send it again.
    """
    existing = find_existing(message)
    if existing.is_duplicate:
        return None
    # What was found is true for the first attempt. After a conflict it may no longer be.
    for_attempts = iter([existing])
    try:
        try:
            return retry_on_conflict(
                lambda: store(message, next(for_attempts, NOTHING_KNOWN)),
            )
        except AlreadyStored:
            raise
        except Exception as raised:
            error = raised
        # Outside the except block: what is logged from here on must not be logged as part of
        # ``error``.
        webhook_event = retry_on_conflict(partial(store, message, error=error))
        _log_error(webhook_event, error)
        return webhook_event
    except AlreadyStored:
        if find_existing(message).is_duplicate:
            return None
        raise


@dataclass(frozen=True)
class Existing:
    """What the database held before a delivery was stored: whether the delivery itself, and the
    customer whose new number it announces."""

    is_duplicate: bool = False
    known_customer: numbers.KnownCustomer | None = None


NOTHING_KNOWN = Existing()


def find_existing(message: Message) -> Existing:
    """Return, with one query, whether a delivery is a duplicate and whose new number it is."""
    existing = _find_customer_of_new_number(message) or Existing(
        is_duplicate=_deliveries.first(key=message.key) is not None
    )
    if existing.is_duplicate:
        log_event("webhook.duplicate", event_name=message.event, idempotency_key=message.key)
    return existing


def _find_customer_of_new_number(message: Message) -> Existing | None:
    if message.event != NUMBER_CREATED or message.error:
        return None
    with suppress(MalformedPayload):
        event = phone_number_event(message.payload)
        found = _known_customers.first(
            kapso_id=event.customer_id, number=event.phone_number_id, key=message.key
        )
        if found is not None:
            customer_id, setup_link_id, is_known_number, is_duplicate = found
            known_customer = numbers.KnownCustomer(customer_id, setup_link_id)
            return Existing(bool(is_duplicate), None if is_known_number else known_customer)
    return None


def _known_customer_query(kapso_id: Slot, number: Slot, key: Slot) -> QuerySet[Customer, Any]:
    links = setup_links.open_links(OuterRef("pk"), number)
    return (
        Customer.objects.filter(kapso_id=kapso_id)
        .order_by()
        .values_list(
            "pk",
            Subquery(links.values("pk")[:1]),
            Exists(Connection.objects.filter(phone_number_id=number)),
            Exists(WebhookEvent.objects.filter(idempotency_key=key)),
        )
    )


def _delivery_query(key: Slot) -> QuerySet[WebhookEvent, Any]:
    return WebhookEvent.objects.filter(idempotency_key=key).order_by().values_list("pk")


_text = CharField()
_known_customers = Lookup(_known_customer_query, kapso_id=_text, number=_text, key=_text)
_deliveries = Lookup(_delivery_query, key=_text)


def store(
    message: Message, existing: Existing = NOTHING_KNOWN, *, error: Exception | None = None
) -> WebhookEvent:
    """Store an event and process it; with ``error``, which processing it raised before, only store
    it. Raise AlreadyStored, and whatever its handler raises. Call it in a transaction."""
    status = WebhookEvent.Status
    webhook_event = WebhookEvent(
        idempotency_key=message.key, event=message.event, payload=message.payload
    )
    if error:
        classify_error(webhook_event, error)
    elif message.error:
        finish(webhook_event, status.FAILED, message.error)
    elif is_test(message.payload):
        finish(webhook_event, status.IGNORED, "A test delivery; it changes nothing.")
    elif message.event not in HANDLERS:
        finish(webhook_event, status.IGNORED, "This app does not handle this event.")
    else:
        # The row is not visible before the commit: the usual outcome needs no second statement.
        finish(webhook_event, status.PROCESSED)
    try:
        insert(webhook_event)
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
    if webhook_event.status == status.PROCESSED:
        HANDLERS[webhook_event.event](webhook_event, existing.known_customer)
    elif isinstance(error, NeedsConfirmation):
        db.enqueue_on_commit(process_webhook_event, webhook_event.pk)
    return webhook_event


# Processing events that wait


@task()
def process_webhook_event(webhook_event_id: int) -> None:
    """Process one stored delivery that the request could not finish."""
    process(webhook_event_id)


def process(webhook_event_id: int) -> bool:
    """Process a stored event that is due. Return True if it is finished.

    Asks Kapso's API where the event alone decides nothing. Safe to call from several processes at
    once: one of them processes the event. While the API is unavailable the event stays pending and
    is retried, up to ``RETRY_LIMIT`` times.
    """
    webhook_event = WebhookEvent.objects.filter(
        pk=webhook_event_id, status=WebhookEvent.Status.PENDING
    ).first()
    if webhook_event is None or not webhook_event.acquire_lease():
        return False
    started = time.monotonic()
    try:
        _handle_or_confirm(webhook_event)
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
    is_reset = WebhookEvent.objects.filter(
        not_leased(),
        pk=webhook_event.pk,
        status__in=[status.FAILED, status.PENDING],
        event__in=HANDLERS,
    ).update(status=status.PENDING, next_attempt_at=timezone.now(), attempts=0)
    if not is_reset:
        return None
    process(webhook_event.pk)
    webhook_event.refresh_from_db()
    return webhook_event.status in {status.PROCESSED, status.IGNORED}


def _handle_or_confirm(webhook_event: WebhookEvent) -> None:
    try:
        retry_on_conflict(lambda: _handle(webhook_event))
    except NeedsConfirmation:
        confirm(webhook_event)
    except (IntegrityError, OperationalError):
        raise
    except Exception as error:
        classify_error(webhook_event, error)
        _log_error(webhook_event, error)
        webhook_event.save(update_fields=OUTCOME_FIELDS)


def _handle(webhook_event: WebhookEvent) -> None:
    handler = HANDLERS.get(webhook_event.event)
    if handler is None:
        raise Ignored("This app does not handle this event.")
    handler(webhook_event, None)
    finish(webhook_event, WebhookEvent.Status.PROCESSED)
    webhook_event.save(update_fields=OUTCOME_FIELDS)


def confirm(webhook_event: WebhookEvent) -> None:
    """Apply what Kapso's API says about the number of an event that cannot be trusted alone."""
    event = phone_number_event(webhook_event.payload)
    connects = webhook_event.event in CONNECTING_EVENTS
    try:
        with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            connection = numbers.refresh_number(
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
    is_fresh = timezone.now() - webhook_event.received_at < numbers.STALE_READ_WINDOW
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
        webhook_event.schedule_retry(describe(error))
    else:
        finish(webhook_event, status.FAILED, describe(error))


def finish(webhook_event: WebhookEvent, status: str, reason: str = "") -> None:
    """Set the final ``status`` of ``webhook_event``, and the reason for it. Does not save."""
    webhook_event.status = status
    webhook_event.last_error = reason
    webhook_event.processed_at = timezone.now()
    webhook_event.next_attempt_at = webhook_event.leased_at = None


def schedule_retry(webhook_event: WebhookEvent, error: str) -> None:
    """Save when an event is retried; after the last attempt, that it failed."""
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
