"""The events of the timeline, in words."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import strip_tags

from kapso_connect.admin.timeline_events import event_facts
from kapso_connect.kapso.error_codes import SETUP_ERRORS, UNKNOWN_ERROR
from kapso_connect.kapso.types import ConnectionType
from kapso_connect.models import TimelineEvent

from ..factories import make_customer

pytestmark = pytest.mark.django_db

LIMIT = SETUP_ERRORS["waba_limit_reached"]

FACTS: list[tuple[str, Any, dict[str, str]]] = [
    (
        "setup_link_sent",
        {"channel": "email", "to": "ada@example.com", "message": "reminder"},
        {"How": "by e-mail", "E-mail": "as a reminder", "To": "ada@example.com"},
    ),
    (
        "setup_failed",
        {"error_code": "waba_limit_reached"},
        {
            "Error": f"{LIMIT.title}",
            "What the customer saw": f"{LIMIT.cause} {LIMIT.advice}",
        },
    ),
    (
        "setup_failed",
        {"error_code": "meteor"},
        {
            "Error": f"{UNKNOWN_ERROR.title} (meteor)",
            "What the customer saw": f"{UNKNOWN_ERROR.cause} {UNKNOWN_ERROR.advice}",
        },
    ),
    ("setup_link_revoked", {"reason": "replaced"}, {"Reason": "replaced by a new one"}),
    (
        "disconnected",
        {"reason": "partner_removed", "initiated_by": "customer"},
        {"Reason": "the customer withdrew Kapso's access", "By": "customer"},
    ),
    (
        "health_checked",
        {"status": "unhealthy", "error": "Payment failed."},
        {"Health": "Unhealthy", "What was found": "Payment failed."},
    ),
    (
        "account_updated",
        {
            "event": "violation",
            "business_account_id": "100",
            "violation": {"type": "SPAM", "remediation": "Stop it."},
        },
        {
            "Meta's decision": "violation of Meta's policies · Meta reports a violation of its "
            "policies: SPAM. · Meta advises: Stop it.",
            "Business account id": "100",
        },
    ),
    (
        "setup_link_extended",
        {"expires_at": "2026-11-30T12:00:00Z"},
        {"Works until": "Nov. 30, 2026, noon"},
    ),
    (
        "details_received",
        {"display_phone_number": "+4930123456", "connection_type": "dedicated"},
        {"Phone number": "+49 30 123456", "Connection type": str(ConnectionType.DEDICATED.label)},
    ),
    (
        "number_webhook_created",
        {"url": "https://site.example/messages/", "kind": "kapso", "events": ["x"]},
        {"Messages are delivered to": "https://site.example/messages/"},
    ),
    (
        "number_webhook_updated",
        {"url": "https://site.example/messages/", "changed": ["active", "secret"]},
        {"Corrected": "turned on again, secret"},
    ),
    # What cannot be read is in the technical details.
    ("setup_link_sent", {"channel": ["no", "text"], "error_code": {"no": "text"}}, {}),
    ("webhook_received", ["not", "a", "dict"], {}),
]


@pytest.mark.parametrize(("kind", "data", "facts"), FACTS)
def test_event_page_says_the_data_in_words(
    admin_client: Client, settings: Any, kind: str, data: Any, facts: dict[str, str]
) -> None:
    settings.TIME_ZONE = "UTC"
    event = TimelineEvent.objects.create(
        kind=kind, source="manual", customer=make_customer(), data=data
    )
    shown = {str(name): str(value) for name, value in event_facts(event)}
    assert shown.items() >= facts.items()
    if not facts:
        assert shown == {}
    url = reverse("admin:kapso_connect_timelineevent_change", args=[event.pk])
    page = admin_client.get(url).text
    listed = re.findall("<dt>([^<]+)</dt><dd><bdi>([^<]+)</bdi></dd>", page)
    assert [name for name, _ in listed] == [name.replace("'", "&#x27;") for name in shown]
    folded = page[page.index("Technical details") :]
    assert strip_tags(folded.partition("</pre>")[0]).count("{") == str(data).count("{")


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("health_checked", {"status": "unhealthy"}, "Health checked · Unhealthy"),
        (
            "number_webhook_created",
            {"url": "https://site.example/messages/"},
            "Message webhook registered · https://site.example/messages/",
        ),
        (
            "number_webhook_updated",
            {"changed": ["events", "payload_version"]},
            "Message webhook repaired · events, version",
        ),
        ("number_webhook_deleted", {}, "Message webhook removed"),
        ("account_updated", {"event": "disabled"}, "account disabled"),
        ("account_updated", {"event": "restricted"}, "account restricted"),
        ("account_updated", {"event": "reinstated"}, "account reinstated"),
        ("account_updated", {"event": "violation"}, "violation of Meta's policies"),
        ("account_updated", {"event": "something_new"}, "something_new"),
    ],
)
def test_list_of_events_has_no_codes(
    admin_client: Client, kind: str, data: dict[str, str], words: str
) -> None:
    TimelineEvent.objects.create(kind=kind, source="manual", customer=make_customer(), data=data)
    page = admin_client.get(reverse("admin:kapso_connect_timelineevent_changelist")).text
    assert words in " ".join(unescape(strip_tags(page)).split())
