"""Meta's decisions about a number's WhatsApp account, in words for staff."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..kapso.types import parse_moment
from ..models import AccountStatus, Connection, TimelineEvent
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import as_instant, time_since, utc_now
from .display import format_datetime

BUSINESS_SUPPORT_URL = "https://business.facebook.com/business-support-home/"
"""Where Meta shows the owner of an account why it was restricted, and takes requests for review."""

APPEAL_PERIOD = timedelta(days=90)
"""How long a violation is shown of an account that Meta has not restricted: as long as its owner
can appeal against it."""

MAX_DECISIONS = 100
"""The most decisions, the newest first, that a page reads."""

RESTRICTIONS = {
    "RESTRICTED_ADD_PHONE_NUMBER_ACTION": gettext_lazy("No number can be added to the account."),
    "RESTRICTED_BIZ_INITIATED_AND_USER_INITIATED_CALLING": gettext_lazy(
        "The number can neither call people nor be called."
    ),
    "RESTRICTED_BIZ_INITIATED_MESSAGING": gettext_lazy("The number cannot start conversations."),
    "RESTRICTED_BUSINESS_INITIATED_CALLING": gettext_lazy("The number cannot call people."),
    "RESTRICTED_CUSTOMER_INITIATED_MESSAGING": gettext_lazy(
        "The number cannot reply to people who write to it."
    ),
    "RESTRICTED_DIRECT_SEND_UTILITY_TEMPLATES": gettext_lazy(
        "The number cannot send utility templates with Direct Send."
    ),
    "RESTRICTED_USER_INITIATED_CALLING": gettext_lazy("Nobody can call the number."),
    "RESTRICTED_USER_INITIATED_CALLING_CALL_BUTTON_HIDDEN": gettext_lazy(
        "People do not see the button for calls, because too few of them were answered."
    ),
    "RESTRICTED_UTILITY_TEMPLATES": gettext_lazy("The account cannot create utility templates."),
}
"""Meta's types of restrictions. New ones are shown as they are."""

DECISIONS = {
    "disabled": gettext_lazy("account disabled"),
    "restricted": gettext_lazy("account restricted"),
    "reinstated": gettext_lazy("account reinstated"),
    "violation": gettext_lazy("violation of Meta's policies"),
}


def account_texts(numbers: Sequence[Connection]) -> dict[int, list[str]]:
    """Return what Meta decided about the account of each of ``numbers``, by primary key, in one
    query. Empty for an account that works without restrictions."""
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.ACCOUNT_UPDATED, connection__in=numbers
    ).order_by("-occurred_at", "-pk")
    decisions: dict[int | None, list[TimelineEvent]] = defaultdict(list)
    for event in events[:MAX_DECISIONS]:
        decisions[event.connection_id].append(event)
    return {number.pk: _account_texts(number, decisions[number.pk]) for number in numbers}


def _account_texts(number: Connection, decisions: Sequence[TimelineEvent]) -> list[str]:
    texts: list[str] = []
    if number.is_connected and number.account_status == AccountStatus.DISABLED:
        texts.append(_("Meta has disabled this number's WhatsApp account."))
    elif number.is_connected and number.is_restricted:
        texts.append(_("Meta has restricted this number's WhatsApp account."))
        texts += map(restriction_text, number.restrictions)
    for event in decisions:
        if event.data.get("event") == "reinstated":
            break
        is_recent = time_since(event.occurred_at) < APPEAL_PERIOD
        if number.is_connected and (number.is_restricted or is_recent):
            shown = violation_texts(event.data)
            if shown:
                return [*texts, *shown]
    return texts


def decision_texts(data: Mapping[str, Any]) -> list[str]:
    """Return what the ``data`` of an event of the timeline says about a decision of Meta's."""
    name = str(data.get("event") or "")
    restrictions = data.get("restrictions")
    return [
        str(DECISIONS.get(name, name)),
        *map(restriction_text, restrictions if isinstance(restrictions, list) else []),
        *violation_texts(data),
        _text(data.get("ban"), "date_label"),
    ]


def restriction_text(restriction: Any) -> str:
    """Return one of a connection's ``restrictions`` as sentences: what it forbids, until when."""
    kind = _text(restriction, "type") or _text(restriction, "restriction_type")
    sentences = [str(RESTRICTIONS.get(kind, kind)) or _("Meta does not say what is restricted.")]
    try:
        moment = parse_moment(_text(restriction, "expires_at"))
    except ValueError:
        return sentences[0]
    when = {"when": format_datetime(moment)}
    if as_instant(moment) > utc_now():
        sentences.append(_("Ends: %(when)s") % when)
    else:
        sentences.append(_("Was to end: %(when)s") % when)
    return " ".join(sentences)


def violation_texts(data: Mapping[str, Any]) -> list[str]:
    """Return the violation in the ``data`` of an event, and the remedy that Meta names."""
    violation = data.get("violation")
    texts = []
    if kind := _text(violation, "type"):
        texts.append(_("Meta reports a violation of its policies: %(type)s.") % {"type": kind})
    if remedy := _text(violation, "remediation"):
        texts.append(_("Meta advises: %(solution)s") % {"solution": remedy})
    return texts


def _text(value: Any, name: str) -> str:
    """Return a text in a part of Kapso's, of which any may be missing or of another type."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else ""
