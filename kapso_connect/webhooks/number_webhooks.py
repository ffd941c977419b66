"""The webhook of each number, by which Kapso delivers its messages (``NUMBER_WEBHOOK``).

It is registered when a number is connected and removed when the number goes, by receivers of this
package's own signals, which the outbox calls again after an error. ``kapso_sync`` compares all
numbers with the setting and repairs what differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db.models import Q, QuerySet
from django.views.decorators.debug import sensitive_variables

from .. import outbox, signals
from ..conf import NUMBER_WEBHOOK_BUDGET, SETTING, get_conf
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import (
    KapsoError,
    KapsoNotFound,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoUnexpectedResponse,
)
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoWebhook
from ..log import log_event
from ..models import OFFBOARDED, Connection, TimelineEvent
from ..onboarding.numbers import lock_number
from ..utils import host_of, is_private, is_same_target, redact_url, time_since

Kind = TimelineEvent.Kind

NUMBER_EVENTS = (
    "whatsapp.message.received",
    "whatsapp.message.sent",
    "whatsapp.message.delivered",
    "whatsapp.message.read",
    "whatsapp.message.failed",
    "whatsapp.conversation.created",
    "whatsapp.conversation.ended",
    "whatsapp.conversation.inactive",
    "whatsapp.contact.identity_changed",
    "whatsapp.contact.marketing_preference_changed",
    "whatsapp.meta_business_agent.handover",
)
"""The events that Kapso delivers to the webhook of a number."""

PAYLOAD_VERSION = "v2"

NOT_SHOWN_WINDOW = timedelta(minutes=5)
"""How long after a number was connected it is waited for if Kapso does not show it."""

TEMPORARY_ERRORS = (KapsoUnavailable, KapsoRateLimited, KapsoUnexpectedResponse)
"""After these, the outbox calls the receiver again."""


class NumberWebhookError(Exception):
    """The webhook of a number could not be registered or removed. The message says why."""


# What it should be


@dataclass(frozen=True)
class Target:
    """What the webhook of each connected number should be."""

    url: str
    kind: str
    events: tuple[str, ...]
    secret: str = field(repr=False)


@sensitive_variables()
def find_target() -> Target | None:
    """Return what the webhook of each connected number should be, or None without
    ``NUMBER_WEBHOOK``.

    Raise ImproperlyConfigured if Kapso could not deliver to it; the message says what to change.
    """
    webhook = get_conf().number_webhook
    if webhook is None:
        return None
    if not webhook.secrets:
        raise ImproperlyConfigured(
            "KAPSO_CONNECT['NUMBER_WEBHOOK'] has no secret. Set it to what "
            "manage.py kapso_webhook --new-secret prints."
        )
    url = absolute_url(webhook.url)
    if reason := undeliverable_reason(url):
        raise ImproperlyConfigured(reason)
    return Target(url, webhook.kind, webhook.events, webhook.secrets[0])


def is_configured() -> bool:
    """Return True if ``NUMBER_WEBHOOK`` is set. Invalid settings are reported elsewhere."""
    try:
        return get_conf().number_webhook is not None
    except ImproperlyConfigured:
        return False


def absolute_url(url: str) -> str:
    """Return the ``url`` of NUMBER_WEBHOOK, a path as a URL of this site; "" for a path without
    ``PUBLIC_URL``."""
    if not url.startswith("/"):
        return url
    origin = get_conf().public_url
    return origin + url if origin else ""


def undeliverable_reason(url: str) -> str:
    """Return why Kapso certainly cannot deliver to ``url``, or "". The sandbox always can."""
    if not url:
        return (
            "The url of KAPSO_CONNECT['NUMBER_WEBHOOK'] is a path, and PUBLIC_URL is not set. Set "
            "PUBLIC_URL to the origin of this site, such as https://crm.example.com."
        )
    shown = redact_url(url)
    if not host_of(url):
        return f"The url of KAPSO_CONNECT['NUMBER_WEBHOOK'] is not a URL: {shown}."
    if not get_conf().api_base_url.startswith("https://"):
        return ""
    if is_private(url):
        return (
            f"KAPSO_CONNECT['NUMBER_WEBHOOK'] delivers to {shown}, which is on a private network: "
            "Kapso cannot reach it. Give a URL on the Internet."
        )
    if not url.startswith("https://"):
        return (
            f"KAPSO_CONNECT['NUMBER_WEBHOOK'] delivers to {shown}, and Kapso delivers only to "
            "https URLs."
        )
    return ""


# How it compares


@dataclass(frozen=True)
class Comparison:
    """How the webhooks of one number compare with the setting.

    ``mine`` is the one that stays, or None; ``changes`` are the fields that are wrong, with the
    values that they should have. ``extra`` would deliver everything a second time, or are of
    another ``kind``, which Kapso does not let one change.
    """

    mine: KapsoWebhook | None
    changes: Mapping[str, Any] = field(repr=False)
    extra: tuple[KapsoWebhook, ...]

    @property
    def is_right(self) -> bool:
        return self.mine is not None and not self.changes and not self.extra


def compare(connection: Connection, found: Iterable[KapsoWebhook], target: Target) -> Comparison:
    """Compare the webhooks that Kapso lists, the newest first, with what the number of
    ``connection`` should have. Of several that deliver to the same URL the oldest stays: that is
    the same one for every process that looks."""
    ours = [
        webhook
        for webhook in found
        if webhook.phone_number_id in {None, connection.phone_number_id}
        and (webhook.id == connection.number_webhook_id or _delivers_to(webhook, target))
    ]
    usable = [webhook for webhook in ours if webhook.kind == target.kind]
    mine = usable[-1] if usable else None
    extra = tuple(webhook for webhook in ours if webhook is not mine)
    return Comparison(mine, differences(mine, target) if mine else {}, extra)


def _delivers_to(webhook: KapsoWebhook, target: Target) -> bool:
    """Return True if ``webhook`` delivers to the URL of ``target``. Another query may be another
    site's, or another receiver."""
    is_same_query = webhook.url.partition("?")[2] == target.url.partition("?")[2]
    return is_same_query and is_same_target(webhook.url, target.url)


