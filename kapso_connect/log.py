"""Log events: log records with stable names and fields, which the site's observers get as well.

Each event goes to the logger ``kapso_connect.<first part of its name>``, with its name as
``kapso_event`` and its fields as attributes of the record, and to the callables that ``OBSERVERS``
names. No field contains a secret, a payload, a phone number or an e-mail address.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .conf import get_conf
from .text import one_line

Observer = Callable[[str, Mapping[str, Any]], object]
"""Called with an event's name and its fields, in the thread that logs it, possibly while a request
is handled: it must be quick, and must not use the database."""

TIMELINE_SUFFIX = " (customer %(customer_id)s, event %(event_id)s)"

EVENTS = {
    # Webhooks
    "webhook.answered": (DEBUG, "A webhook was answered %(status)s after %(seconds).3f s"),
    "webhook.refused": (WARNING, "A webhook was refused with %(status)s: %(reason)s"),
    "webhook.no_secret": (
        ERROR,
        "A webhook was refused: KAPSO_CONNECT['WEBHOOK_SECRET'] is not set.",
    ),
    "webhook.not_stored": (
        ERROR,
        "A webhook could not be stored: %(error)s (and %(suppressed)s more since the last record)",
    ),
    "webhook.stored": (
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r) was stored: %(outcome)s",
    ),
    "webhook.duplicate": (
        INFO,
        "%(count)s webhook events are duplicates, the first: %(idempotency_key)s (%(event_name)r)",
    ),
    "webhook.message": (
        DEBUG,
        "%(count)s events of messages were announced, the first: %(event_name)r",
    ),
    "webhook.retried": (
        INFO,
        "Webhook event %(webhook_event_id)s (%(event_name)r), attempt %(attempts)s: %(outcome)s",
    ),
    "webhook.error": (ERROR, "Could not process webhook event %(idempotency_key)s"),
    # The timeline
    "timeline.setup_link_created": (INFO, "Setup link created" + TIMELINE_SUFFIX),
    "timeline.setup_link_sent": (INFO, "Setup link sent" + TIMELINE_SUFFIX),
    "timeline.setup_link_opened": (INFO, "Setup link opened" + TIMELINE_SUFFIX),
    "timeline.setup_link_extended": (INFO, "Setup link extended" + TIMELINE_SUFFIX),
    "timeline.setup_link_revoked": (INFO, "Setup link revoked" + TIMELINE_SUFFIX),
    "timeline.setup_link_expired": (INFO, "Setup link expired" + TIMELINE_SUFFIX),
    "timeline.setup_failed": (INFO, "Setup failed: %(error_code)s" + TIMELINE_SUFFIX),
    "timeline.connected": (INFO, "Connected" + TIMELINE_SUFFIX),
    "timeline.disconnected": (INFO, "Disconnected: %(reason)r" + TIMELINE_SUFFIX),
    "timeline.reconnected": (INFO, "Reconnected" + TIMELINE_SUFFIX),
    "timeline.account_updated": (INFO, "Account updated: %(decision)s" + TIMELINE_SUFFIX),
    "timeline.details_received": (INFO, "Details of the number received" + TIMELINE_SUFFIX),
    "timeline.number_webhook_created": (INFO, "Message webhook registered" + TIMELINE_SUFFIX),
    "timeline.number_webhook_updated": (INFO, "Message webhook repaired" + TIMELINE_SUFFIX),
    "timeline.number_webhook_deleted": (INFO, "Message webhook removed" + TIMELINE_SUFFIX),
    "timeline.owner_assigned": (INFO, "Owner assigned" + TIMELINE_SUFFIX),
    "timeline.email_sent": (INFO, "E-mail sent: %(message_kind)s" + TIMELINE_SUFFIX),
    "timeline.health_checked": (INFO, "Health checked: %(health)s" + TIMELINE_SUFFIX),
    # Signals
    "signal.sent": (INFO, "The signal of event %(event_id)s (%(kind)s) was sent"),
    "signal.retry_scheduled": (
        WARNING,
        "The signal of event %(event_id)s (%(kind)s) will be sent again; raised: %(receivers)s",
    ),
    "signal.failed": (
        ERROR,
        "The signal of event %(event_id)s (%(kind)s) will not be sent again; raised: %(receivers)s",
    ),
    "signal.unheard": (
        WARNING,
        "No receiver in this process hears of event %(event_id)s (%(kind)s)",
    ),
    "signal.receiver_raised": (ERROR, "Receiver %(receiver)s raised %(error)s"),
    "number.details_missing": (
        WARNING,
        "The details of connection %(connection_id)s are still missing: %(error)s",
    ),
    "number_webhook.failed": (
        WARNING,
        "The webhook for the messages of connection %(connection_id)s is not as it should be: "
        "%(error)s",
    ),
    # Setup links and customers' pages
    "setup_link.hard_to_read": (
        WARNING,
        "Kapso's page of setup link %(setup_link_id)s may be hard to read: %(problems)s",
    ),
    "redirect.unconfirmed": (
        INFO,
        "The redirect of setup link %(setup_link_id)s waits for confirmation by Kapso's API",
    ),
    "redirect.rejected": (
        WARNING,
        "The redirect of setup link %(setup_link_id)s was rejected: %(reason)s",
    ),
    "setup_link.unchecked": (
        WARNING,
        "Setup link %(setup_link_id)s could not be checked: %(error)s",
    ),
    "setup_link.language_not_set": (
        WARNING,
        "The language of setup link %(setup_link_id)s could not be changed at Kapso: %(error)s",
    ),
    "page.rate_limited": (INFO, "Too many requests from customer %(customer_id)s"),
    "page.try_again_later": (
        WARNING,
        "No setup link for customer %(customer_id)s at the moment: %(error)s",
    ),
    "page.unavailable": (ERROR, "No setup link for customer %(customer_id)s: %(error)s"),
    "page.error": (ERROR, "%(page)s failed: %(error)s"),
    "page.next_url_refused": (
        ERROR,
        "get_whatsapp_next_url must return a URL of this site (customer %(customer_id)s)",
    ),
    "page.next_url_error": (ERROR, "get_whatsapp_next_url of %(owner)s failed: %(error)s"),
    "page.static_file_missing": (ERROR, "The static file %(path)s cannot be used: %(error)s"),
    "owner.unavailable": (
        WARNING,
        "The owner of customer %(customer_id)s cannot be looked up: %(error)s",
    ),
    "page.rate_limit_failed": (ERROR, "The rate limit could not be checked: %(error)s"),
    # Invitations
    "batch.started": (INFO, "Batch %(batch_id)s of invitations was started"),
    "batch.stopped": (ERROR, "Batch %(batch_id)s of invitations stopped: %(error)s"),
    "batch.given_up": (INFO, "The rest of batch %(batch_id)s was given up: %(invitations)s"),
    "invitation.done": (INFO, "Customer %(customer_id)s has a setup link (batch %(batch_id)s)"),
    "invitation.failed": (WARNING, "No setup link for customer %(customer_id)s: %(error)s"),
    "invitation.retry_scheduled": (
        WARNING,
        "No setup link for customer %(customer_id)s yet: %(error)s",
    ),
    "email.failed": (WARNING, "No e-mail for customer %(customer_id)s: %(error)s"),
    "email.retry_scheduled": (WARNING, "No e-mail for customer %(customer_id)s yet: %(error)s"),
    "email.unrecorded": (
        ERROR,
        "An e-mail to customer %(customer_id)s was sent, but is not in the timeline: %(error)s",
    ),
    "customer.erased": (
        INFO,
        "Customer %(customer_id)s was erased: %(numbers)s numbers disconnected, "
        "%(links)s links revoked",
    ),
    # The REST API
    "rest.rate_limit_failed": (ERROR, "The rate limit could not be checked: %(error)s"),
    "rest.failed": (ERROR, "The REST API answered %(status)s %(code)s: %(error)s"),
    "rest.answered": (
        DEBUG,
        "%(method)s %(route)s was answered %(status)s after %(seconds).3f s",
    ),
    # API calls, tasks and commands
    "api.called": (
        DEBUG,
        "Kapso's API: %(operation)s: %(outcome)s (%(status)s) after %(seconds).3f s",
    ),
    "task.not_enqueued": (ERROR, "Could not enqueue %(task)s(%(row_id)s); kapso_sync will do it."),
    "work.abandoned": (
        ERROR,
        "Gave up on %(kind)s %(row_id)s after %(attempts)s attempts: "
        "each worker stopped while processing it",
    ),
    "sync.finished": (
        INFO,
        "kapso_sync: webhooks %(webhooks)s, signals %(signals)s, connected %(connected)s, "
        "disconnected %(disconnected)s, waiting %(waiting)s, failed %(failed)s, errors %(errors)s",
    ),
    "status.repaired": (
        ERROR,
        "kapso_sync: the stored status of customer %(customer_id)s was %(was)s; it is %(now)s now",
    ),
    "sync.error": (ERROR, "kapso_sync: %(step)s %(row_id)s: %(error)s"),
    "sync.more_errors": (ERROR, "kapso_sync: %(step)s: %(error)s for %(count)s more rows"),
    "sync.stopped": (ERROR, "kapso_sync could not compare with Kapso: %(error)s"),
    "sync.still_stopped": (
        INFO,
        "kapso_sync still could not compare with Kapso, in %(count)s runs: %(error)s",
    ),
    "prune.finished": (
        INFO,
        "kapso_prune deleted %(webhooks)s webhooks, %(events)s events, %(batches)s batches, "
        "%(keys)s idempotency keys",
    ),
    "observer.failed": (ERROR, "The observer %(observer)s raised %(error)s during %(during)s"),
}
"""The level and the message of each event. ``docs/how-to/monitoring.md`` lists their fields."""


MIN_SECONDS_BETWEEN_REPEATS = 60.0
"""How often an event of an outage is logged by one process."""

_request_id: ContextVar[str] = ContextVar("kapso_connect_request_id", default="")

is_short_lived = False
"""True in a process that runs one command of this package and ends with it."""


@contextmanager
def logging_request_id(request_id: str) -> Iterator[None]:
    """Add ``request_id`` to the fields of every event that is logged inside."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def log_event(name: str, /, *, exc_info: bool | BaseException = False, **fields: Any) -> None:
    """Log the event ``name`` of ``EVENTS`` with its ``fields``, and call the observers with it.

    ``exc_info`` is as in ``logging``. Never raises: logging must not break what is being logged.
    """
    if request_id := _request_id.get():
        fields["request_id"] = request_id
    _log(name, fields, exc_info)
    for path, observer in _observers():
        try:
            observer(name, dict(fields))
        except Exception as error:
            failed = {"observer": path, "during": name, "error": type(error).__name__}
            if request_id:
                failed["request_id"] = request_id
            _log("observer.failed", failed, error)


