"""From typed events to ``onboarding``: what each of Kapso's events means for a connection."""

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

from .. import delivery, onboarding, tasks
from ..client import KapsoClient
from ..conf import get_conf
from ..exceptions import KapsoError
from ..models import Connection, ConnectionEvent, Customer, Source, WebhookEvent, idle
from ..observe import note
from ..statements import Lookup, Slot, insert
from ..transactions import on_commit, retrying
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


@dataclass(frozen=True)
class Seen:
    """What one look at the database found before a delivery was stored: what was there then."""

    before: bool = False
    newcomer: onboarding.Newcomer | None = None


NOTHING = Seen()

FORESEEN = (Ignored, Unusable, MalformedPayload, onboarding.NeedsConfirmation)
"""What a handler raises to say what an event is worth; anything else is an error of somebody's."""

Handler = Callable[[WebhookEvent, Seen], None]


def unknown(inbox: WebhookEvent, seen: Seen) -> None:
    raise Ignored("Not an event this app acts on.")


CREATED = "whatsapp.phone_number.created"

HANDLERS: dict[str, Handler] = {}
"""By the name of the event. These are the events that Kapso's webhook is subscribed to."""


def handles(name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return register


@handles(CREATED)
def created(inbox: WebhookEvent, seen: Seen) -> None:
    event = phone_number_event(inbox.payload)
    if not event.customer_id:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")
    onboarding.connect(
        seen.newcomer
        or onboarding.find_or_add_customer(event.customer_id, event.external_customer_id),
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
def closed(inbox: WebhookEvent, seen: Seen) -> None:
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
def reconnected(inbox: WebhookEvent, seen: Seen) -> None:
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
def account_updated(inbox: WebhookEvent, seen: Seen) -> None:
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

    Where acting on it fails, all of that is taken back, and it is stored with why.
    """
    seen = look(message)
    if seen.before:
        return None
    # What was seen is true at first. When a race was lost it may not be.
    looks = iter([seen])
    try:
        try:
            return retrying(lambda: store(message, next(looks, NOTHING)))
        except StoredBefore:
            raise
        except Exception as error:
            raised = error
        # Out here nothing is being handled: what is logged from now on is not about ``raised``.
        inbox = retrying(partial(store, message, verdict=judge(raised)))
        _note_error(inbox, raised)
        return inbox
    except StoredBefore:
        if look(message).before:
            return None
        raise


def look(message: Message) -> Seen:
    """See in one statement whether a delivery is known, and whose new number it tells of."""
    seen = _look(message)
    if seen.before:
        note("webhook.duplicate", event_name=message.event, idempotency_key=message.key)
    return seen


def _look(message: Message) -> Seen:
    if message.event == CREATED and not message.error:
        with suppress(MalformedPayload):
            event = phone_number_event(message.payload)
            found = _newcomers.first(
                kapso_id=event.customer_id, number=event.phone_number_id, key=message.key
            )
            if found is not None:
                customer_id, setup_link_id, number_is_known, before = found
                newcomer = onboarding.Newcomer(customer_id, setup_link_id)
                return Seen(bool(before), None if number_is_known else newcomer)
    return Seen(before=_deliveries.first(key=message.key) is not None)


def _find_newcomer(kapso_id: Slot, number: Slot, key: Slot) -> QuerySet[Customer, Any]:
    links = onboarding.open_links(OuterRef("pk"), number)
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
_newcomers = Lookup(_find_newcomer, kapso_id=_text, number=_text, key=_text)
_deliveries = Lookup(_find_delivery, key=_text)


def _note_error(inbox: WebhookEvent, error: Exception) -> None:
    if not isinstance(error, FORESEEN):
        note(
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
    message: Message, seen: Seen = NOTHING, *, verdict: Verdict | None = None
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
    on_commit(lambda: note("webhook.stored", **_told(inbox)))
    if delivery.is_heard(ConnectionEvent.Kind.WEBHOOK_RECEIVED):
        delivery.record(
            ConnectionEvent.Kind.WEBHOOK_RECEIVED,
            source=Source.WEBHOOK,
            webhook_event=inbox,
            data={"event": inbox.event},
        )
    if inbox.status == WebhookEvent.Status.PROCESSED:
        act(inbox, seen)
    elif verdict is confirm_first:
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


def act(inbox: WebhookEvent, seen: Seen = NOTHING) -> None:
    """Do what a stored event asks for. What it raises takes the transaction back, and is judged."""
    HANDLERS.get(inbox.event, unknown)(inbox, seen)


Verdict = Callable[[WebhookEvent], None]
"""Sets on an event (unsaved) what has become of it."""


def judge(error: Exception) -> Verdict:
    """Return what has become of an event that was acted on and raised ``error``."""
    status = WebhookEvent.Status
    if isinstance(error, onboarding.NeedsConfirmation):
        return confirm_first
    if isinstance(error, Ignored):
        return partial(settle, status=status.IGNORED, reason=str(error))
    if isinstance(error, (MalformedPayload, Unusable)):
        return partial(settle, status=status.FAILED, reason=str(error))
    reason = delivery.describe(error)
    if isinstance(error, (IntegrityError, OperationalError)):
        return lambda inbox: inbox.put_off(reason)
    return partial(settle, status=status.FAILED, reason=reason)


def confirm_first(inbox: WebhookEvent) -> None:
    inbox.status = WebhookEvent.Status.PENDING
    inbox.next_attempt_at = timezone.now()
    inbox.last_error = "Waits for the API to confirm it."


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
        except (IntegrityError, OperationalError):
            raise
        except Exception as error:
            judge(error)(inbox)
            _note_error(inbox, error)
            inbox.save(update_fields=OUTCOME)
    except Exception as error:
        _note_error(inbox, error)
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
    settle(inbox, WebhookEvent.Status.PROCESSED)
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


OPENING = {CREATED, "whatsapp.phone_number.reconnected"}