@sensitive_variables()
def differences(webhook: KapsoWebhook, target: Target) -> dict[str, Any]:
    """Return the fields of ``webhook`` that are not as they should be, with their right values. A
    secret that Kapso does not show is sent with any other change."""
    changes: dict[str, Any] = {}
    if webhook.url != target.url:
        changes["url"] = target.url
    if target.kind == "kapso":
        if set(webhook.events) != set(target.events):
            changes["events"] = list(target.events)
        if webhook.payload_version not in {None, PAYLOAD_VERSION}:
            changes["payload_version"] = PAYLOAD_VERSION
    if not webhook.active:
        changes["active"] = True
    shown = webhook.secret_key
    is_hidden = shown is None or shown.is_masked
    if (changes and is_hidden) or (
        shown is not None and not is_hidden and not shown.is_same(target.secret)
    ):
        changes["secret_key"] = target.secret
    return changes


# Making it right


def register(connection: Connection, client: KapsoClient, *, source: str) -> bool:
    """Make the webhook of a connected number what ``NUMBER_WEBHOOK`` says: one, and right. Return
    whether that is recorded as a change: not if it was right, or another process did the same.

    Several processes may do this at once. After an error, call it again: it looks before it
    creates. Raise KapsoError, NumberWebhookError if Kapso did not take a change,
    ImproperlyConfigured as ``find_target`` does, and CalledInTransaction inside a transaction.
    """
    refuse_in_transaction()
    target = find_target()
    if target is None:
        return False
    number = connection.phone_number_id
    found = compare(connection, client.list_number_webhooks(number), target)
    changed = sorted(name.removesuffix("_key") for name in found.changes)
    if found.mine is None:
        # One of another kind goes afterwards: if Kapso refuses the new one, messages still arrive.
        # Whoever is the first to store its id, this or another process, records the event.
        mine, is_changed = _create(connection, target, client), False
    else:
        mine, is_changed = found.mine, bool(found.changes or found.extra)
        _delete_all(number, found.extra, client)
        if found.changes:
            mine = client.update_number_webhook(number, mine.id, found.changes)
            if wrong := sorted(differences(mine, target)):
                raise NumberWebhookError(f"Kapso did not change: {', '.join(wrong)}.")
    data = {"url": redact_url(target.url), "kind": target.kind, "events": list(target.events)}
    if changed:
        data["changed"] = changed
    return _record_registered(connection, mine.id, data, source=source, is_changed=is_changed)