class OutageEvent:
    """An event that an outage would cause many times a second.

    One process logs it once a minute; ``suppressed`` is how often it did not, since the last time.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._logged_at: float | None = None
        self._suppressed = 0

    def log(self, **fields: Any) -> None:
        """Log the event with ``fields``, unless it was logged less than a minute ago."""
        now = time.monotonic()
        with self._lock:
            last = self._logged_at
            if last is not None and now - last < MIN_SECONDS_BETWEEN_REPEATS:
                self._suppressed += 1
                return
            suppressed, self._suppressed, self._logged_at = self._suppressed, 0, now
        log_event(self.name, suppressed=suppressed, **fields)


def _log(name: str, fields: Mapping[str, Any], exc_info: bool | BaseException) -> None:
    level, message = EVENTS.get(name, (WARNING, name))
    logger = logging.getLogger(f"kapso_connect.{name.partition('.')[0]}")
    if logger.isEnabledFor(level):
        # A line break in a value must not start another line of the log.
        shown = {key: one_line(v) if isinstance(v, str) else v for key, v in fields.items()}
        extra = {"kapso_event": name, **fields}
        if "request_id" in extra and "request_id" in vars(logging.makeLogRecord({})):
            # The site's record factory adds its own, which logging lets nobody overwrite.
            del extra["request_id"]
        # The message is not formatted here, so that records can be grouped by it.
        logger.log(
            level,
            message,
            *([shown] if shown else []),
            exc_info=exc_info,
            extra=extra,
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
