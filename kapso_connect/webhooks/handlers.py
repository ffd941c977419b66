"""From typed events to ``onboarding``: what each of Kapso's events means for a connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, OperationalError
from django.utils import timezone

from .. import delivery, onboarding, tasks
from ..client import KapsoClient
from ..conf import get_conf
from ..exceptions import KapsoError
from ..models import Connection, ConnectionEvent, Source, WebhookEvent, idle
from ..observe import note
from ..transactions import atomic, on_commit, retrying
from .payloads import (
    MalformedPayload,
    Message,
    PhoneNumberEvent,
    account_event,
    is_test,
    phone_number_event,
)


class Unusable(Exception):
    """An event is well-formed, but about nothing that is known here; the message says what."""


class Ignored(Exception):
    """There is nothing to do about an event; the message says why."""


Handler = Callable[[WebhookEvent], None]


def unknown(inbox: WebhookEvent) -> None:
    raise Ignored("Not an event this app acts on.")


HANDLERS: dict[str, Handler] = {}
"""By the name of the event. These are the events that Kapso's webhook is subscribed to."""


def handles(name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return register


@handles("whatsapp.phone_number.created")
def created(inbox: WebhookEvent) -> None:
    event = phone_number_event(inbox.payload)
    if not event.customer_id:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")
    onboarding.connect(
        onboarding.find_or_add_customer(event.customer_id, event.external_customer_id),
        onboarding.Number(
            phone_number_id=event.phone_number_id,
            business_account_id=event.business_account_id,
            connection_type=event.connection_type,
        ),
        source=Source.WEBHOOK,
        webhook_event=inbox,
    )


@handles("whatsapp.phone_number.deleted")
@handles("whatsapp.phone_number.offboarded")
@handles("whatsapp.phone_number.disconnected")
def closed(inbox: WebhookEvent) -> None:
    event = phone_number_event(inbox.payload)
    customer = None
    if event.customer_id:
        customer = onboarding.find_or_add_customer(event.customer_id, event.external_customer_id)
    connection = onboarding.disconnect(
        event.phone_number_id,
        customer=customer,
        source=Source.WEBHOOK,
        webhook_event=inbox,
        occurred_at=event.occurred_at,
        data=why_closed(inbox.event, event),
    )
    if connection is None:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")


def why_closed(name: str, event: PhoneNumberEvent) -> dict[str, str]:
    told = {
        "reason": event.reason or name.rpartition(".")[2],
        "initiated_by": event.initiated_by,
        "event": name,
        "id": event.event_id,
    }
    return {field: value for field, value in told.items() if value}


@handles("whatsapp.phone_number.reconnected")
def reconnected(inbox: WebhookEvent) -> None:
    event = phone_number_event(inbox.payload)
    if not event.customer_id:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")
    connection = Connection.objects.filter(phone_number_id=event.phone_number_id).first()
    if connection is None or not connection.is_connected:
        raise onboarding.NeedsConfirmation


@handles("whatsapp.account.disabled")
@handles("whatsapp.account.restricted")
@handles("whatsapp.account.reinstated")
@handles("whatsapp.account.violation")
def account_updated(inbox: WebhookEvent) -> None:
    event = account_event(inbox.payload)
    concerned, news = onboarding.update_account(
        inbox.event.rpartition(".")[2],
        business_account_id=event.business_account_id,
        phone_number_ids=event.phone_number_ids,
        source=Source.WEBHOOK,
        event_id=event.event_id,
        occurred_at=event.occurred_at,
        restrictions=event.restrictions,
        data=event.details,
        webhook_event=inbox,
    )
    if not concerned:
        raise Unusable(
            f"No connected number here belongs to the account {event.business_account_id}."
        )
    if not news:
        raise Ignored("Out of date: this or a newer word about the account is known.")


# The inbox


def receive(message: Message) -> WebhookEvent | None:
    """Store one event and act on it, in one transaction; None where it was stored before.

    What goes wrong in acting on it is kept with the row, and does not take the row with it.
    """
    if _is_known(message):
        return None
    try:
        try:
            return retrying(lambda: store(message))
        except (IntegrityError, OperationalError) as error:
            _note_error(None, message.event, message.key, error)
            reason = delivery.describe(error)
            return retrying(lambda: store(message, postponed_because=reason))
    except StoredBefore:
        if _is_known(message):
            return None
        raise


def _is_known(message: Message) -> bool:
    known = WebhookEvent.objects.filter(idempotency_key=message.key).exists()
    if known:
        note("webhook.duplicate", event_name=message.event, idempotency_key=message.key)
    return known


def _note_error(pk: int | None, event_name: str, key: str, error: Exception) -> None:
    note(
        "webhook.error",
        webhook_event_id=pk,
        event_name=event_name,
        idempotency_key=key,
        error=type(error).__name__,
        exc_info=error,
    )


class StoredBefore(Exception):
    """Another process stored the same delivery first."""


def store(message: Message, *, postponed_because: str = "") -> WebhookEvent:
    inbox = WebhookEvent(idempotency_key=message.key, event=message.event, payload=message.payload)
    if postponed_because:
        inbox.put_off(postponed_because)
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
        inbox.save(force_insert=True)
    except IntegrityError as error:
        raise StoredBefore from error
    # With what has become of it by then.
    on_commit(lambda: note("webhook.stored", **_told(inbox)))
    if delivery.is_heard(ConnectionEvent.Kind.WEBHOOK_RECEIVED):
        delivery.record(
            ConnectionEvent.Kind.WEBHOOK_RECEIVED,
            source=Source.WEBHOOK,
            webhook_event=inbox,
            data={"event": inbox.event},
        )
    if inbox.status == WebhookEvent.Status.PROCESSED:
        try:
            act(inbox)
        except onboarding.NeedsConfirmation:
            inbox.status = WebhookEvent.Status.PENDING
            inbox.processed_at = None
            inbox.next_attempt_at = timezone.now()
            inbox.last_error = "Waits for the API to confirm it."
        if inbox.status != WebhookEvent.Status.PROCESSED:
            inbox.save(update_fields=OUTCOME)
    if inbox.status == WebhookEvent.Status.PENDING and not postponed_because:
        tasks.enqueue_on_commit(tasks.process_webhook_event, inbox.pk)
    return inbox


def _told(inbox: WebhookEvent) -> dict[str, Any]:
    return {
        "webhook_event_id": inbox.pk,
        "event_name": inbox.event,
        "idempotency_key": inbox.idempotency_key,
        "outcome": str(inbox.status),
    }


OUTCOME = ["status", "last_error", "processed_at", "next_attempt_at", "taken_at"]


def act(inbox: WebhookEvent) -> None:
    """Do what a stored event asks for, inside a savepoint; set the outcome on ``inbox`` (unsaved).

    Raises NeedsConfirmation where the API has to decide, and the database's errors, after which
    the whole transaction runs again.
    """
    handler = HANDLERS.get(inbox.event, unknown)
    try:
        with atomic():
            handler(inbox)
    except Ignored as reason:
        settle(inbox, WebhookEvent.Status.IGNORED, str(reason))
    except (MalformedPayload, Unusable) as error:
        settle(inbox, WebhookEvent.Status.FAILED, str(error))
    except (onboarding.NeedsConfirmation, IntegrityError, OperationalError):
        raise
    except Exception as error:
        _note_error(inbox.pk, inbox.event, inbox.idempotency_key, error)
        settle(inbox, WebhookEvent.Status.FAILED, delivery.describe(error))
    else:
        settle(inbox, WebhookEvent.Status.PROCESSED)


def settle(inbox: WebhookEvent, status: str, reason: str = "") -> None:
    inbox.status = status
    inbox.last_error = reason
    inbox.processed_at = timezone.now()
    inbox.next_attempt_at = inbox.taken_at = None


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
            retrying(lambda: act_and_save(inbox))
        except onboarding.NeedsConfirmation:
            confirm(inbox)
    except Exception as error:
        _note_error(inbox.pk, inbox.event, inbox.idempotency_key, error)
        put_off(inbox, delivery.describe(error))
    seconds = time.monotonic() - started
    note("webhook.settled", attempts=inbox.attempts, seconds=seconds, **_told(inbox))
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
    inbox.save(update_fields=OUTCOME)


def confirm(inbox: WebhookEvent) -> None:
    """Let the API decide what a doubtful event is worth."""
    event = phone_number_event(inbox.payload)
    opens = inbox.event in OPENING
    try:
        with KapsoClient.from_settings(budget=get_conf().request_budget) as client:
            connection = onboarding.follow_api(
                event.phone_number_id,
                source=Source.WEBHOOK,
                client=client,
                webhook_event=inbox,
                data=None if opens else why_closed(inbox.event, event),
            )
    except (KapsoError, onboarding.TryLater) as error:
        put_off(inbox, str(error))
        return
    is_connected = connection is not None and connection.is_connected
    is_fresh = timezone.now() - inbox.received_at < onboarding.TEARDOWN
    if is_connected and not opens and event.occurred_at is None and is_fresh:
        put_off(inbox, "Kapso's API still shows the number as connected.")
        return
    if is_connected == opens:
        settle(inbox, WebhookEvent.Status.PROCESSED)
    else:
        settle(inbox, WebhookEvent.Status.IGNORED, "Out of date: Kapso's API says otherwise.")
    inbox.save(update_fields=OUTCOME)


def put_off(inbox: WebhookEvent, error: str) -> None:
    inbox.put_off(error)
    if inbox.next_attempt_at is None:
        settle(inbox, WebhookEvent.Status.FAILED, error)
    inbox.save(update_fields=OUTCOME)


OPENING = {"whatsapp.phone_number.created", "whatsapp.phone_number.reconnected"}
