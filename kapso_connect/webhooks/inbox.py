"""The inbox: store a delivery once, act on it, and try again what could not be finished."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    Unusable,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Connection, Customer, Source, TimelineEvent, WebhookEvent
from ..onboarding import numbers, setup_links
from ..retries import idle
from ..statements import Lookup, Slot, insert
from ..utils import describe
from .handlers import CREATED, HANDLERS, OPENING, unknown, why_closed
from .payloads import Message, is_test, phone_number_event


@dataclass(frozen=True)
class Existing:
    """What one look at the database found before a delivery was stored: what was there then."""

    before: bool = False
    known_customer: numbers.KnownCustomer | None = None


NOTHING_EXISTING = Existing()


FORESEEN = (Ignored, Unusable, MalformedPayload, NeedsConfirmation)
"""What a handler raises to say what an event is worth; anything else is an error of somebody's."""


def receive(message: Message) -> WebhookEvent | None:
    """Store one event and act on it, in one transaction; None where it was stored before.

    Where acting on it fails, all of that is taken back, and it is stored with why.
    """
    seen = look(message)
    if seen.before:
        return None
    # What was seen is true at first. When a race was lost it may not be.
    looks = iter([seen])
    try:
        try:
            return retry_on_conflict(lambda: store(message, next(looks, NOTHING_EXISTING)))
        except StoredBefore:
            raise
        except Exception as error:
            raised = error
        # Out here nothing is being handled: what is logged from now on is not about ``raised``.
        inbox = retry_on_conflict(partial(store, message, verdict=classify_error(raised)))
        _log_error(inbox, raised)
        return inbox
    except StoredBefore:
        if look(message).before:
            return None
        raise


def look(message: Message) -> Existing:
    """See in one statement whether a delivery is known, and whose new number it tells of."""
    seen = _look(message)
    if seen.before:
        log_event("webhook.duplicate", event_name=message.event, idempotency_key=message.key)
    return seen


def _look(message: Message) -> Existing:
    if message.event == CREATED and not message.error:
        with suppress(MalformedPayload):
            event = phone_number_event(message.payload)
            found = _known_customers.first(
                kapso_id=event.customer_id, number=event.phone_number_id, key=message.key
            )
            if found is not None:
                customer_id, setup_link_id, number_is_known, before = found
                known_customer = numbers.KnownCustomer(customer_id, setup_link_id)
                return Existing(bool(before), None if number_is_known else known_customer)
    return Existing(before=_deliveries.first(key=message.key) is not None)


def _find_known_customer(kapso_id: Slot, number: Slot, key: Slot) -> QuerySet[Customer, Any]:
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


def _find_delivery(key: Slot) -> QuerySet[WebhookEvent, Any]:
    return WebhookEvent.objects.filter(idempotency_key=key).order_by().values_list("pk")


_text = CharField()


_known_customers = Lookup(_find_known_customer, kapso_id=_text, number=_text, key=_text)


_deliveries = Lookup(_find_delivery, key=_text)


def _log_error(inbox: WebhookEvent, error: Exception) -> None:
    if not isinstance(error, FORESEEN):
        log_event(
            "webhook.error",
            webhook_event_id=inbox.pk,
            event_name=inbox.event,
            idempotency_key=inbox.idempotency_key,
            error=type(error).__name__,
            exc_info=error,
        )


class StoredBefore(Exception):
    """Another process stored the same delivery first."""


def store(
    message: Message, seen: Existing = NOTHING_EXISTING, *, verdict: Outcome | None = None
) -> WebhookEvent:
    inbox = WebhookEvent(idempotency_key=message.key, event=message.event, payload=message.payload)
    if verdict:
        verdict(inbox)
    elif message.error:
        settle(inbox, WebhookEvent.Status.FAILED, message.error)
    elif is_test(message.payload):
        settle(inbox, WebhookEvent.Status.IGNORED, "A test delivery: nothing follows from it.")
    elif message.event not in HANDLERS:
        settle(inbox, WebhookEvent.Status.IGNORED, "Not an event this app acts on.")
    else:
        # Nobody sees the row before the commit: the usual outcome needs no second statement.
        settle(inbox, WebhookEvent.Status.PROCESSED)
    try:
        insert(inbox)
    except IntegrityError as error:
        raise StoredBefore from error
    # With what has become of it by then.
    on_commit(lambda: log_event("webhook.stored", **_told(inbox)))
    if outbox.has_receivers(TimelineEvent.Kind.WEBHOOK_RECEIVED):
        outbox.record(
            TimelineEvent.Kind.WEBHOOK_RECEIVED,
            source=Source.WEBHOOK,
            webhook_event=inbox,
            data={"event": inbox.event},
        )
    if inbox.status == WebhookEvent.Status.PROCESSED:
        act(inbox, seen)
    elif verdict is needs_confirmation:
        db.enqueue_on_commit(process_webhook_event, inbox.pk)
    return inbox


def _told(inbox: WebhookEvent) -> dict[str, Any]:
    return {
        "webhook_event_id": inbox.pk,
        "event_name": inbox.event,
        "idempotency_key": inbox.idempotency_key,
        "outcome": str(inbox.status),
    }


