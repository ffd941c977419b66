"""The outbox: sends the signal of each TimelineEvent, after the commit, until it is delivered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import permutations
from typing import Any

from django.db import models
from django.utils import timezone

from . import db, dispatch, signals
from .db import bulk_insert, on_commit, retry_on_conflict, task
from .log import log_event
from .models import Connection, SetupLink, TimelineEvent, WebhookEvent
from .utils import MAX_ERROR_LENGTH, describe

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
"""The signal of each kind of event, and its sender. The other kinds have no signal."""

BEFORE_SENDING: dict[str, Callable[[TimelineEvent], bool]] = {}
"""By kind of event, what is called before its signal is sent, and may change the event in memory.
It returns True if that may have taken long. ``onboarding.details`` asks for what the receivers need
to know of a new number."""

LOG_FIELDS: dict[str, tuple[str, str]] = {
    Kind.SETUP_LINK_SENT: ("channel", "channel"),
    Kind.SETUP_LINK_REVOKED: ("reason", "reason"),
    Kind.SETUP_FAILED: ("error_code", "error_code"),
    Kind.DISCONNECTED: ("reason", "reason"),
    Kind.ACCOUNT_UPDATED: ("decision", "event"),
    Kind.HEALTH_CHECKED: ("health", "status"),
    Kind.EMAIL_SENT: ("message_kind", "message"),
}
"""The field that is logged besides the ids, by kind of event, and its key in ``data``."""

NUMBER_WEBHOOK_RECEIVER = "kapso_connect.number_webhook"
"""The name of this package's own receivers that register and remove the webhooks of numbers, with
``NUMBER_WEBHOOK``."""

EMAIL_RECEIVER = "kapso_connect.email_connected"
"""The name of this package's own receiver of ``whatsapp_connected``, with ``EMAIL_CONNECTED``."""

OWN_RECEIVERS = (NUMBER_WEBHOOK_RECEIVER, EMAIL_RECEIVER)
"""This package's own receivers, in the order in which they are called: after those of the site,
since Kapso or a mail server may be slow."""

NO_RECEIVER = (
    "No receiver to call is connected in this process. Connect receivers in AppConfig.ready(), so "
    "that kapso_sync and task workers have them, too."
)
"""The error of an event that was recorded where there was a receiver, and sent where is none."""


def has_receivers(kind: str) -> bool:
    """Return True if a receiver is connected to the signal of this kind of event."""
    signal, sender = SIGNALS.get(kind, (None, None))
    return signal is not None and signal.has_listeners(sender)


def has_site_receivers(kind: str) -> bool:
    """Return True if a receiver other than this package's own is connected to the signal of this
    kind of event."""
    signal, sender = SIGNALS.get(kind, (None, None))
    return signal is not None and bool(signal.named_receivers(sender).keys() - {*OWN_RECEIVERS})


def heard_by_nobody() -> models.Q:
    """Return the condition for events that none of the site's receivers has got."""
    condition = models.Q()
    for count in range(len(OWN_RECEIVERS) + 1):
        for names in permutations(OWN_RECEIVERS, count):
            condition |= models.Q(receivers=list(names))
    return condition


def record(kind: str, *, source: str, **fields: Any) -> TimelineEvent:
    """Add an event to the timeline, and send its signal once the transaction commits.

    ``fields`` are fields of TimelineEvent. Receivers may get the very objects among them, so read
    those in this transaction, or give their keys. Without receivers the event counts as delivered:
    a receiver that is added later does not get signals of the past.
    """
    event = TimelineEvent(kind=kind, source=source, **fields)
    record_all([event])
    return event


def record_all(events: Iterable[TimelineEvent]) -> None:
    """Add several events like ``record``, which are not saved yet."""
    events = list(events)
    immediately = db.runs_immediately(deliver_event)
    for event in events:
        event.needs_site_receiver = has_site_receivers(event.kind)
        if not has_receivers(event.kind):
            event.finish()
            event.delivered_at = timezone.now()
        elif immediately:
            event.set_lease()
    bulk_insert(events)
    for event in events:
        if event.kind != Kind.WEBHOOK_RECEIVED:  # the inbox logs these
            on_commit(partial(_log_recorded, event))
        if event.kind == Kind.CONNECTED and event.delivered_at is not None:
            on_commit(partial(_log_unheard, event))
        if event.delivered_at is None:
            db.enqueue_on_commit(
                deliver_event,
                event.pk,
                run_immediately=partial(_deliver_leased, event) if immediately else None,
            )


