"""The story as people see it: staff in the admin, the customer on Kapso's page and on ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.signals import whatsapp_connected

from .support import PHONE, Visitor, path_of

NUMBER = "+1 415-555-0123"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def customer() -> Customer:
    return Customer.objects.create(name="Ada's Bakery", email="ada@example.com")


@pytest.fixture
def link(site: str, customer: Customer) -> SetupLink:
    return onboarding.create_setup_link(customer)


@pytest.fixture
def signals_sent() -> Iterator[list[dict[str, Any]]]:
    """The arguments that whatsapp_connected was sent with."""
    received: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        received.append(arguments)

    whatsapp_connected.connect(receive)
    yield received
    whatsapp_connected.disconnect(receive)


def connect(page: Page, url: str) -> None:
    """Play the customer on the hosted page."""
    page.goto(url)
    page.get_by_label("Phone number").fill(NUMBER)
    page.get_by_role("button", name="Connect", exact=True).click()


def test_staff_invites_and_the_customer_connects(
    site: str, visitor: Visitor, customer: Customer, signals_sent: list[dict[str, Any]]
) -> None:
    User.objects.create_superuser("staff", password="correct horse")
    staff = visitor.window()
    staff.goto(f"{site}/admin/kapso_connect/customer/")
    staff.get_by_label("Username").fill("staff")
    staff.get_by_label("Password").fill("correct horse")
    staff.get_by_role("button", name="Log in").click()
    staff.get_by_role("row", name="Ada's Bakery").get_by_role("checkbox").check()
    staff.get_by_label("Action:").select_option("Create WhatsApp setup link")
    visitor.look(staff, "1-customers")
    staff.get_by_role("button", name="Run").or_(staff.get_by_role("button", name="Go")).click()
    expect(staff.get_by_role("heading", name="Create WhatsApp setup link").first).to_be_visible()
    visitor.look(staff, "2-options")
    staff.locator("#content form input[type=submit], #content form button[type=submit]").click()
    expect(staff.get_by_text("Finished: every customer has a link.")).to_be_visible()
    link = SetupLink.objects.get()
    address = connect_url(link.customer)
    expect(staff.get_by_label("Setup link for Ada's Bakery")).to_have_value(address)
    visitor.look(staff, "3-setup-link")
    staff.context.grant_permissions(["clipboard-read", "clipboard-write"])
    staff.get_by_role("button", name="Copy").click()
    expect(staff.get_by_text("Copied")).to_be_visible()
    assert staff.evaluate("navigator.clipboard.readText()") == address

    page = visitor.window(PHONE)
    page.goto(link.url)
    visitor.look(page, "4-hosted-page")
    connect(page, link.url)
    expect(page.get_by_role("heading")).to_have_text("WhatsApp is connected")
    expect(page.get_by_text(NUMBER)).to_be_visible()
    assert path_of(page) == "/whatsapp/success/"
    visitor.look(page, "5-success")

    connection = Connection.objects.get()
    assert (connection.customer, connection.is_connected) == (customer, True)
    assert [(received["customer"], received["source"]) for received in signals_sent] == [
        (customer, "webhook")
    ]
    staff.goto(f"{site}/admin/kapso_connect/customer/{customer.pk}/change/")
    expect(staff.get_by_text(NUMBER).first).to_be_visible()
    visitor.look(staff, "6-customer")


def test_a_link_is_used_once(visitor: Visitor, link: SetupLink) -> None:
    page = visitor.window(PHONE)
    connect(page, link.url)
    page.goto(link.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("WhatsApp is connected")
    kinds = TimelineEvent.objects.values_list("kind", flat=True)
    assert sorted(kinds) == ["connected", "setup_link_created"]
