"""What the panel says: how far the customer is, what was sent, what the personal link does."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from kapso_connect.admin.display import format_datetime
from kapso_connect.kapso.error_codes import UNKNOWN_ERROR
from kapso_connect.models import Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import setup_links

from ..factories import make_connection, make_customer, make_link, store_statuses

pytestmark = pytest.mark.django_db

WAITING = timezone.now() - timedelta(minutes=1)
USED = {"status": "used", "setup_status": "completed"}


@pytest.fixture
def link() -> SetupLink:
    customer = make_customer(email="ada@example.com", connect_key="key")
    return make_link(customer, expires_at=timezone.now() + timedelta(days=9))


def panel_of(client: Client, customer: Customer) -> str:
    """The text of the panel."""
    url = reverse("admin:kapso_connect_customer_change", args=[customer.pk])
    page = client.get(url).text
    panel = page[page.index('class="module kapso-panel"') : page.index("</section>")]
    return " ".join(strip_tags(panel.replace("&#x27;", "'").replace("&quot;", '"')).split())


def next_step(client: Client, customer: Customer) -> str:
    url = reverse("admin:kapso_connect_customer_change", args=[customer.pk])
    name: str = client.get(url).context["kapso"]["next_action"]
    return name


@pytest.mark.parametrize(
    ("waited", "advice"),
    [
        (timedelta(minutes=1), "That usually takes less than a minute. You do not need to do"),
        (timedelta(minutes=3), "which is longer than usual. Each run of kapso_sync asks Kapso"),
    ],
)
def test_words_for_a_number_to_be_confirmed_fit_the_time(
    admin_client: Client, link: SetupLink, waited: timedelta, advice: str
) -> None:
    since = timezone.now() - waited
    SetupLink.objects.update(unconfirmed_since=since)
    store_statuses(link.customer)
    text = panel_of(admin_client, link.customer)
    assert advice in text
    is_long = waited > timedelta(minutes=2)
    assert (f"Waiting since {format_datetime(since)}" in text) == is_long
    assert next_step(admin_client, link.customer) == ("confirm" if is_long else "")


def test_number_of_an_older_link_is_waited_for_as_long(
    admin_client: Client, link: SetupLink
) -> None:
    since = timezone.now() - timedelta(minutes=10)
    make_link(link.customer, is_latest=False, unconfirmed_since=since)
    store_statuses(link.customer)
    text = panel_of(admin_client, link.customer)
    assert f"Waiting since {format_datetime(since)}" in text


def test_staff_see_what_a_customer_was_told_about_an_unknown_code(
    admin_client: Client, link: SetupLink
) -> None:
    setup_links.record_failure(link, "meta_on_strike")
    text = panel_of(admin_client, link.customer)
    assert "Connecting failed: WhatsApp could not be connected (meta_on_strike)" in text
    assert f"The customer saw: “{UNKNOWN_ERROR.cause} {UNKNOWN_ERROR.advice}”" in text


SENT: list[tuple[dict[str, Any], str]] = [
    (
        {"kind": "setup_link_sent", "data": {"channel": "email", "to": "ada@example.com"}},
        "E-mailed on {} to ada@example.com.",
    ),
    (
        {
            "kind": "setup_link_sent",
            "data": {"channel": "email", "to": "ada@example.com", "message": "reminder"},
        },
        "Reminded on {} by e-mail to ada@example.com.",
    ),
    (
        {"kind": "email_sent", "data": {"message": "failed", "to": "ada@example.com"}},
        "E-mailed about the failed attempt on {} to ada@example.com.",
    ),
    ({"kind": "setup_link_sent", "data": {"channel": "share"}}, "Shared as a text on {}."),
]


@pytest.mark.parametrize(("event", "text"), SENT)
@pytest.mark.parametrize("days", [2, 4])
def test_what_was_sent_is_said_and_not_asked_for_again_for_three_days(
    admin_client: Client, link: SetupLink, event: dict[str, Any], text: str, days: int
) -> None:
    assert next_step(admin_client, link.customer) == "email"
    sent_at = timezone.now() - timedelta(days=days)
    TimelineEvent.objects.create(
        customer=link.customer, setup_link=link, source="sync", occurred_at=sent_at, **event
    )
    # Neither says that the customer has got anything.
    for other in ({"channel": "copy"}, {"channel": "qr"}):
        TimelineEvent.objects.create(
            customer=link.customer, source="manual", kind="setup_link_sent", data=other
        )
    assert text.format(format_datetime(sent_at)) in panel_of(admin_client, link.customer)
    assert next_step(admin_client, link.customer) == ("" if days == 2 else "email")


def test_what_was_sent_before_the_number_was_connected_is_not_said(
    admin_client: Client, link: SetupLink
) -> None:
    customer = link.customer
    TimelineEvent.objects.create(
        customer=customer,
        source="manual",
        kind="setup_link_sent",
        data={"channel": "email", "to": "ada@example.com"},
        occurred_at=timezone.now() - timedelta(days=2),
    )
    number = make_connection(customer, display_phone_number="+4930123456", setup_link=link)
    assert "E-mailed on" not in panel_of(admin_client, customer)
    SetupLink.objects.update(**USED)
    number.status, number.disconnected_at = "disconnected", timezone.now() - timedelta(days=1)
    number.save()
    store_statuses(customer)
    assert "E-mailed on" not in panel_of(admin_client, customer).partition("Timeline")[0]
    assert next_step(admin_client, customer) == "reconnect"


@pytest.mark.parametrize(
    ("of_link", "of_number", "text"),
    [
        ({}, None, "it is then renewed automatically."),
        ({"unconfirmed_since": WAITING}, None, "and after a minute offers to start again."),
        ({"status": "expired"}, None, "The setup link has expired. A new one is created when"),
        ({"status": "used", "setup_status": "failed"}, None, "The setup link has been used up."),
        ({"status": "revoked"}, None, "The setup link was revoked in Kapso"),
        (USED, {}, "It shows the customer that the number is connected."),
        (USED, {"account_status": "disabled"}, "connect another number in place of this one."),
        (USED, {"status": "disconnected"}, "It lets the customer connect the number again"),
        (
            USED,
            {"status": "disconnected", "disconnect_reason": "offboarded"},
            "It says that the number is paused.",
        ),
    ],
)
def test_panel_says_what_the_personal_link_does(
    admin_client: Client,
    link: SetupLink,
    of_link: dict[str, Any],
    of_number: dict[str, Any] | None,
    text: str,
) -> None:
    SetupLink.objects.update(**of_link)
    if of_number is not None:
        since = {"disconnected_at": timezone.now()} if "status" in of_number else {}
        make_connection(link.customer, setup_link=link, **of_number, **since)
    store_statuses(link.customer)
    assert text in panel_of(admin_client, link.customer)


def test_reference_has_this_name_wherever_staff_look(admin_client: Client, link: SetupLink) -> None:
    assert f"Reference: {link.reference} " in panel_of(admin_client, link.customer)
    url = reverse("admin:kapso_connect_setuplink_change", args=[link.pk])
    page = strip_tags(admin_client.get(url).text)
    assert re.search(rf"Reference:\s+{link.reference}\s", page)


def test_panel_takes_as_many_queries_for_many_events(
    admin_client: Client, link: SetupLink, django_assert_max_num_queries: Any
) -> None:
    user = User.objects.create_user("grace")
    for _ in range(30):
        setup_links.record_sent(link, "email", actor=user, to="ada@example.com")
    url = reverse("admin:kapso_connect_customer_change", args=[link.customer.pk])
    with django_assert_max_num_queries(22):
        admin_client.get(url)