OUTCOME_FIELDS = ["status", "last_error", "processed_at", "next_attempt_at", "leased_at"]


def act(inbox: WebhookEvent, seen: Existing = NOTHING_EXISTING) -> None:
    """Do what a stored event asks for. What it raises takes the transaction back, and is judged."""
    HANDLERS.get(inbox.event, unknown)(inbox, seen.known_customer)


Outcome = Callable[[WebhookEvent], None]
"""Sets on an event (unsaved) what has become of it."""


def classify_error(error: Exception) -> Outcome:
    """Return what has become of an event that was acted on and raised ``error``."""
    status = WebhookEvent.Status
    if isinstance(error, NeedsConfirmation):
        return needs_confirmation
    if isinstance(error, Ignored):
        return partial(settle, status=status.IGNORED, reason=str(error))
    if isinstance(error, (MalformedPayload, Unusable)):
        return partial(settle, status=status.FAILED, reason=str(error))
    reason = describe(error)
    if isinstance(error, (IntegrityError, OperationalError)):
        return lambda inbox: inbox.schedule_retry(reason)
    return partial(settle, status=status.FAILED, reason=reason)


def needs_confirmation(inbox: WebhookEvent) -> None:
    inbox.status = WebhookEvent.Status.PENDING
    inbox.next_attempt_at = timezone.now()
    inbox.last_error = "Waits for the API to confirm it."


def settle(inbox: WebhookEvent, status: str, reason: str = "") -> None:
    inbox.status = status
    inbox.last_error = reason
    inbox.processed_at = timezone.now()
    inbox.next_attempt_at = inbox.leased_at = None


def process(webhook_event_id: int) -> bool:
    """Act on a stored event that is due, asking the API where it has to decide; True when settled.

    Safe to call from several processes at once: one of them acts. While the API is away the event
    stays pending and is due again later, ``RETRY_LIMIT`` times.
    """
    inbox = WebhookEvent.objects.filter(
        pk=webhook_event_id, status=WebhookEvent.Status.PENDING
    ).first()
    if inbox is None or not inbox.take():
        return False
    started = time.monotonic()
    try:
        try:
            retry_on_conflict(lambda: act_and_save(inbox))
        except NeedsConfirmation:
            confirm(inbox)
        except (IntegrityError, OperationalError):
            raise
        except Exception as error:
            classify_error(error)(inbox)
            _log_error(inbox, error)
            inbox.save(update_fields=OUTCOME_FIELDS)
    except Exception as error:
        _log_error(inbox, error)
        schedule_retry(inbox, describe(error))
    seconds = time.monotonic() - started
    log_event("webhook.retried", attempts=inbox.attempts, seconds=seconds, **_told(inbox))
    return inbox.status != WebhookEvent.Status.PENDING


def run_again(inbox: WebhookEvent) -> bool | None:
    """Act now on an event that failed or waits, with all its attempts before it again.

    True where something came of it, False where it failed again or waits; None where there is
    nothing to do, or another process may be at it.
    """
    status = WebhookEvent.Status
    freed = WebhookEvent.objects.filter(
        idle(), pk=inbox.pk, status__in=[status.FAILED, status.PENDING], event__in=HANDLERS
    ).update(status=status.PENDING, next_attempt_at=timezone.now(), attempts=0)
    if not freed:
        return None
    process(inbox.pk)
    inbox.refresh_from_db()
    return inbox.status in {status.PROCESSED, status.IGNORED}


def act_and_save(inbox: WebhookEvent) -> None:
    act(inbox)
    settle(inbox, WebhookEvent.Status.PROCESSED)
    inbox.save(update_fields=OUTCOME_FIELDS)


def confirm(inbox: WebhookEvent) -> None:
    """Let the API decide what a doubtful event is worth."""
    event = phone_number_event(inbox.payload)
    opens = inbox.event in OPENING
    try:
        with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            connection = numbers.refresh_number(
                event.phone_number_id,
                source=Source.WEBHOOK,
                client=client,
                webhook_event=inbox,
                data=None if opens else why_closed(inbox.event, event),
            )
    except (KapsoError, TryLater) as error:
        schedule_retry(inbox, str(error))
        return
    is_connected = connection is not None and connection.is_connected
    is_fresh = timezone.now() - inbox.received_at < numbers.TEARDOWN
    if is_connected and not opens and event.occurred_at is None and is_fresh:
        schedule_retry(inbox, "Kapso's API still shows the number as connected.")
        return
    if is_connected == opens:
        settle(inbox, WebhookEvent.Status.PROCESSED)
    else:
        settle(inbox, WebhookEvent.Status.IGNORED, "Out of date: Kapso's API says otherwise.")
    inbox.save(update_fields=OUTCOME_FIELDS)


def schedule_retry(inbox: WebhookEvent, error: str) -> None:
    inbox.schedule_retry(error)
    if inbox.next_attempt_at is None:
        settle(inbox, WebhookEvent.Status.FAILED, error)
    inbox.save(update_fields=OUTCOME_FIELDS)


@task()
def process_webhook_event(webhook_event_id: int) -> None:
    """Act on one stored delivery that the request could not settle by itself."""

    process(webhook_event_id)
