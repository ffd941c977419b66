"""What happens, told to those who watch: log records with stable names, and the site's observers.

Each event goes to the logger ``kapso_connect.<the name's first part>`` with its name as
``kapso_event`` and its fields as attributes of the record, and to the callables that
``OBSERVERS`` names. Nothing here tells a secret, a payload, or a person's number or address.
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

ROOT = "kapso_connect"

Observer = Callable[[str, Mapping[str, Any]], object]
"""Is called with an event's name and fields, in whichever thread it happened, and may be called
while a request is answered: it must be quick, and must not touch the database."""


@dataclass(frozen=True)
class Event:
    """``message`` is filled in from the ``fields``; ``meaning`` is for the documentation."""

    level: int
    message: str
    fields: tuple[str, ...]
    meaning: str


TIMELINE = ("event_id", "source", "customer_id", "connection_id", "setup_link_id")
"""Fields of what is also on the timeline: primary keys, and which channel told."""


def _timeline(what: str, meaning: str, *more: str) -> Event:
    message = f"{what} (customer %(customer_id)s, event %(event_id)s)"
    return Event(INFO, message, (*TIMELINE, "webhook_event_id", "actor_id", *more), meaning)


EVENTS: dict[str, Event] = {
    # Webhooks
    "webhook.answered": Event(
        DEBUG,
        "A webhook was answered %(status)s after %(seconds).3f s",
        ("status", "seconds"),
        "A request to the webhook's address was answered.",
    ),
    "webhook.refused": Event(
        WARNING,
        "A webhook was refused with %(status)s: %(reason)s",
        ("status", "reason"),
        "Not a usable delivery of Kapso's: wrong signature, method, size or body.",
    ),
    "webhook.no_secret": Event(
        ERROR,
        "A webhook was refused: KAPSO_CONNECT['WEBHOOK_SECRET'] is not set.",
        (),
        "Every delivery is refused until there is a secret.",
    ),
    "webhook.not_stored": Event(
        ERROR,
        "A webhook could not be stored: %(error)s",
        ("error",),
        "The database was away; Kapso was told to send it again.",
    ),
    "webhook.stored": Event(
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r) was stored: %(outcome)s",
        ("webhook_event_id", "event_name", "idempotency_key", "outcome"),
        "A delivery is in the inbox; `outcome` is processed, ignored, failed, or pending.",
    ),
    "webhook.duplicate": Event(
        INFO,
        "Webhook event %(idempotency_key)s came again (%(event_name)r)",
        ("event_name", "idempotency_key"),
        "A delivery that is in the inbox already; nothing was done.",
    ),
    "webhook.retried": Event(
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r), attempt %(attempts)s: %(outcome)s",
        ("webhook_event_id", "event_name", "idempotency_key", "outcome", "attempts", "seconds"),
        "A delivery that had to wait was worked on; `outcome` pending means that it waits on.",
    ),
    "webhook.error": Event(
        ERROR,
        "Could not act on webhook event %(idempotency_key)s",
        ("webhook_event_id", "event_name", "idempotency_key", "error"),
        "Acting on a delivery raised; the inbox keeps it and why.",
    ),
    # What is on the timeline
    "timeline.setup_link_created": _timeline("Setup link created", "A setup link was made."),
    "timeline.setup_link_sent": _timeline(
        "Setup link sent", "A customer was given the address.", "channel"
    ),
    "timeline.setup_link_opened": _timeline(
        "Setup link opened", "A customer followed it, the first time."
    ),
    "timeline.setup_link_extended": _timeline("Setup link extended", "It works longer."),
    "timeline.setup_link_revoked": _timeline(
        "Setup link revoked", "It was ended or replaced.", "reason"
    ),
    "timeline.setup_link_expired": _timeline("Setup link expired", "Its time was over."),
    "timeline.setup_failed": _timeline(
        "Setup failed: %(error_code)s", "A customer came back without a number.", "error_code"
    ),
    "timeline.connected": _timeline("Connected", "A customer connected a number."),
    "timeline.disconnected": _timeline(
        "Disconnected: %(reason)r", "A number is no longer connected.", "reason"
    ),
    "timeline.reconnected": _timeline("Reconnected", "A disconnected number works again."),
    "timeline.account_updated": _timeline(
        "Account updated: %(decision)s", "Meta decided something about its account.", "decision"
    ),
    "timeline.health_checked": _timeline(
        "Health checked: %(health)s", "Kapso was asked how a number is.", "health"
    ),
    # Signals
    "signal.sent": Event(
        INFO,
        "The signal of event %(event_id)s (%(kind)s) was sent",
        ("event_id", "kind", "attempts", "seconds"),
        "Every receiver has had the signal.",
    ),
    "signal.retry_scheduled": Event(
        WARNING,
        "The signal of event %(event_id)s (%(kind)s) is tried again later: %(receivers)s raised",
        ("event_id", "kind", "attempts", "seconds", "receivers"),
        "The receivers named raised; they are called again.",
    ),
    "signal.failed": Event(
        ERROR,
        "The signal of event %(event_id)s (%(kind)s) is not tried again: %(receivers)s raised",
        ("event_id", "kind", "attempts", "seconds", "receivers"),
        "The receivers named raised `RETRY_LIMIT` times. The admin can send it again.",
    ),
    "signal.receiver_raised": Event(
        ERROR,
        "Receiver %(receiver)s raised %(error)s",
        ("receiver", "error"),
        "One of the site's receivers raised.",
    ),
    # Setup links and customers' pages
    "redirect.unconfirmed": Event(
        INFO,
        "What the browser of setup link %(setup_link_id)s says waits for Kapso's API",
        ("setup_link_id", "customer_id"),
        "A customer came back while the API could not confirm it.",
    ),
    "redirect.rejected": Event(
        WARNING,
        "What the browser of setup link %(setup_link_id)s says is not true: %(reason)s",
        ("setup_link_id", "customer_id", "reason"),
        "Somebody came back with a number that is not the customer's.",
    ),
    "setup_link.unchecked": Event(
        WARNING,
        "Setup link %(setup_link_id)s could not be checked: %(error)s",
        ("setup_link_id", "customer_id", "error"),
        "The API was away; the customer was led to the link as it is known here.",
    ),
    "page.rate_limited": Event(
        INFO,
        "Customer %(customer_id)s asked too often",
        ("customer_id",),
        "An address was used more often than ten times in ten minutes.",
    ),
    "page.try_again_later": Event(
        WARNING,
        "No setup link for customer %(customer_id)s now: %(error)s",
        ("customer_id", "error"),
        "A customer was asked to try again in a minute.",
    ),
    "page.unavailable": Event(
        ERROR,
        "No setup link for customer %(customer_id)s: %(error)s",
        ("customer_id", "error"),
        "A customer could not be given a link: settings, or Kapso refuses.",
    ),
    "page.next_url_refused": Event(
        ERROR,
        "The page after the success page must be one of this site (customer %(customer_id)s)",
        ("customer_id",),
        "`get_whatsapp_next_url` named a page of another site.",
    ),
    "page.next_url_error": Event(
        ERROR,
        "get_whatsapp_next_url of %(owner)s failed: %(error)s",
        ("customer_id", "owner", "error"),
        "The owner's own method raised.",
    ),
    "page.rate_limit_failed": Event(
        ERROR,
        "Clicks could not be counted: %(error)s",
        ("error",),
        "The cache is out of order; nobody is kept from connecting.",
    ),
    # Invitations
    "batch.started": Event(
        INFO,
        "Batch %(batch_id)s of invitations was started",
        ("batch_id", "actor_id"),
        "Setup links for many customers are being made.",
    ),
    "batch.stopped": Event(
        ERROR,
        "Batch %(batch_id)s of invitations stopped: %(error)s",
        ("batch_id", "error"),
        "What the next customer would meet as well; it has to be resumed.",
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
        "One customer of a batch is tried again later.",
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
        "Kapso was away or refused this site, or the site's settings are not complete.",
    ),
    # Behind the scenes
    "api.called": Event(
        DEBUG,
        "Could %(operation)s: %(outcome)s (%(status)s) after %(seconds).3f s",
        ("operation", "method", "outcome", "status", "seconds"),
        "Kapso's API was asked, repeats included; `outcome` is ok or an exception's name.",
    ),
    "task.not_enqueued": Event(
        ERROR,
        "Could not enqueue %(task)s(%(row_id)s); kapso_sync will do it.",
        ("task", "row_id", "error"),
        "The queue is away.",
    ),
    "work.abandoned": Event(
        ERROR,
        "%(kind)s %(row_id)s is not tried again: its last process did not live to tell",
        ("kind", "row_id", "attempts"),
        "Processes died of it `RETRY_LIMIT` times.",
    ),
    "sync.finished": Event(
        INFO,
        "kapso_sync: events %(events)s, signals %(signals)s, connected %(connected)s, "
        "disconnected %(disconnected)s, waiting %(waiting)s, failed %(failed)s, errors %(errors)s",
        (
            *("events", "signals", "claims", "connected", "disconnected", "updated", "links"),
            *("invitations", "numbers", "waiting", "failed", "errors", "seconds"),
        ),
        "`kapso_sync` is through; the numbers count what it did.",
    ),
    "sync.error": Event(
        ERROR,
        "kapso_sync: %(step)s %(row_id)s: %(error)s",
        ("step", "row_id", "error"),
        "One row could not be recovered; the others were.",
    ),
    "sync.stopped": Event(
        ERROR,
        "kapso_sync could not compare with Kapso: %(error)s",
        ("error",),
        "The API is away, or has lost most numbers.",
    ),
    "prune.finished": Event(
        INFO,
        "kapso_prune deleted %(webhooks)s webhooks, %(events)s events, %(batches)s batches, "
        "%(keys)s idempotency keys",
        ("webhooks", "events", "batches", "keys", "seconds"),
        "Old rows are gone.",
    ),
    "observer.failed": Event(
        ERROR,
        "The observer %(observer)s raised %(error)s at %(noted)s",
        ("observer", "noted", "error"),
        "One of `OBSERVERS` raised or cannot be imported; nothing else is hurt.",
    ),
}


def log_event(name: str, /, *, exc_info: bool | BaseException = False, **fields: Any) -> None:
    """Tell that the event ``name`` happened, with its ``fields``. Raises nothing."""
    _log(name, fields, exc_info)
    for path, observer in _observers():
        try:
            observer(name, dict(fields))
        except Exception as error:
            failed = {"observer": path, "noted": name, "error": type(error).__name__}
            _log("observer.failed", failed, error)


def _log(name: str, fields: Mapping[str, Any], exc_info: bool | BaseException) -> None:
    event = EVENTS[name]
    logger = logging.getLogger(f"{ROOT}.{name.partition('.')[0]}")
    if logger.isEnabledFor(event.level):
        # The message as it is and its fields beside it: what groups records has them alike.
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
        return ()  # whoever needs a setting says so
    return _imported(paths) if paths else ()


@lru_cache(maxsize=8)
def _imported(paths: tuple[str, ...]) -> tuple[tuple[str, Observer], ...]:
    """Return the observers that can be imported; the others are told once, and left out."""
    found = []
    for path in paths:
        try:
            found.append((path, import_string(path)))
        except Exception as error:
            failed = {"observer": path, "noted": "import", "error": type(error).__name__}
            _log("observer.failed", failed, error)
    return tuple(found)