@task()
def deliver_event(event_id: int) -> None:
    """Send the signal of one TimelineEvent, unless another worker has."""
    deliver(event_id)


def deliver(event_id: int, *, needs_receiver: bool = True) -> bool:
    """Send the signal of the event ``event_id``. Return True if it is delivered to all receivers.

    Safe to call from several processes at once: one of them sends. If a receiver raises, the error
    is stored on the event, and only the receivers that raised are called again. The same happens if
    this process has no receiver to call, since there was one where the event was recorded; without
    ``needs_receiver`` the event counts as delivered then.
    """
    event = _with_related().filter(pk=event_id).first()
    # Not in a transaction: the object would have the lease even if it could not be committed.
    if event is None or not retry_on_conflict(event.acquire_lease, in_transaction=False):
        return event is not None and event.delivered_at is not None
    return _send(event, needs_receiver=needs_receiver)


def _with_related() -> models.QuerySet[TimelineEvent]:
    return TimelineEvent.objects.select_related(
        "customer", "connection", "setup_link", "webhook_event"
    )


def resend(event: TimelineEvent) -> bool | None:
    """Send the signal of a failed or waiting event now, to the receivers that did not get it yet.

    Return True if all receivers have got it, False if one raised again, and None if there is
    nothing to send, or another worker may be sending it.
    """
    events = TimelineEvent.objects.undelivered().filter(pk=event.pk, kind__in=SIGNALS)
    # If its receiver has been removed from the site, the event is done.
    return deliver(event.pk, needs_receiver=False) if events.retry_now() else None


def dismiss(event: TimelineEvent, *, by: Any, because: str) -> bool:
    """Record that the member of staff ``by`` dismisses the failed signal of ``event``, and why.

    Return False if it has not failed any more, or is dismissed already.
    """
    return bool(TimelineEvent.objects.failed().filter(pk=event.pk).dismiss(by=by, because=because))


def signal_arguments(event: TimelineEvent) -> dict[str, Any]:
    """Return the arguments that the event's signal is sent with, as ``signals`` documents them."""
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
    connection = event.connection
    if connection is not None and event.customer and connection.customer_id == event.customer_id:
        # So that receivers need not read the same rows again.
        connection.customer = event.customer
        if connection.setup_link_id == event.setup_link_id:
            connection.setup_link = event.setup_link
    if event.kind == Kind.SETUP_FAILED:
        common["error_code"] = event.data.get("error_code", "")
    if SIGNALS[event.kind][1] is Connection:
        common["connection"] = connection
    return common


def _log_recorded(event: TimelineEvent) -> None:
    details: dict[str, Any] = {}
    if event.kind in LOG_FIELDS:
        field, key = LOG_FIELDS[event.kind]
        details[field] = event.data.get(key, "")
    log_event(
        f"timeline.{event.kind}",
        event_id=event.pk,
        source=str(event.source),
        customer_id=event.customer_id,
        connection_id=event.connection_id,
        setup_link_id=event.setup_link_id,
        webhook_event_id=event.webhook_event_id,
        actor_id=event.actor_id,
        **details,
    )


def _log_unheard(event: TimelineEvent) -> None:
    log_event("signal.unheard", event_id=event.pk, kind=event.kind)


def _deliver_leased(event: TimelineEvent) -> None:
    """Send the signal of an event that this process wrote and leased, after the commit."""
    # The signals of one transaction are sent one after the other: those before it may have taken
    # long, and so may the transaction.
    if _renew_lease(event):
        _send(event)


def _renew_lease(event: TimelineEvent) -> bool:
    """Renew the lease, and note which receivers have returned."""
    renew = partial(event.renew_lease, receivers=event.receivers)
    return retry_on_conflict(renew, in_transaction=False)


