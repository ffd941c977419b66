"""How values are shown in the admin: badges, times, phone numbers, JSON, fields to copy from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..models import AccountStatus, Attention, Connection, Funding, Health, OnboardingStatus
from ..onboarding.health import is_held
from ..onboarding.messages import health_message
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from ..utils import to_local_time

EMPTY = "-"
"""Django's own empty value, which Django does not use for methods on a change page."""

MAX_JSON_LENGTH = 100_000

CONFIRMATION_ROWS = 20
"""How many of the selected rows a confirmation page shows."""


def badge(kind: str, text: object) -> SafeString:
    """Return a coloured label; ``kind`` is "good", "bad", "busy" or "neutral"."""
    return format_html('<span class="kapso-badge kapso-badge-{}">{}</span>', kind, text)


def json_block(value: Any) -> SafeString:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        text = _("This cannot be shown.")
    if len(text) > MAX_JSON_LENGTH:
        text = text[:MAX_JSON_LENGTH] + "\n… " + _("(shortened)")
    return format_html('<pre class="kapso-json" tabindex="0">{}</pre>', text)


def text_block(text: str) -> SafeString | str:
    return format_html('<pre class="kapso-json" tabindex="0">{}</pre>', text) if text else EMPTY


def bullets(texts: Iterable[str]) -> SafeString | str:
    """Return a list of ``texts``; "-" if there are none."""
    items = format_html_join("", "<li><bdi>{}</bdi></li>", ((text,) for text in texts))
    return format_html('<ul class="kapso-problems">{}</ul>', items) if items else EMPTY


def shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"


def format_datetime(moment: datetime | None) -> str:
    """Return ``moment`` as Django's lists and templates show it."""
    if moment is None:
        return EMPTY
    return date_format(to_local_time(moment), "DATETIME_FORMAT")


def plain_number_html(connection: Connection) -> SafeString:
    """Return the number as people write it, in one line."""
    number = connection.display_phone_number
    # <bdi> keeps the "+" in front on pages written from right to left.
    return format_html(
        '<bdi class="kapso-phone">{}</bdi>',
        format_phone_number(number) if number else connection.phone_number_id,
    )


@admin.display(description=gettext_lazy("phone number"), ordering="display_phone_number")
def phone_number_html(connection: Connection) -> SafeString:
    """Return the number as people write it, marked if it is a test number."""
    shown = plain_number_html(connection)
    if not connection.is_test_number:
        return shown
    return format_html("{} {}", shown, badge("busy", _("test number")))


@admin.display(description=gettext_lazy("status"), ordering="status")
def connection_badge(connection: Connection) -> SafeString:
    """Return the status, and why the number needs attention if it does; but for its health and
    whether it is a test number, which are shown beside this."""
    if connection.is_paused:
        return badge("busy", OnboardingStatus.PAUSED.label)
    kind = "good" if connection.is_connected else "neutral"
    reasons = [
        attention_badge(why, connection)
        for why in connection.attention
        if why not in {Attention.TEST_NUMBER, Attention.HEALTH}
    ]
    return badges([badge(kind, connection.get_status_display()), *reasons])


def badges(all_badges: Iterable[SafeString]) -> SafeString:
    """Return badges that stand beside each other, or one below the other where they do not fit."""
    items = format_html_join("", "{}", ((one,) for one in all_badges))
    return format_html('<span class="kapso-status">{}</span>', items)


def attention_badge(why: Attention, connection: Connection) -> SafeString:
    """Return why ``connection``, or the customer who had it, needs attention."""
    match why:
        case Attention.RESTRICTED if connection.account_status == AccountStatus.DISABLED:
            return badge("bad", _("Account disabled"))
        case Attention.RESTRICTED:
            return badge("bad", _("Account restricted"))
        case Attention.HEALTH if connection.health_status == Health.ERROR:
            return badge("busy", _("Health unknown"))
        case Attention.HEALTH:
            kind = HEALTH_BADGES[Health(connection.health_status)]
            return badge(kind, connection.get_health_status_display())
        case Attention.NAME if connection.name_status == "PENDING_REVIEW":
            return badge("busy", _("Name in review"))
        case Attention.NAME:
            return badge("bad", _("Name not approved"))
        case Attention.DISCONNECTED if connection.is_paused:
            return badge("bad", _("Another number is paused"))
        case Attention.DISCONNECTED:
            return badge("bad", _("Another number is disconnected"))
    return badge("busy" if why == Attention.TEST_NUMBER else "bad", why.label)


