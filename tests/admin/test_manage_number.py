"""Reconnecting, checking and disconnecting a customer's number."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from kapso_connect.admin.display import health_details
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding import connect_urls

from ..clock import FakeClock
from ..faulty_server import FaultyServer, answer
from .world import (
    NUMBER,
    World,
    kinds,
    messages,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_reconnecting_creates_a_link_for_this_number_only(world: World) -> None:
    address = connect_urls.connect_url(world.customer)
    world.post("reconnect")
    link = Customer.objects.get().latest_setup_link
    assert link != world.link
    assert link.options["reconnect_phone_number"] == NUMBER
    assert link.created_by == world.user
    world.customer.refresh_from_db()
    assert connect_urls.connect_url(world.customer) == address


def test_reconnecting_ignores_the_sites_default_connection_types(
    world: World, configure: Any
) -> None:
    configure(SETUP_LINK_DEFAULTS={"allowed_connection_types": ["dedicated"]})
    response = world.post("reconnect")
    assert "was created" in messages(response)
    assert "allowed_connection_types" not in Customer.objects.get().latest_setup_link.options


def test_number_without_its_phone_number_cannot_be_reconnected(world: World) -> None:
    Connection.objects.update(display_phone_number="")
    response = world.client.post(world.url("reconnect"), {"version": ""})
    assert "Kapso has not reported the phone number" in messages(response)
    assert SetupLink.objects.count() == 1


@pytest.mark.parametrize("display", ["12", "+1 (abc)", "9" * 60])
def test_invalid_phone_number_is_refused_with_a_message(world: World, display: str) -> None:
    Connection.objects.update(display_phone_number=display)
    response = world.post("reconnect")
    assert "Must be a phone number" in messages(response)
    assert SetupLink.objects.count() == 1


def test_unhealthy_number_gets_a_message_with_the_reason(world: World) -> None:
    world.sandbox.patch_number(world.number.phone_number_id, payment_problem=True)
    text = messages(world.post("health"))
    assert text.startswith("+1 415-555-0123: Unhealthy. The WhatsApp Business Account: There is an")
    assert "payment method (141006). Meta advises: Add a valid payment method" in text
    assert "This can only be solved at Meta: the owner" in text
    world.number.refresh_from_db()
    assert world.number.health_status == "unhealthy"
    assert "can only be solved at Meta" in world.panel()


def test_disconnected_number_is_said_to_be(world: World) -> None:
    world.sandbox.patch_number(world.number.phone_number_id, status="DISCONNECTED")
    Connection.objects.update(health_problems=[{"check": "phone_number_connection"}])
    world.number.refresh_from_db()
    assert health_details(world.number) == ["The number's connection: no reason was given."]
    Connection.objects.update(
        health_problems=[
            {"check": "webhook_verified", "description": "failed"},
            {"check": "messaging_health", "entity": "BUSINESS", "description": "BLOCKED"},
            {"check": "new_check", "entity": "NEW", "description": "Odd.", "code": "7"},
        ]
    )
    world.number.refresh_from_db()
    assert health_details(world.number) == [
        "Kapso's webhook at Meta: no reason was given.",
        "The business at Meta: Meta does not let it send messages.",
        "NEW: Odd (7).",
    ]


def test_held_result_is_shown_instead_of_asking_again(world: World) -> None:
    world.sandbox.patch_number(world.number.phone_number_id, access_error="Token expired")
    for count in (1, 2):
        text = messages(world.post("health"))
        assert "Kapso's access to the number: Token expired." in text
        assert "Kapso will check this number again" in text
        assert "Kapso will check this number again" in world.panel()
        assert "kapso-next" not in world.panel()  # pressing it would change nothing
        assert count * world.request_count("GET", "/health") == count
        Connection.objects.update(health_checked_at=timezone.now() - timedelta(minutes=1))
    assert kinds() == ["health_checked"]
    assert LogEntry.objects.count() == 2  # of the customer and of the bakery, once


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("", "Not checked yet"),
        ("funded", "Yes"),
        ("pending", "until Kapso has confirmed it"),
        ("unknown", "Look at the account in Kapso"),
        ("not_funded", "Paid messages fail until it does."),
        ("revoked", "Paid messages fail until it does again."),
    ],
)
def test_staff_see_whether_kapso_pays_meta(world: World, status: str, words: str) -> None:
    assert "Kapso pays Meta" not in world.panel()
    SetupLink.objects.update(options={"meta_billing_mode": "partner_managed"})
    Connection.objects.update(setup_link=world.link, funding_status=status)
    assert words in world.panel()


def test_a_double_click_asks_about_health_once(world: World) -> None:
    for _ in range(2):
        assert "Healthy" in messages(world.post("health"))
    assert world.request_count("GET", "/health") == 1
    assert kinds() == ["health_checked"]


def test_health_is_asked_for_again_after_clocks_were_put_back(
    world: World, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    clock = FakeClock(monkeypatch, datetime(2026, 10, 25, 0, 55, tzinfo=zones.utc))
    Connection.objects.update(health_status="degraded", health_checked_at=timezone.now())
    clock.advance(10 * 60)
    assert "Healthy" in messages(world.post("health"))


def test_number_that_kapso_no_longer_has_is_disconnected(world: World) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    Connection.objects.update(phone_number_id="404", connected_at=long_ago)
    response = world.post("health")
    assert "is now marked as disconnected" in messages(response)
    assert kinds() == ["disconnected"]


def test_refused_health_check_says_why_and_when_to_try_again(world: World, configure: Any) -> None:
    with FaultyServer() as kapso:
        body = {"data": world.sandbox.state()["phone_numbers"][0]}
        reason = {"error": "Too many requests", "message": "Health limit of the project: 60/min"}
        kapso.will(answer(200, body), answer(429, reason, {"Retry-After": "40"}))
        configure(API_BASE_URL=kapso.url, API_BUDGET=5)
        text = messages(world.post("health"))
    assert "Health limit of the project: 60/min" in text
    assert "Try again in 40 seconds" in text


@pytest.mark.parametrize("action", ["health", "disconnect"])
def test_number_that_moved_at_kapso_is_not_touched(world: World, action: str) -> None:
    new = world.sandbox.add_number(external_customer_id="new")["customer_id"]
    world.sandbox.patch_number(world.number.phone_number_id, customer_id=new)
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    response = world.post(action)
    assert "not this customer's any more" in messages(response)
    assert world.request_count("DELETE", "phone_numbers") == 0
    assert world.request_count("GET", "/health") == 0
    world.number.refresh_from_db()
    assert world.number.customer.kapso_id == new
    assert sorted(kinds()) == ["connected", "disconnected"]


def test_disconnecting_asks_for_confirmation_first(world: World) -> None:
    page = world.client.get(world.url("disconnect")).content.decode()
    assert "What will happen" in page
    assert "+1 415-555-0123" in page
    assert kinds() == []
    response = world.post("disconnect")
    assert messages(response) == "+1 415-555-0123 was disconnected and removed from Kapso."
    assert world.request_count("DELETE", "phone_numbers") == 1
    world.number.refresh_from_db()
    assert (world.number.status, world.number.disconnect_reason) == ("disconnected", "staff")


@pytest.mark.parametrize("method", ["get", "post"])
def test_disconnected_number_is_not_disconnected_again(world: World, method: str) -> None:
    Connection.objects.update(status="disconnected")
    response = getattr(world.client, method)(world.url("disconnect"))
    assert messages(response) == "This number is no longer connected."
    assert world.request_count("DELETE", "phone_numbers") == 0


def test_number_that_reconnects_while_it_is_disconnected_gets_a_message(world: World) -> None:
    # As if it had been connected after Kapso was asked to remove it.
    Connection.objects.update(connected_at=timezone.now() + timedelta(minutes=1))
    response = world.post("disconnect")
    assert "has just changed" in messages(response)
    world.number.refresh_from_db()
    assert world.number.is_connected
