"""The outbox: sends the signal of each TimelineEvent, after commit, until all have had it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from django.db import models
from django.utils import timezone

from . import db, dispatch, signals
from .db import on_commit, retry_on_conflict, sqlite_write_lock, task
from .log import EVENTS, log_event
from .models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from .retries import idle
from .statements import Lookup, Slot, Update, insert
from .utils import describe

Kind = TimelineEvent.Kind

SIGNALS: dict[str, tuple[dispatch.ConnectSignal, type[models.Model]]] = {
    Kind.SETUP_LINK_CREATED: (signals.setup_link_created, SetupLink),
    Kind.SETUP_FAILED: (signals.whatsapp_setup_failed, SetupLink),
    Kind.CONNECTED: (signals.whatsapp_connected, Connection),
    Kind.DISCONNECTED: (signals.whatsapp_disconnected, Connection),
    Kind.RECONNECTED: (signals.whatsapp_reconnected, Connection),
    Kind.ACCOUNT_UPDATED: (signals.whatsapp_account_updated, Connection),
    Kind.WEBHOOK_RECEIVED: (signals.webhook_received, WebhookEvent),
}


LOG_FIELDS = {
    "channel": "channel",
    "reason": "reason",
    "error_code": "error_code",
    "decision": "event",
    "health": "status",
}
"""Fields of log events, and the keys of a row's ``data`` that they are taken from."""


def has_receivers(kind: str) -> bool:
    """True where somebody listens to the signal of this kind of event."""
    signal, sender = SIGNALS.get(kind, (None, None))
    return signal is not None and signal.has_listeners(sender)


def record(kind: str, *, source: str, **fields: Any) -> TimelineEvent:
    """Write one row of the timeline and see to its signal once the transaction commits.

    An event that nobody listens to is delivered already: a receiver that is written later does
    not hear of the past.
    """
    event = TimelineEvent(kind=kind, source=source, **fields)
    heard = has_receivers(kind)
    here = heard and db.runs_here(deliver_event)
    if not heard:
        event.next_attempt_at = None
        event.delivered_at = timezone.now()
    elif here:
        event.lease_new()
    insert(event)
    if kind != Kind.WEBHOOK_RECEIVED:  # the inbox logs these
        on_commit(partial(_log, event))
    if heard:
        db.enqueue_on_commit(
            deliver_event, event.pk, here=partial(_deliver_new, event) if here else None
        )
    return event


def _deliver_new(event: TimelineEvent) -> None:
    """Send the signal of an event that this process wrote and took, now that it is committed."""
    lease_ends = event.next_attempt_at
    if lease_ends is not None and timezone.now() < lease_ends:
        _load(event)
        _send(event)
    else:
        # The transaction took longer than the lease: another process may be at it.
        deliver(event.pk)


def _log(event: TimelineEvent) -> None:
    name = f"timeline.{event.kind}"
    told: dict[str, Any] = {
        field: event.data.get(source, "")
        for field, source in LOG_FIELDS.items()
        if field in EVENTS[name].fields
    }
    log_event(
        name,
        event_id=event.pk,
        source=str(event.source),
        customer_id=event.customer_id,
        connection_id=event.connection_id,
        setup_link_id=event.setup_link_id,
        webhook_event_id=event.webhook_event_id,
        actor_id=event.actor_id,
        **told,
    )


def deliver(event_id: int) -> bool:
    """Send the signal of one event; True when every receiver has had it.

    Safe to call from several processes at once: one of them sends. A receiver that raises is
    noted on the event, and only that one is called again.
    """
    event = (
        TimelineEvent.objects.select_related(
            "customer", "connection", "setup_link", "webhook_event"
        )
        .filter(pk=event_id)
        .first()
    )
    if event is None or not retry_on_conflict(event.take, within=sqlite_write_lock):
        return event is not None and event.delivered_at is not None
    return _send(event)


def _load(event: TimelineEvent) -> None:
    """Read whose event it is, and of which link: what is at hand is a caller's, and may be old."""
    if event.customer_id is None:
        return
    found = _customers.first(pk=event.customer_id, link=event.setup_link_id)
    if found is None:
        return
    using = event._state.db
    event.customer = Customer.from_db(using, CUSTOMER, found[: len(CUSTOMER)])
    link = found[len(CUSTOMER) :]
    if link[0] is not None:
        event.setup_link = SetupLink.from_db(using, LINK, link)
        event.setup_link.customer = event.customer
    connection = event.connection
    # It may have moved on meanwhile, to another customer and by another link.
    if connection is not None and connection.customer_id == event.customer_id:
        connection.customer = event.customer
        if connection.setup_link_id == event.setup_link_id:
            connection.setup_link = event.setup_link