HEALTH_BADGES = {
    Health.HEALTHY: "good",
    Health.DEGRADED: "busy",
    Health.UNHEALTHY: "bad",
    Health.ERROR: "busy",
}


@admin.display(description=gettext_lazy("health"), ordering="health_status")
def health_badge(connection: Connection) -> SafeString | str:
    if not connection.health_status:
        return EMPTY
    kind = HEALTH_BADGES[Health(connection.health_status)]
    return badge(kind, connection.get_health_status_display())


def health_details(connection: Connection) -> list[str]:
    """Return what the last health check found wrong, and until when Kapso repeats its result."""
    texts = [*problem_texts(connection), hold_text(connection)]
    return [text for text in texts if text]


def problem_texts(connection: Connection) -> list[str]:
    """Return what the last health check found wrong."""
    if connection.health_problems:
        return [health_message(problem) for problem in connection.health_problems]
    return [connection.health_error] if connection.health_error else []


def hold_text(connection: Connection) -> str:
    """Return until when Kapso repeats the result of the last health check, or "" if it does not."""
    until = connection.health_retry_after
    if until is None or not is_held(connection):
        return ""
    return _(
        "After %(time)s, Kapso will check this number again. Until then, the result stays the same."
    ) % {"time": format_datetime(until)}


FUNDING_BADGES = {
    Funding.FUNDED: "good",
    Funding.PENDING: "busy",
    Funding.UNKNOWN: "busy",
    Funding.NOT_FUNDED: "bad",
    Funding.REVOKED: "bad",
}
FUNDING_ADVICE = {
    Funding.PENDING: gettext_lazy("Do not send paid messages until Kapso has confirmed it."),
    Funding.UNKNOWN: gettext_lazy(
        "Kapso cannot tell. Look at the account in Kapso before you send paid messages."
    ),
    Funding.NOT_FUNDED: gettext_lazy("Paid messages fail until it does. Ask Kapso's support."),
    Funding.REVOKED: gettext_lazy("Paid messages fail until it does again. Ask Kapso's support."),
}


def funding_badge(connection: Connection) -> SafeString | str:
    """Return whether Kapso pays Meta, and what to do if it does not; "-" if it is not meant to."""
    if not connection.funding_status:
        return badge("busy", _("Not checked yet")) if connection.is_partner_managed else EMPTY
    funding = Funding(connection.funding_status)
    state = badge(FUNDING_BADGES[funding], connection.get_funding_status_display())
    return format_html("{} {}", state, FUNDING_ADVICE.get(funding, ""))


HIDDEN_URL = gettext_lazy("hidden (needs the permission to create setup links)")


def copy_field(url: str, label: object) -> SafeString:
    """Return a read-only field with ``url`` and a button that copies it."""
    return format_html(
        '<span class="kapso-copy">'
        '<input type="text" class="vURLField" readonly value="{}" aria-label="{}">'
        '<button type="button" class="button" data-kapso-copy data-copied="{}" hidden>{}</button>'
        '<span class="kapso-copied" role="status"></span>'
        "</span>",
        url,
        label,
        _("Copied"),
        _("Copy"),
    )


def without_email_text(count: int) -> str:
    """Return what to do for ``count`` customers who have no e-mail address."""
    return ngettext(
        "%(count)s customer has no e-mail address: copy the link and send it yourself.",
        "%(count)s customers have no e-mail address: copy their links and send them yourself.",
        count,
    ) % {"count": count}
