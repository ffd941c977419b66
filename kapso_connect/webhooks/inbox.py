"""The inbox: store each delivery once, process it, and retry what could not be finished.

Events of messages are not stored: a busy number would fill the inbox. They are only announced.

From the top: ``receive`` is called by the webhook's view, ``process`` by a task and by
``kapso_sync`` for events that wait, ``process_again`` by staff.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, cast

from django.db import IntegrityError
from django.utils import timezone

from .. import db, dispatch, outbox, signals
from ..conf import DETAILS_BUDGET, get_conf
from ..db import on_commit, retry_on_conflict, task
from ..exceptions import (
    Ignored,
    KapsoError,
    MalformedPayload,
    NeedsConfirmation,
    TryLater,
    UnknownCustomer,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Source, TimelineEvent, WebhookEvent
from ..onboarding.details import details_budget
from ..onboarding.remote_numbers import (
    NOT_SHOWN_YET_WINDOW,
    STALE_READ_WINDOW,
    refresh_number,
)
from ..retries import NOT_DISMISSED
from ..utils import as_instant, describe, time_since, utc_now
from . import number_webhooks
from .handlers import (
    CONNECTING_EVENTS,
    NUMBER_OFFBOARDED,
    TEST_DELIVERY,
    apply,
    disconnection_data,
    is_foreign,
    is_theirs,
)
from .payloads import (
    ACCOUNT_EVENTS,
    PARSERS,
    UNNAMED_EVENT,
    Event,
    Message,
    PhoneNumberEvent,
    is_test,
    read,
)

EXPECTED_ERRORS = (Ignored, MalformedPayload, NeedsConfirmation)
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

MAX_REPEATS = 10
"""How often the same body is stored in ``REPEAT_PERIOD``, for each name that this app handles."""

MAX_TEST_REPEATS = 100
"""The same for test deliveries: what Kapso sends as a test may always be the same."""

REPEAT_PERIOD = timedelta(hours=24)

MAX_SHARED_WAIT = STALE_READ_WINDOW / 2
"""How long an event may have waited for the API if one with the same body is to share its answer.
The API may show the number as it was before for the rest of STALE_READ_WINDOW."""


class AlreadyStored(Exception):
    """Another process stored the same delivery first."""


class ReceiverRaised(Exception):
    """A receiver of the site raised for an event of a message, which is stored nowhere."""


class RepeatedTooOften(Exception):
    """The same body was stored MAX_REPEATS times, under other idempotency keys."""


# Receiving


@dataclass(frozen=True)
class Received:
    """How many events of a delivery were stored, how many were duplicates, and how many were about
    messages, which are not stored."""

    stored: int
    duplicates: int
    announced: int = 0


def receive(messages: Sequence[Message]) -> Received:
    """Store the events of one delivery and process each, in one transaction each. Then announce
    those about messages, which are not stored.

    If processing fails, everything it changed is rolled back, and the event is stored with the
    error. What the API has to confirm is confirmed at once if tasks run in this process; all of
    that together takes ``REQUEST_BUDGET`` seconds at most.
    Raise a database error, or AlreadyStored, if an event could not be stored: Kapso then has to
    send it again. Raise RepeatedTooOften for a body that was sent again and again, and
    ReceiverRaised if a receiver raised for an event of a message.
    """
    about_messages = [m for m in messages if m.is_about_messages and not m.error]
    others = [m for m in messages if not m.is_about_messages or m.error]
    # What is about connections is stored first, whatever the receivers do with messages.
    with details_budget(DETAILS_BUDGET), number_webhooks.shared_budget():
        received = _receive(others)
    if about_messages:
        announce(about_messages)
    return replace(received, announced=len(about_messages))


def announce(messages: Sequence[Message]) -> None:
    """Send ``webhook_received`` for events about messages, to each receiver. Raise ReceiverRaised
    afterwards if one of them raised: nothing else would repeat the call."""
    signal, sender = signals.webhook_received, WebhookEvent
    receivers = signal.named_receivers(sender)
    raised = set()
    for message in messages:
        for name, receiver in receivers.items():
            try:
                dispatch.call(
                    receiver,
                    signal=signal,
                    sender=sender,
                    webhook_event=None,
                    event_name=message.name,
                    payload=message.payload,
                    source=Source.WEBHOOK,
                    event=None,
                )
            except Exception as error:
                if name not in raised:  # not a traceback for each message of a batch
                    kind = type(error).__name__
                    log_event("signal.receiver_raised", receiver=name, error=kind, exc_info=error)
                raised.add(name)
    log_event(
        "webhook.message",
        event_name=messages[0].name,
        count=len(messages),
        receivers=len(receivers),
        raised=sorted(raised),
    )
    if raised:
        raise ReceiverRaised


def _receive(messages: Sequence[Message]) -> Received:
    again: list[WebhookEvent] = []
    try:
        new = _without_duplicates(messages) if messages else []
    except RepeatedTooOften:
        # It may be the first that is no replay.
        repeated = _apply_again(messages[0]) if len(messages) == 1 else None
        if repeated is None:
            raise
        new, again = [], [repeated]
    stored = [event for message in new if (event := _store_once(message)) is not None]
    duplicates = len(messages) - len(stored)
    if duplicates:
        first = messages[0]
        log_event(
            "webhook.duplicate",
            event_name=first.name,
            idempotency_key=first.key,
            count=duplicates,
        )
    doubtful = [event for event in [*stored, *again] if _is_due(event)]
    if doubtful and db.runs_immediately(process_webhook_event):
        on_commit(partial(_confirm_now, doubtful))
    return Received(len(stored), duplicates)


def _without_duplicates(messages: Sequence[Message]) -> list[Message]:
    """Return those of the ``messages``, which have one body, that are not stored yet.

    Raise RepeatedTooOften if there are any, and this body was stored MAX_REPEATS times.
    """
    now = utc_now()
    digests, recent = set(), Counter[str]()
    shares_answer = False
    # Not as objects: of a batch there may be thousands.
    for digest, name, status, received_at, leased_until in WebhookEvent.objects.filter(
        body_digest=messages[0].body_digest
    ).values_list("delivery_digest", "event", "status", "received_at", "leased_until"):
        digests.add(digest)
        age = time_since(received_at)
        if age < REPEAT_PERIOD:
            recent[_handled_name(name)] += 1
        if (name, status) == (messages[0].name, WebhookEvent.Status.PENDING):
            # Whoever acquires its lease from now on asks the API after this delivery has arrived.
            is_leased = leased_until is not None and leased_until > now
            shares_answer |= age < MAX_SHARED_WAIT and not is_leased
    new = [message for message in messages if message.digest not in digests]
    if len(messages) == 1 and shares_answer:
        return []
    allowed = Counter[str]()
    for message in messages:
        repeats = MAX_TEST_REPEATS if is_test(message.payload) else MAX_REPEATS
        allowed[_handled_name(message.name)] += repeats
    if any(recent[name] >= allowed[name] for name in {_handled_name(m.name) for m in new}):
        raise RepeatedTooOften
    return new


def _apply_again(message: Message) -> WebhookEvent | None:
    """Apply ``message`` with the latest stored event of the same body and name, in place of storing
    one more. Return that one; None if it is being processed, or if this app does not handle it."""
    rows = WebhookEvent.objects.filter(body_digest=message.body_digest, event=message.name)
    latest = rows.order_by("-pk").first()
    if latest is None or message.event is None:
        return None
    try:
        retry_on_conflict(partial(apply, message.event, latest))
    except NeedsConfirmation:
        return latest if _ask_again(latest) else None
    except Ignored:
        pass
    return latest


def _ask_again(webhook_event: WebhookEvent) -> bool:
    """Make a stored event due, as if it had just arrived, but not sooner than MAX_SHARED_WAIT after
    the API was asked about it. Return False if it is being processed."""
    due = utc_now()
    if webhook_event.processed_at is not None:
        due = max(due, as_instant(webhook_event.processed_at) + MAX_SHARED_WAIT)
    webhook_event.status = WebhookEvent.Status.PENDING
    webhook_event.next_attempt_at = due
    changed = WebhookEvent.objects.not_leased().filter(pk=webhook_event.pk)
    if not changed.update(
        status=webhook_event.status,
        next_attempt_at=due,
        attempts=0,
        processed_at=None,
        received_at=timezone.now(),
        **NOT_DISMISSED,
    ):
        return False
    _enqueue_next_attempt(webhook_event)
    return True


def _handled_name(name: str) -> str:
    """Return ``name``, or "" for a name that this app does not handle: what is not signed could
    have any number of them."""
    return name if name in PARSERS else ""


def _store_once(message: Message) -> WebhookEvent | None:
    try:
        return _store(message)
    except AlreadyStored:
        if WebhookEvent.objects.filter(delivery_digest=message.digest).exists():
            return None
        raise


def _is_due(webhook_event: WebhookEvent) -> bool:
    due = webhook_event.next_attempt_at
    is_pending = webhook_event.status == WebhookEvent.Status.PENDING
    return is_pending and due is not None and due <= utc_now()


def _confirm_now(webhook_events: Sequence[WebhookEvent]) -> None:
    """Ask the API about events that wait for it, with one budget for all. Those that are left when
    it is used up stay due."""
    budget = get_conf().request_budget
    deadline = time.monotonic() + budget
    with KapsoClient.from_settings(budget=budget) as client:
        for webhook_event in webhook_events:
            if time.monotonic() >= deadline:
                return
            try:
                process(webhook_event.pk, client)
            except Exception as error:
                # It is stored, so that the delivery has succeeded.
                _log_error(webhook_event, error)


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
        idempotency_key=message.key,
        event=message.name,
        payload=message.payload,
        delivery_digest=message.digest,
        body_digest=message.body_digest,
        is_name_signed=message.is_name_signed,
    )
    if error:
        classify_error(webhook_event, error)
    else:
        _set_expected_outcome(webhook_event, message.event, message.error)
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
    else:
        _enqueue_next_attempt(webhook_event)
    return webhook_event


def _set_expected_outcome(webhook_event: WebhookEvent, event: Event | None, error: str) -> None:
    """Set the outcome that the event has if its handler raises nothing, so that the row is written
    only once. Does not save."""
    status = WebhookEvent.Status
    if error and webhook_event.event in {UNNAMED_EVENT, *PARSERS}:
        finish(webhook_event, status.FAILED, error)
    elif error:  # what this app does not act on is never an error
        finish(webhook_event, status.IGNORED, error)
    elif is_test(webhook_event.payload):
        finish(webhook_event, status.IGNORED, TEST_DELIVERY)
    elif event is None:
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
    except BaseException as error:
        _log_error(webhook_event, error)
        schedule_retry(webhook_event, describe(error))
        if not isinstance(error, Exception):  # a timeout of a green thread, SystemExit
            raise
    log_event(
        "webhook.retried",
        attempts=webhook_event.attempts,
        seconds=time.monotonic() - started,
        **_log_fields(webhook_event),
    )
    return webhook_event.status != WebhookEvent.Status.PENDING


def process_again(webhook_event: WebhookEvent) -> bool | None:
    """Process now an event that ``can_process_again``, with the full number of attempts again.

    Return True if it succeeded, False if it failed again, waits, or is ignored again, and None if
    there is nothing to do or another process may be processing it.
    """
    status = WebhookEvent.Status
    if not can_process_again(webhook_event):
        return None
    succeeded = {status.PROCESSED, status.IGNORED}
    rows = WebhookEvent.objects.filter(pk=webhook_event.pk)
    if webhook_event.status == status.IGNORED:
        succeeded.remove(status.IGNORED)
        rows = rows.filter(status=status.IGNORED)
    else:
        rows = rows.filter(status__in=[status.FAILED, status.PENDING])
    if not rows.retry_now(status=status.PENDING):
        return None
    process(webhook_event.pk)
    webhook_event.refresh_from_db()
    return webhook_event.status in succeeded


def can_process_again(webhook_event: WebhookEvent) -> bool:
    """Return whether staff may process an event again: one that failed or waits, and Meta's
    decision about an account of which no number was known when it arrived, and was ignored.

    What was decided before the number was connected, or is recorded already, is ignored again.
    """
    status = WebhookEvent.Status
    if webhook_event.status == status.IGNORED:
        return webhook_event.event in ACCOUNT_EVENTS
    return webhook_event.event in PARSERS and webhook_event.status != status.PROCESSED


def dismiss(webhook_event: WebhookEvent, *, by: Any, because: str) -> bool:
    """Record that the member of staff ``by`` dismisses a failed event, and why.

    Return False if it has not failed any more, or is dismissed already.
    """
    failed = WebhookEvent.objects.failed().filter(pk=webhook_event.pk)
    return bool(failed.dismiss(by=by, because=because))


def _handle_or_confirm(webhook_event: WebhookEvent, client: KapsoClient | None) -> None:
    event, error_text = read(webhook_event.event, webhook_event.payload)
    try:
        retry_on_conflict(partial(_apply, event, error_text, webhook_event))
    except NeedsConfirmation:
        # Handlers of account events never raise it.
        confirm(cast(PhoneNumberEvent, event), webhook_event, client)
    except (IntegrityError, *db.OUTAGE_ERRORS):
        raise
    except Exception as error:
        classify_error(webhook_event, error)
        _log_error(webhook_event, error)
        webhook_event.save(update_fields=OUTCOME_FIELDS)


def _apply(event: Event | None, error: str, webhook_event: WebhookEvent) -> None:
    _set_expected_outcome(webhook_event, event, error)
    webhook_event.save(update_fields=OUTCOME_FIELDS)
    if event is not None:
        apply(event, webhook_event)


def confirm(
    event: PhoneNumberEvent, webhook_event: WebhookEvent, client: KapsoClient | None = None
) -> None:
    """Apply what Kapso's API says about the number of an event that cannot be trusted alone.

    A number that was just reported as connected, and that the API does not show yet, is waited for.
    """
    connects = webhook_event.event in CONNECTING_EVENTS
    age = time_since(webhook_event.received_at)
    try:
        connection = refresh_number(
            event.phone_number_id,
            source=Source.WEBHOOK,
            client=client or KapsoClient.from_settings(budget=get_conf().request_budget),
            webhook_event=webhook_event,
            data=None if connects else disconnection_data(event, webhook_event),
            reconnected_at=event.occurred_at if webhook_event.is_name_signed else None,
            is_expected=connects and age < NOT_SHOWN_YET_WINDOW,
        )
    except (KapsoError, TryLater) as error:
        schedule_retry(webhook_event, str(error))
        return
    is_connected = connection is not None and connection.is_connected
    if connects and connection is not None and is_connected and not is_theirs(event, connection):
        if age < NOT_SHOWN_YET_WINDOW:
            schedule_retry(webhook_event, "Kapso's API still shows the number as another's.")
            return
        is_connected = False
    is_fresh = time_since(event.occurred_at or webhook_event.received_at) < STALE_READ_WINDOW
    if is_connected and not connects and is_fresh:
        schedule_retry(webhook_event, "Kapso's API still shows the number as connected.")
        return
    may_be_deleted = not connects and webhook_event.event != NUMBER_OFFBOARDED
    if may_be_deleted and is_fresh and connection is not None and connection.is_paused:
        schedule_retry(webhook_event, "Kapso's API still shows the paused number.")
        return
    if is_connected == connects:
        finish(webhook_event, WebhookEvent.Status.PROCESSED)
    elif connects and is_foreign(event):
        finish(webhook_event, WebhookEvent.Status.IGNORED, str(UnknownCustomer(event.customer_id)))
    elif connects and event.occurred_at is not None and is_fresh:
        schedule_retry(webhook_event, "Kapso's API does not show the number as connected yet.")
        return
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
        webhook_event.next_attempt_at = utc_now()
        webhook_event.last_error = "Waiting for the API to confirm it."
    elif isinstance(error, Ignored):
        finish(webhook_event, status.IGNORED, str(error))
    elif isinstance(error, MalformedPayload):
        finish(webhook_event, status.FAILED, str(error))
    elif isinstance(error, (IntegrityError, *db.OUTAGE_ERRORS)):
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
    _enqueue_next_attempt(webhook_event)


def _enqueue_next_attempt(webhook_event: WebhookEvent) -> None:
    """Enqueue the task for an event that waits. One that is due now is processed by ``receive``
    instead if tasks run in this process."""
    if not _is_due(webhook_event):
        due = webhook_event.next_attempt_at
        db.enqueue_later_on_commit(process_webhook_event, webhook_event.pk, due)
    elif not db.runs_immediately(process_webhook_event):
        db.enqueue_on_commit(process_webhook_event, webhook_event.pk)


def _log_fields(webhook_event: WebhookEvent) -> dict[str, Any]:
    return {
        "webhook_event_id": webhook_event.pk,
        "event_name": webhook_event.event,
        "idempotency_key": webhook_event.idempotency_key,
        "outcome": str(webhook_event.status),
    }


def _log_error(webhook_event: WebhookEvent, error: BaseException) -> None:
    if not isinstance(error, EXPECTED_ERRORS):
        log_event(
            "webhook.error",
            webhook_event_id=webhook_event.pk,
            event_name=webhook_event.event,
            idempotency_key=webhook_event.idempotency_key,
            error=type(error).__name__,
            exc_info=error,
        )
