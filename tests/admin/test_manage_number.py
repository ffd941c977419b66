"""Reconnecting, checking and disconnecting a customer's number."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from kapso_connect.admin.display import health_details
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding import connect_urls
from kapso_connect.onboarding.customers import touch_if_unchanged

from ..clock import FakeClock
from ..factories import store_statuses
from ..faulty_server import FaultyServer, answer
from ..sites.host_site.models import Bakery
from .world import (
    NUMBER,
    PAGE_PERMISSIONS,
    VIEWS,
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


def test_reconnecting_and_emailing_is_one_step(world: World) -> None:
    page = world.client.get(world.url("reconnect")).content.decode()
    button = 'class="button default" name="do" value="email">Create the link and e-mail it to '
    assert f"{button}ada@example.com</button>" in page
    response = world.post("reconnect", {"do": "email"})
    assert response["Location"] == reverse("admin:host_site_bakery_change", args=[world.bakery.pk])
    assert messages(response) == (
        "A setup link to reconnect +1 415-555-0123 was created, and the personal link was e-mailed "
        "to ada@example.com."
    )
    link = Customer.objects.get().latest_setup_link
    assert link.options["reconnect_phone_number"] == NUMBER
    (message,) = mail.outbox
    assert message.to == ["ada@example.com"]
    assert connect_urls.connect_url(world.customer) in message.body
    assert "+1 415-555-0123" in message.body
    event = link.events.get(kind="setup_link_sent")
    assert (event.actor, event.data["to"]) == (world.user, "ada@example.com")
    assert LogEntry.objects.filter(change_message__contains="reconnect").count() == 2
    assert LogEntry.objects.filter(change_message__contains="E-mailed").count() == 2


def test_reconnection_is_emailed_to_the_current_address(world: World) -> None:
    Bakery.objects.update(contact="new@example.com")
    assert "e-mail it to new@example.com" in world.client.get(world.url("reconnect")).text
    world.post("reconnect", {"do": "email"})
    assert mail.outbox[0].to == ["new@example.com"]


@pytest.mark.parametrize("missing", ["address", "permission"])
def test_reconnection_without_address_or_permission_is_not_emailed(
    world: World, missing: str
) -> None:
    if missing == "address":
        Bakery.objects.update(contact="")
        Customer.objects.update(email="")
    else:
        world.user.is_superuser = False
        world.user.save()
        world.allow(*VIEWS, "reconnect_number")
    assert 'name="do"' not in world.client.get(world.url("reconnect")).text
    response = world.post("reconnect", {"do": "email"} if missing == "permission" else {})
    assert "was created. Send the customer the personal link." in messages(response)
    assert mail.outbox == []


def test_reconnection_that_cannot_be_emailed_is_kept_and_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)
    response = world.post("reconnect", {"do": "email"})
    assert "was created, but not e-mailed. The mail server does not accept" in messages(response)
    assert response["Location"] == world.url("email")
    monkeypatch.undo()
    assert "was e-mailed to ada@example.com." in messages(world.post("email"))
    assert SetupLink.objects.count() == 2


def test_double_click_reconnects_and_emails_once(world: World) -> None:
    form = {**world.form_version("reconnect"), "do": "email"}
    for _ in range(2):
        world.client.post(world.url("reconnect"), form)
    assert (len(mail.outbox), SetupLink.objects.count()) == (1, 2)


def wait_for_confirmation(world: World, waited: timedelta) -> None:
    """Let the customer have come back with a number that is not confirmed yet."""
    Connection.objects.all().delete()
    world.sandbox.complete(world.link.url, phone_number="+4930123456")
    remote = world.sandbox.state()["phone_numbers"][-1]
    SetupLink.objects.update(
        unconfirmed_phone_number_id=remote["phone_number_id"],
        unconfirmed_since=timezone.now() - waited,
        unconfirmed_by_visitor=True,
    )
    store_statuses(world.customer)


def test_kapso_is_asked_at_once_about_a_number_to_be_confirmed(world: World) -> None:
    wait_for_confirmation(world, timedelta(minutes=5))
    assert world.confirm_url() in world.panel()
    response = world.client.post(world.confirm_url())
    assert messages(response) == ("Kapso has confirmed the number: +49 30 123456 is connected.")
    assert response["Location"] == reverse("admin:host_site_bakery_change", args=[world.bakery.pk])
    assert Customer.objects.get().status == "connected"
    assert LogEntry.objects.filter(change_message__contains="Asked Kapso").count() == 2
    assert world.confirm_url() not in world.panel()
    again = world.client.post(world.confirm_url())
    assert "No number of this customer is waiting" in messages(again)
    assert LogEntry.objects.filter(change_message__contains="Asked Kapso").count() == 2


def test_number_that_kapso_does_not_know_is_forgotten_with_advice(world: World) -> None:
    wait_for_confirmation(world, timedelta(hours=1))
    SetupLink.objects.update(unconfirmed_phone_number_id="404")
    response = world.client.post(world.confirm_url())
    assert messages(response) == (
        "Kapso did not confirm the number: Kapso has no such number. Let the customer open the "
        "personal link and connect it again."
    )
    assert Customer.objects.get().status != "confirming"


def test_while_kapso_is_away_the_number_is_still_waited_for(world: World) -> None:
    wait_for_confirmation(world, timedelta(minutes=5))
    world.sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    response = world.client.post(world.confirm_url())
    assert "Kapso cannot confirm the number yet, or did not answer." in messages(response)
    assert Customer.objects.get().status == "confirming"


def test_two_clicks_at_the_same_moment_ask_kapso_once(world: World) -> None:
    wait_for_confirmation(world, timedelta(minutes=5))
    asked, clicks = world.request_count("GET", "phone_numbers"), ["the other one"]

    def other_click(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if clicks and "unconfirmed_since" in sql:  # both have read the customer
            clicks.pop()
            assert touch_if_unchanged(Customer.objects.get())
        return result

    with connection.execute_wrapper(other_click):
        response = world.client.post(world.confirm_url())
    assert messages(response) == "Kapso is being asked already. Look again in a moment."
    assert world.request_count("GET", "phone_numbers") == asked


def test_asking_kapso_needs_the_permission_to_check_health(world: World) -> None:
    wait_for_confirmation(world, timedelta(minutes=5))
    world.user.is_superuser = False
    world.user.save()
    every = {name for names in PAGE_PERMISSIONS.values() for name in names}
    world.allow(*VIEWS, *(every - {"check_health"}))
    assert world.confirm_url() not in world.panel()
    assert world.client.post(world.confirm_url()).status_code == 403
    world.allow(*VIEWS, "check_health")
    assert world.confirm_url() in world.panel()
    assert world.client.get(world.confirm_url()).status_code == 405
    assert world.client.post(world.confirm_url()).status_code == 302
    assert Customer.objects.get().status == "connected"


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
