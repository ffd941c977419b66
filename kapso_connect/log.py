"""Log events: log records with stable names and fields, which the site's observers get as well.

Each event goes to the logger ``kapso_connect.<first part of its name>``, with its name as
``kapso_event`` and its fields as attributes of the record, and to the callables that ``OBSERVERS``
names. No field contains a secret, a payload, a phone number or an e-mail address.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .conf import get_conf

LOGGER_NAME = "kapso_connect"

Observer = Callable[[str, Mapping[str, Any]], object]
"""Called with an event's name and its fields, in the thread that logs it, possibly while a request
is handled: it must be quick, and must not use the database."""


@dataclass(frozen=True)
class Event:
    """``message`` is formatted with the ``fields``; ``meaning`` is for the documentation."""

    level: int
    message: str
    fields: tuple[str, ...]
    meaning: str


TIMELINE = ("event_id", "source", "customer_id", "connection_id", "setup_link_id")
"""Fields of the events that are on the timeline as well: primary keys, and where the
change was reported from."""


def _timeline(text: str, meaning: str, *more: str) -> Event:
    message = f"{text} (customer %(customer_id)s, event %(event_id)s)"
    return Event(INFO, message, (*TIMELINE, "webhook_event_id", "actor_id", *more), meaning)


EVENTS: dict[str, Event] = {
    # Webhooks
    "webhook.answered": Event(
        DEBUG,
        "A webhook was answered %(status)s after %(seconds).3f s",
        ("status", "seconds"),
        "A request to the webhook's URL was answered.",
    ),
    "webhook.refused": Event(
        WARNING,
        "A webhook was refused with %(status)s: %(reason)s",
        ("status", "reason"),
        "The signature, method, size or body of a delivery was invalid.",
    ),
    "webhook.no_secret": Event(
        ERROR,
        "A webhook was refused: KAPSO_CONNECT['WEBHOOK_SECRET'] is not set.",
        (),
        "Every delivery is refused until a secret is set.",
    ),
    "webhook.not_stored": Event(
        ERROR,
        "A webhook could not be stored: %(error)s",
        ("error",),
        "The database was not available; Kapso will send it again.",
    ),
    "webhook.stored": Event(
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r) was stored: %(outcome)s",
        ("webhook_event_id", "event_name", "idempotency_key", "outcome"),
        "A delivery was stored; `outcome` is processed, ignored, failed or pending.",
    ),
    "webhook.duplicate": Event(
        INFO,
        "Webhook event %(idempotency_key)s (%(event_name)r) is a duplicate",
        ("event_name", "idempotency_key"),
        "A delivery had been stored before; nothing was changed.",
    ),
    "webhook.retried": Event(
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r), attempt %(attempts)s: %(outcome)s",
        ("webhook_event_id", "event_name", "idempotency_key", "outcome", "attempts", "seconds"),
        "A pending delivery was processed; `outcome` pending means that it will be retried.",
    ),
    "webhook.error": Event(
        ERROR,
        "Could not process webhook event %(idempotency_key)s",
        ("webhook_event_id", "event_name", "idempotency_key", "error"),
        "Processing a delivery raised an error, which was stored with it.",
    ),
    # The timeline
    "timeline.setup_link_created": _timeline("Setup link created", "A setup link was created."),
    "timeline.setup_link_sent": _timeline(
        "Setup link sent", "A setup link was sent to a customer.", "channel"
    ),
    "timeline.setup_link_opened": _timeline(
        "Setup link opened", "A customer opened a setup link for the first time."
    ),
    "timeline.setup_link_extended": _timeline(
        "Setup link extended", "A setup link expires later than before."
    ),
    "timeline.setup_link_revoked": _timeline(
        "Setup link revoked", "A setup link was revoked or replaced.", "reason"
    ),
    "timeline.setup_link_expired": _timeline("Setup link expired", "A setup link expired."),
    "timeline.setup_failed": _timeline(
        "Setup failed: %(error_code)s",
        "A customer came back from Kapso without a number.",
        "error_code",
    ),
    "timeline.connected": _timeline("Connected", "A customer connected a number."),
    "timeline.disconnected": _timeline(
        "Disconnected: %(reason)r", "A number is no longer connected.", "reason"
    ),
    "timeline.reconnected": _timeline("Reconnected", "A disconnected number works again."),
    "timeline.account_updated": _timeline(
        "Account updated: %(decision)s",
        "Meta changed the status of a number's account.",
        "decision",
    ),
    "timeline.health_checked": _timeline(
        "Health checked: %(health)s", "Kapso checked the health of a number.", "health"
    ),
    # Signals
    "signal.sent": Event(
        INFO,
        "The signal of event %(event_id)s (%(kind)s) was sent",
        ("event_id", "kind", "attempts", "seconds"),
        "The signal was delivered to all receivers.",
    ),
    "signal.retry_scheduled": Event(
        WARNING,
        "The signal of event %(event_id)s (%(kind)s) will be sent again: %(receivers)s raised",
        ("event_id", "kind", "attempts", "seconds", "receivers"),
        "`receivers` raised and will be called again.",
    ),
    "signal.failed": Event(
        ERROR,
        "The signal of event %(event_id)s (%(kind)s) will not be sent again: %(receivers)s raised",
        ("event_id", "kind", "attempts", "seconds", "receivers"),
        "`receivers` raised `RETRY_LIMIT` times. Send it again in the admin.",
    ),
    "signal.receiver_raised": Event(
        ERROR,
        "Receiver %(receiver)s raised %(error)s",
        ("receiver", "error"),
        "A receiver of a signal raised an error.",
    ),
    # Setup links and customers' pages
    "redirect.unconfirmed": Event(
        INFO,
        "The redirect of setup link %(setup_link_id)s waits for confirmation by Kapso's API",
        ("setup_link_id", "customer_id"),
        "A customer came back from Kapso while the API could not confirm the number.",
    ),
    "redirect.rejected": Event(
        WARNING,
        "The redirect of setup link %(setup_link_id)s was rejected: %(reason)s",
        ("setup_link_id", "customer_id", "reason"),
        "A redirect named a number that is not the customer's.",
    ),
    "setup_link.unchecked": Event(
        WARNING,
        "Setup link %(setup_link_id)s could not be checked: %(error)s",
        ("setup_link_id", "customer_id", "error"),
        "The API was not available; the customer was sent to the link without a check.",
    ),
    "page.rate_limited": Event(
        INFO,
        "Too many requests from customer %(customer_id)s",
        ("customer_id",),
        "The connect button was pressed more than ten times in ten minutes.",
    ),
    "page.try_again_later": Event(
        WARNING,
        "No setup link for customer %(customer_id)s at the moment: %(error)s",
        ("customer_id", "error"),
        "A customer was asked to try again in a minute.",
    ),
    "page.unavailable": Event(
        ERROR,
        "No setup link for customer %(customer_id)s: %(error)s",
        ("customer_id", "error"),
        "No link could be created: a setting is missing, or Kapso refuses.",
    ),
    "page.next_url_refused": Event(
        ERROR,
        "get_whatsapp_next_url must return a URL of this site (customer %(customer_id)s)",
        ("customer_id",),
        "`get_whatsapp_next_url` returned a URL of another site.",
    ),
    "page.next_url_error": Event(
        ERROR,
        "get_whatsapp_next_url of %(owner)s failed: %(error)s",
        ("customer_id", "owner", "error"),
        "`get_whatsapp_next_url` raised an error.",
    ),
    "page.rate_limit_failed": Event(
        ERROR,
        "The rate limit could not be checked: %(error)s",
        ("error",),
        "The cache failed; requests are not limited.",
    ),
    # Invitations
    "batch.started": Event(
        INFO,
        "Batch %(batch_id)s of invitations was started",
        ("batch_id", "actor_id"),
        "The setup links of a batch are being created.",
    ),
    "batch.stopped": Event(
        ERROR,
        "Batch %(batch_id)s of invitations stopped: %(error)s",
        ("batch_id", "error"),
        "The error would affect all other customers, too. Correct it and resume the batch.",
    ),
    "invitation.done": Event(
        INFO,
        "Customer %(customer_id)s has a setup link (batch %(batch_id)s)",
        ("invitation_id", "batch_id", "customer_id", "setup_link_id"),
        "One customer of a batch was invited.",
    ),
    "invitation.failed": Event(
        WARNING,
        "No setup link for customer %(customer_id)s: %(error)s",
        ("invitation_id", "batch_id", "customer_id", "error"),
        "One customer of a batch cannot be invited.",
    ),
    "invitation.retry_scheduled": Event(
        WARNING,
        "No setup link for customer %(customer_id)s yet: %(error)s",
        ("invitation_id", "batch_id", "customer_id", "error", "attempts"),
        "One customer of a batch will be invited later.",
    ),
    "email.failed": Event(
        WARNING,
        "No e-mail for customer %(customer_id)s: %(error)s",
        ("customer_id", "error"),
        "An invitation could not be e-mailed.",
    ),
    # The REST API
    "rest.failed": Event(
        ERROR,
        "The REST API answered %(status)s %(code)s: %(error)s",
        ("status", "code", "error"),
        "Kapso was not available or refused the request, or a setting is missing.",
    ),
    # API calls, tasks and commands
    "api.called": Event(
        DEBUG,
        "Kapso's API: %(operation)s: %(outcome)s (%(status)s) after %(seconds).3f s",
        ("operation", "method", "outcome", "status", "seconds"),
        "Kapso's API was called, including retries; `outcome` is ok or an exception's name.",
    ),
    "task.not_enqueued": Event(
        ERROR,
        "Could not enqueue %(task)s(%(row_id)s); kapso_sync will do it.",
        ("task", "row_id", "error"),
        "The task queue was not available.",
    ),
    "work.abandoned": Event(
        ERROR,
        "Gave up on %(kind)s %(row_id)s after %(attempts)s attempts: "
        "each worker stopped while processing it",
        ("kind", "row_id", "attempts"),
        "Workers stopped `RETRY_LIMIT` times without recording a result.",
    ),
    "sync.finished": Event(
        INFO,
        "kapso_sync: webhooks %(webhooks)s, signals %(signals)s, connected %(connected)s, "
        "disconnected %(disconnected)s, waiting %(waiting)s, failed %(failed)s, errors %(errors)s",
        (
            *("webhooks", "signals", "redirects", "connected", "disconnected", "updated", "links"),
            *("invitations", "numbers", "repaired", "waiting", "failed", "errors", "seconds"),
        ),
        "`kapso_sync` has finished; the fields count what it did.",
    ),
    "status.repaired": Event(
        ERROR,
        "kapso_sync: the stored status of customer %(customer_id)s was %(was)s; it is %(now)s now",
        ("customer_id", "was", "now"),
        "A customer's stored status did not follow from the links and numbers: rows were changed "
        "past `kapso_connect.onboarding`, or there is a bug.",
    ),
    "sync.error": Event(
        ERROR,
        "kapso_sync: %(step)s %(row_id)s: %(error)s",
        ("step", "row_id", "error"),
        "One row could not be recovered; the run went on.",
    ),
    "sync.stopped": Event(
        ERROR,
        "kapso_sync could not compare with Kapso: %(error)s",
        ("error",),
        "The API was not available, or most numbers were missing from its answer.",
    ),
    "prune.finished": Event(
        INFO,
        "kapso_prune deleted %(webhooks)s webhooks, %(events)s events, %(batches)s batches, "
        "%(keys)s idempotency keys",
        ("webhooks", "events", "batches", "keys", "seconds"),
        "Old rows were deleted.",
    ),
    "observer.failed": Event(
        ERROR,
        "The observer %(observer)s raised %(error)s during %(during)s",
        ("observer", "during", "error"),
        "An observer raised (`during` is the event), or could not be imported (`import`).",
    ),
}


def log_event(name: str, /, *, exc_info: bool | BaseException = False, **fields: Any) -> None:
    """Log the event ``name`` of ``EVENTS`` with its ``fields``, and call the observers with it.

    ``exc_info`` is as in ``logging``. Never raises: logging must not break what is being logged.
    """
    _log(name, fields, exc_info)
    for path, observer in _observers():
        try:
            observer(name, dict(fields))
        except Exception as error:
            failed = {"observer": path, "during": name, "error": type(error).__name__}
            _log("observer.failed", failed, error)


def _log(name: str, fields: Mapping[str, Any], exc_info: bool | BaseException) -> None:
    event = EVENTS.get(name) or Event(WARNING, name, (), "Not in the table.")
    logger = logging.getLogger(f"{LOGGER_NAME}.{name.partition('.')[0]}")
    if logger.isEnabledFor(event.level):
        # The message is not formatted here, so that records can be grouped by it.
        logger.log(
            event.level,
            event.message,
            *([fields] if fields else []),
            exc_info=exc_info,
            extra={"kapso_event": name, **fields},
        )


def _observers() -> tuple[tuple[str, Observer], ...]:
    try:
        paths = get_conf().observers
    except ImproperlyConfigured:
        return ()  # reported by the code that needs a setting
    return _imported(paths) if paths else ()


@lru_cache(maxsize=8)
def _imported(paths: tuple[str, ...]) -> tuple[tuple[str, Observer], ...]:
    """Return the observers that can be imported. The others are logged once, and left out."""
    found = []
    for path in paths:
        try:
            found.append((path, import_string(path)))
        except Exception as error:
            failed = {"observer": path, "during": "import", "error": type(error).__name__}
            _log("observer.failed", failed, error)
    return tuple(found)