def _send(event: TimelineEvent, *, needs_receiver: bool = True) -> bool:
    """Call the receivers that have not had the signal yet. Return True if it is delivered.

    What is no Exception (a cancelled request, SystemExit) ends the attempt: it is raised again once
    the outcome is recorded.
    """
    signal, sender = SIGNALS[event.kind]
    started = time.monotonic()
    prepare = BEFORE_SENDING.get(event.kind)
    took_long = prepare is not None and prepare(event)
    arguments = signal_arguments(event)
    receivers = {
        name: receiver
        for name, receiver in signal.named_receivers(sender).items()
        if name not in event.receivers
    }
    for name in OWN_RECEIVERS:  # last
        if name in receivers:
            receivers[name] = receivers.pop(name)
    errors: dict[str, str] = {}
    interruption: BaseException | None = None
    error_text = ""
    is_unheard = not has_site_receivers(event.kind)
    lacks_receiver = (not receivers and not _waits_for_number_webhook(event)) or (
        is_unheard and event.needs_site_receiver
    )
    if lacks_receiver or (is_unheard and event.kind == Kind.CONNECTED):
        _log_unheard(event)
    if needs_receiver and lacks_receiver:
        error_text = NO_RECEIVER
    for position, (name, receiver) in enumerate(receivers.items()):
        if (position or took_long) and not _renew_lease(event):
            return False  # another process calls the remaining ones
        try:
            dispatch.call(receiver, signal=signal, sender=sender, **arguments)
        except BaseException as error:
            log_event(
                "signal.receiver_raised",
                receiver=name,
                error=type(error).__name__,
                exc_info=error,
            )
            errors[name] = describe(error)
            if not isinstance(error, Exception):
                interruption = error
                break
        else:
            event.receivers.append(name)
    if errors:
        described = [f"{name}: {error}" for name, error in errors.items()]
        error_text = "\n".join([error_text, *described] if error_text else described)
    try:
        _record_outcome(event, error_text, sorted(errors), time.monotonic() - started)
    finally:
        if interruption is not None:
            raise interruption
    return not error_text


def _waits_for_number_webhook(event: TimelineEvent) -> bool:
    """Return True if in the last attempt only the receiver for the webhooks of numbers raised.
    Without ``NUMBER_WEBHOOK`` there is nothing left to do, and ``kapso_sync`` repairs the rest."""
    # Each error is after its receiver's name, and those of OWN_RECEIVERS are called last.
    is_first = event.last_error.startswith(f"{NUMBER_WEBHOOK_RECEIVER}: ")
    return is_first and f"{EMAIL_RECEIVER}: " not in event.last_error


def _record_outcome(
    event: TimelineEvent, error_text: str, raised: list[str], seconds: float
) -> None:
    # If another process has taken over because this one was slow, its outcome counts.
    if error_text:
        outcome = event.lease_held().undelivered()
        event.schedule_retry(error_text[:MAX_ERROR_LENGTH])
    else:
        outcome = TimelineEvent.objects.undelivered().filter(pk=event.pk)
        event.delivered_at = timezone.now()
        event.last_error = ""
        event.finish()
    # A signal whose outcome is not recorded would be sent again.
    retry_on_conflict(
        partial(
            outcome.update,
            receivers=event.receivers,
            delivered_at=event.delivered_at,
            next_attempt_at=event.next_attempt_at,
            last_error=event.last_error,
            leased_at=None,
            leased_until=None,
        ),
        in_transaction=False,
    )
    db.enqueue_later_on_commit(deliver_event, event.pk, event.next_attempt_at)
    fields: dict[str, Any] = {
        "event_id": event.pk,
        "kind": event.kind,
        "attempts": event.attempts,
        "seconds": seconds,
    }
    if not error_text:
        log_event("signal.sent", **fields)
    elif event.next_attempt_at is not None:
        log_event("signal.retry_scheduled", receivers=raised, **fields)
    else:
        log_event("signal.failed", receivers=raised, **fields)