@sensitive_variables()
def _create(connection: Connection, target: Target, client: KapsoClient) -> KapsoWebhook:
    """Create the webhook, and return the one that the number has afterwards: another process may
    have been faster."""
    created, unknown = None, None
    try:
        created = client.create_number_webhook(
            connection.phone_number_id,
            url=target.url,
            secret_key=target.secret,
            events=target.events,
            kind=target.kind,
        )
    except KapsoError as error:
        if not error.outcome_unknown:
            raise
        unknown = error
    listed = client.list_number_webhooks(connection.phone_number_id)
    found = compare(connection, listed, target)
    mine = found.mine or created
    if mine is None:
        raise unknown or NumberWebhookError("Kapso does not show the webhook.")
    _delete_all(connection.phone_number_id, found.extra, client)
    return mine


def _delete_all(number: str, webhooks: Iterable[KapsoWebhook], client: KapsoClient) -> None:
    for webhook in webhooks:
        with suppress(KapsoNotFound):
            client.delete_number_webhook(number, webhook.id)


def _record_registered(
    connection: Connection, webhook_id: str, data: dict[str, Any], *, source: str, is_changed: bool
) -> bool:
    """Store the id of the webhook, with an event in the timeline. Return False if it was stored
    already, and nothing of the webhook was changed."""

    def change() -> bool:
        current = lock_number(connection.phone_number_id)
        if current is None:
            return False
        was = current.number_webhook_id
        if was == webhook_id and not is_changed:
            return False
        current.number_webhook_id = webhook_id
        _save(
            current,
            Kind.NUMBER_WEBHOOK_UPDATED if was else Kind.NUMBER_WEBHOOK_CREATED,
            source,
            data,
        )
        return True

    has_changed = retry_on_conflict(change)
    connection.number_webhook_id = webhook_id
    return has_changed


def remove(connection: Connection, client: KapsoClient, *, source: str) -> bool:
    """Remove the webhook that was registered for a number, if there is one. Return whether there
    was. Raise a KapsoError, and CalledInTransaction inside a transaction."""
    refuse_in_transaction()
    webhook_id = connection.number_webhook_id
    if not webhook_id:
        return False
    with suppress(KapsoNotFound):  # it went with the number
        client.delete_number_webhook(connection.phone_number_id, webhook_id)

    def change() -> bool:
        current = lock_number(connection.phone_number_id)
        if current is None or current.number_webhook_id != webhook_id:
            return False
        current.number_webhook_id = ""
        _save(current, Kind.NUMBER_WEBHOOK_DELETED, source, {})
        return True

    has_changed = retry_on_conflict(change)
    connection.number_webhook_id = ""
    return has_changed


def _save(connection: Connection, kind: str, source: str, data: dict[str, Any]) -> None:
    connection.save(update_fields=["number_webhook_id", "updated_at"])
    outbox.record(
        kind,
        source=source,
        customer=connection.customer,
        connection=connection,
        setup_link_id=connection.setup_link_id,
        data=data,
    )


def to_remove() -> QuerySet[Connection]:
    """Return the numbers whose webhook is to be removed: those that are gone, but not those that
    Meta has paused; without ``NUMBER_WEBHOOK`` all that have one."""
    registered = Connection.objects.exclude(number_webhook_id="")
    if get_conf().number_webhook is None:
        return registered
    is_paused = Q(disconnect_reason=OFFBOARDED)
    return registered.exclude(is_paused | Q(status=Connection.Status.CONNECTED))


# When a number is connected, and when it goes

