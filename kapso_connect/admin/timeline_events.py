"""The admin of the timeline: what happened, and whether the signals were delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .. import outbox
from ..kapso.error_codes import find_error
from ..kapso.types import ConnectionType
from ..models import Health, TimelineEvent
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy
from .dismiss import DISMISSED
from .display import EMPTY, badge, format_datetime, json_block, plain_number_html, text_block
from .export import ExportMixin
from .failed_work import FailedWorkAdmin
from .restrictions import decision_texts
from .status import DISCONNECT_REASONS, failure_reason

Kind = TimelineEvent.Kind

SEND_CHANNELS = {
    "email": gettext_lazy("by e-mail"),
    "copy": gettext_lazy("copied"),
    "qr": gettext_lazy("as a QR code"),
    "share": gettext_lazy("as a text to share"),
}

HEALTH: dict[str, Any] = dict(Health.choices)

REPLACED = gettext_lazy("replaced by a new one")

CHANGED_FIELDS = {
    "url": gettext_lazy("URL"),
    "events": gettext_lazy("events"),
    "active": gettext_lazy("turned on again"),
    "secret": gettext_lazy("secret"),
    "payload_version": gettext_lazy("version"),
}
"""What was wrong with the webhook of a number."""

EMAILS = {
    "reminder": gettext_lazy("as a reminder"),
    "failed": gettext_lazy("about the attempt that failed"),
    "connected": gettext_lazy("about the connected number"),
}


class SignalFilter(admin.SimpleListFilter):
    title = gettext_lazy("signal")
    parameter_name = "signal"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("delivered", _("Delivered")),
            ("waiting", _("Waiting")),
            ("failed", _("Failed")),
            ("dismissed", str(DISMISSED)),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if self.value() == "delivered":
            return queryset.filter(delivered_at__isnull=False)
        if self.value() == "waiting":
            return queryset.waiting()
        if self.value() == "failed":
            return queryset.failed()
        if self.value() == "dismissed":
            return queryset.undelivered().dismissed()
        return queryset


@admin.display(description=gettext_lazy("signal"))
def signal_badge(event: TimelineEvent) -> SafeString:
    if event.delivered_at is not None:
        return badge("good", _("Delivered"))
    if event.next_attempt_at is not None:
        return badge("busy", _("Waiting"))
    if event.dismissed_at is not None:
        return badge("neutral", DISMISSED)
    return badge("bad", _("Failed"))


def event_details(event: TimelineEvent) -> list[str]:
    """Return the texts that are shown after the kind of an event."""
    data = event.data if isinstance(event.data, dict) else {}
    reason, code, channel, message, status = (
        str(data.get(name) or "")
        for name in ("reason", "error_code", "channel", "message", "status")
    )
    email = [EMAILS.get(message, message), data.get("to")]
    texts: dict[str, list[Any]] = {
        Kind.SETUP_LINK_SENT: [SEND_CHANNELS.get(channel, channel), *email],
        Kind.EMAIL_SENT: email,
        Kind.SETUP_LINK_REVOKED: [REPLACED if reason else ""],
        Kind.SETUP_FAILED: [failure_reason(code)],
        Kind.DISCONNECTED: [DISCONNECT_REASONS.get(reason, reason)],
        Kind.HEALTH_CHECKED: [HEALTH.get(status, status), data.get("error")],
        Kind.ACCOUNT_UPDATED: decision_texts(data),
        Kind.DETAILS_RECEIVED: [data.get("verified_name")],
        Kind.OWNER_ASSIGNED: [owner_text(data)],
        Kind.NUMBER_WEBHOOK_CREATED: [data.get("url")],
        Kind.NUMBER_WEBHOOK_UPDATED: [changed_fields(data.get("changed"))],
    }
    return [str(text)[:200] for text in texts.get(event.kind, []) if text]


def changed_fields(names: Any) -> str:
    """Return what was changed of a number's webhook, in words."""
    if not isinstance(names, list):
        return ""
    return ", ".join(str(CHANGED_FIELDS.get(name, name)) for name in names)


def owner_text(data: Mapping[str, Any]) -> str:
    """Return which object became the owner, as ``crm.company 7``, or that there is none."""
    if data.get("removed") is True:
        return _("no owner any more")
    return f"{data.get('owner_type', '')} {data.get('owner_id', '')}".strip()