CUSTOMER = [field.attname for field in Customer._meta.concrete_fields]
LINK = [field.attname for field in SetupLink._meta.concrete_fields]


def _find_customer(pk: Slot, link: Slot) -> models.QuerySet[Customer, Any]:
    of_the_event = models.FilteredRelation("setup_links", condition=models.Q(setup_links=link))
    customers = Customer.objects.annotate(link=of_the_event).filter(pk=pk).order_by()
    return customers.values_list(*CUSTOMER, *(f"link__{name}" for name in LINK))


_customers = Lookup(_find_customer, pk=models.BigAutoField(), link=models.BigAutoField())


def _send(event: TimelineEvent) -> bool:
    signal, sender = SIGNALS[event.kind]
    started = time.monotonic()
    with signal.leaving_out(event.receivers):
        responses = signal.send_robust(sender=sender, **arguments(event))
    raised = {
        dispatch.receiver_name(receiver): response
        for receiver, response in responses
        if isinstance(response, Exception)
    }
    errors = [f"{name}: {describe(error)}" for name, error in raised.items()]
    event.receivers = sorted({*event.receivers, *dispatch.names_done(responses)})
    if errors:
        event.schedule_retry("\n".join(errors)[:10_000])
    else:
        event.delivered_at = timezone.now()
        event.next_attempt_at = None
        event.last_error = ""
    outcome = partial(
        _outcome.execute,
        pk=event.pk,
        receivers=event.receivers,
        delivered_at=event.delivered_at,
        next_attempt_at=event.next_attempt_at,
        last_error=event.last_error,
    )
    # Retried: what was sent and could not be recorded would be sent again.
    retry_on_conflict(outcome, within=sqlite_write_lock)
    told: dict[str, Any] = {
        "event_id": event.pk,
        "kind": event.kind,
        "attempts": event.attempts,
        "seconds": time.monotonic() - started,
    }
    if not errors:
        log_event("signal.sent", **told)
    elif event.next_attempt_at is not None:
        log_event("signal.retry_scheduled", receivers=sorted(raised), **told)
    else:
        log_event("signal.failed", receivers=sorted(raised), **told)
    return not errors


def _record_outcome(
    pk: Slot, **changes: Slot
) -> tuple[models.QuerySet[TimelineEvent], dict[str, Any]]:
    # Not over the word of a process that took over because this one was slow.
    rows = TimelineEvent.objects.filter(pk=pk, delivered_at=None).order_by()
    return rows, {**changes, "leased_at": None}


_outcome = Update(
    _record_outcome,
    pk=models.BigAutoField(),
    receivers=models.JSONField(),
    delivered_at=models.DateTimeField(),
    next_attempt_at=models.DateTimeField(),
    last_error=models.TextField(),
)


def resend(event: TimelineEvent) -> bool | None:
    """Send now the signal of an event that failed or waits, to the receivers that have not had it.

    True where all have had it, False where one raised again; None where there is nothing to do,
    or another process may be at it.
    """
    freed = TimelineEvent.objects.filter(
        idle(), pk=event.pk, delivered_at=None, kind__in=SIGNALS
    ).update(next_attempt_at=timezone.now(), attempts=0)
    return deliver(event.pk) if freed else None


def arguments(event: TimelineEvent) -> dict[str, Any]:
    """Return what the event's signal is sent with, as ``signals`` documents it."""
    common = {"source": event.source, "event": event}
    if event.kind == Kind.WEBHOOK_RECEIVED:
        inbox = event.webhook_event
        return {
            "webhook_event": inbox,
            "event_name": inbox.event if inbox else event.data.get("event", ""),
            "payload": inbox.payload if inbox else {},
            **common,
        }
    common |= {"customer": event.customer, "setup_link": event.setup_link}
    if event.kind == Kind.SETUP_FAILED:
        common["error_code"] = event.data.get("error_code", "")
    if SIGNALS[event.kind][1] is Connection:
        common["connection"] = event.connection
    return common


@task()
def deliver_event(event_id: int) -> None:
    """Send the signal of one TimelineEvent, unless another process has."""
    deliver(event_id)