_deadline: ContextVar[float | None] = ContextVar(
    "kapso_connect_number_webhook_deadline", default=None
)
_is_left_to_sync: ContextVar[bool] = ContextVar(
    "kapso_connect_number_webhook_left_to_sync", default=False
)


@contextmanager
def shared_budget() -> Iterator[None]:
    """Let the receivers that are called in the block take ``NUMBER_WEBHOOK_BUDGET`` together."""
    token = _deadline.set(time.monotonic() + NUMBER_WEBHOOK_BUDGET)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def left_to_sync() -> Iterator[None]:
    """Let the receivers that are called in the block do nothing: ``kapso_sync`` compares all
    numbers anyway, with one request for all that are right."""
    token = _is_left_to_sync.set(True)
    try:
        yield
    finally:
        _is_left_to_sync.reset(token)


def register_connected(connection: Connection, source: str, **kwargs: Any) -> None:
    """Register the webhook of a number that was connected: a receiver of ``whatsapp_connected`` and
    ``whatsapp_reconnected``."""
    _handle(connection, source, register, wants_connected=True)


def remove_disconnected(connection: Connection, source: str, **kwargs: Any) -> None:
    """Remove the webhook of a number that is gone: a receiver of ``whatsapp_disconnected``. One
    that Meta has paused keeps it."""
    _handle(connection, source, remove, wants_connected=False)


def _handle(
    connection: Connection,
    source: str,
    change: Callable[..., bool],
    *,
    wants_connected: bool,
) -> None:
    """Call ``change``. Raise NumberWebhookError for what may succeed later: then the outbox calls
    again. What would fail again is logged, and ``kapso_sync`` and ``kapso_doctor`` report it."""
    if _is_left_to_sync.get():
        return
    # This may be a late attempt: what counts is how the number is now.
    current = Connection.objects.select_related("customer").filter(pk=connection.pk).first()
    if current is None or current.is_connected != wants_connected or current.is_paused:
        return
    deadline = _deadline.get()
    left = NUMBER_WEBHOOK_BUDGET if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise NumberWebhookError("There was no time left for the number's webhook.")
    try:
        change(current, KapsoClient.from_settings(budget=left, attempts=1), source=source)
    except (KapsoError, ImproperlyConfigured, NumberWebhookError) as error:
        log_event(
            "number_webhook.failed",
            connection_id=current.pk,
            customer_id=current.customer_id,
            error=str(error),
        )
        if isinstance(error, TEMPORARY_ERRORS) or _is_not_shown_yet(error, current):
            raise NumberWebhookError(str(error)) from None


def _is_not_shown_yet(error: Exception, connection: Connection) -> bool:
    connected_at = connection.connected_at
    return (
        isinstance(error, KapsoNotFound)
        and connection.is_connected
        and connected_at is not None
        and time_since(connected_at) < NOT_SHOWN_WINDOW
    )


RECEIVERS = (
    (signals.whatsapp_connected, register_connected),
    (signals.whatsapp_reconnected, register_connected),
    (signals.whatsapp_disconnected, remove_disconnected),
)


def connect_receivers(*, setting: str = SETTING, **kwargs: Any) -> None:
    """Connect the receivers above to their signals while ``NUMBER_WEBHOOK`` is set, and else
    disconnect them."""
    if setting != SETTING:
        return
    # Not by ``get_conf``, which raises for any other setting that is invalid.
    given = getattr(settings, SETTING, None)
    webhook = given.get("NUMBER_WEBHOOK") if isinstance(given, Mapping) else None
    url = webhook.get("url") if isinstance(webhook, Mapping) else None
    # A lazy one would be evaluated here, while the apps are loaded. ``get_conf`` refuses it.
    is_set = isinstance(url, str) and bool(url.strip())
    for signal, receiver in RECEIVERS:
        name = outbox.NUMBER_WEBHOOK_RECEIVER
        if is_set:
            signal.connect(receiver, sender=Connection, dispatch_uid=name)
        else:
            signal.disconnect(sender=Connection, dispatch_uid=name)


setting_changed.connect(connect_receivers, dispatch_uid="kapso_connect.number_webhook")