def in_words(texts: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """Return a function that returns the text for a value, or the value itself if it has none."""
    return lambda value: texts.get(value, value)


def shown_failure(code: str) -> str:
    """Return what a customer who came back with this error code was told."""
    error = find_error(code)
    return f"{error.cause} {error.advice}"


def moment_text(value: str) -> str:
    return format_datetime(parse_datetime(value))


FACTS: list[tuple[str, Any, Callable[[Any], Any]]] = [
    ("channel", gettext_lazy("How"), in_words(SEND_CHANNELS)),
    ("message", gettext_lazy("E-mail"), in_words(EMAILS)),
    ("to", gettext_lazy("To"), str),
    ("reason", gettext_lazy("Reason"), in_words({**DISCONNECT_REASONS, "replaced": REPLACED})),
    ("initiated_by", gettext_lazy("By"), str),
    ("error_code", gettext_lazy("Error"), failure_reason),
    ("error_code", gettext_lazy("What the customer saw"), shown_failure),
    ("status", gettext_lazy("Health"), in_words(HEALTH)),
    ("error", gettext_lazy("What was found"), str),
    ("event", gettext_lazy("Webhook event"), str),
    ("business_account_id", gettext_lazy("Business account id"), str),
    ("expires_at", gettext_lazy("Works until"), moment_text),
    ("display_phone_number", gettext_lazy("Phone number"), format_phone_number),
    ("verified_name", gettext_lazy("Verified name"), str),
    ("connection_type", gettext_lazy("Connection type"), in_words(dict(ConnectionType.choices))),
    ("url", gettext_lazy("Messages are delivered to"), str),
    ("changed", gettext_lazy("Corrected"), changed_fields),
]
"""What an event's data can say: a key, what it is called, and how its value is shown."""


def event_facts(event: TimelineEvent) -> Iterator[tuple[Any, Any]]:
    """Yield what the data of an event say in words: the name and the value of each fact. What
    cannot be read is left out; the data themselves are shown, too."""
    data = event.data if isinstance(event.data, dict) else {}
    if event.kind == Kind.ACCOUNT_UPDATED:
        yield _("Meta's decision"), " · ".join(filter(None, decision_texts(data)))
        data = {name: value for name, value in data.items() if name != "event"}
    for key, label, show in FACTS:
        if data.get(key):
            with suppress(AttributeError, TypeError, ValueError):
                yield label, show(data[key])


@admin.register(TimelineEvent)
class TimelineEventAdmin(FailedWorkAdmin, ExportMixin):
    list_display = [
        "what",
        signal_badge,
        "problem",
        "customer",
        "number",
        "occurred_at",
        "by",
    ]
    list_filter = [SignalFilter, "kind", "source", "occurred_at"]
    list_select_related = ["customer", "connection", "actor", "dismissed_by"]
    search_fields = [
        "customer__name",
        "=customer__external_customer_id",
        "=connection__phone_number_id",
    ]
    search_help_text = gettext_lazy("Customer's name or external id, or Meta's id of the number.")
    fields: ClassVar[Any] = [
        "what",
        "customer",
        "connection",
        "setup_link",
        "webhook_event",
        "source",
        "actor",
        "occurred_at",
        "details",
        signal_badge,
        "delivered_at",
        "attempts",
        "next_attempt",
        "full_error",
        "receivers_done",
    ]
    run_again_title = gettext_lazy("Send signals again")
    run_again_help = gettext_lazy(
        "Failed and waiting signals are sent now, to the receivers that have not had them yet."
    )
    dismiss_title = gettext_lazy("Dismiss signals")

    def get_queryset(self, request: HttpRequest) -> QuerySet[TimelineEvent]:
        related = ("customer", "connection", "actor", "dismissed_by")
        return super().get_queryset(request).select_related(*related)

    def run_row_again(self, row: TimelineEvent) -> bool | None:
        return outbox.resend(row)

    def can_run_again(self, row: TimelineEvent) -> bool:
        return row.delivered_at is None

    def dismiss_row(self, row: TimelineEvent, *, by: Any, because: str) -> bool:
        return outbox.dismiss(row, by=by, because=because)

    def has_failed(self, row: TimelineEvent) -> bool:
        return row.delivered_at is None and row.next_attempt_at is None

    @admin.display(description=gettext_lazy("event"), ordering="kind")
    def what(self, event: TimelineEvent) -> SafeString:
        texts = ((text,) for text in event_details(event))
        more = format_html_join("", " · <bdi>{}</bdi>", texts)
        return format_html("{}{}", event.get_kind_display(), more)

    @admin.display(description=gettext_lazy("phone number"))
    def number(self, event: TimelineEvent) -> SafeString | None:
        return plain_number_html(event.connection) if event.connection else None

    @admin.display(description=gettext_lazy("by"))
    def by(self, event: TimelineEvent) -> str:
        return str(event.actor or event.get_source_display())

    @admin.display(description=gettext_lazy("details"))
    def details(self, event: TimelineEvent) -> SafeString | str:
        if not event.data:
            return EMPTY
        facts = format_html_join("", "<dt>{}</dt><dd><bdi>{}</bdi></dd>", event_facts(event))
        return format_html(
            "{}<details><summary>{}</summary>{}</details>",
            format_html('<dl class="kapso-facts">{}</dl>', facts) if facts else "",
            _("Technical details"),
            json_block(event.data),
        )

    @admin.display(description=gettext_lazy("successful receivers"))
    def receivers_done(self, event: TimelineEvent) -> SafeString | str:
        return text_block("\n".join(str(name) for name in event.receivers))
