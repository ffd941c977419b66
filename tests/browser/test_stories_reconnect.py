"""Staff let a customer connect a number again, in a real browser, and count their clicks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from kapso_connect import onboarding
from kapso_connect.models import Customer, SetupLink
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_user, store_statuses
from ..sites.host_site.models import Bakery
from .clicks import Clicks
from .staff_pages import StaffWorld
from .support import Visitor, assert_accessible

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bakery(site: str, sandbox: Sandbox, configure: Any) -> Bakery:
    """An invited bakery."""
    configure(SITE_NAME="Example CRM")
    bakery = Bakery.objects.create(title="Panadería Sol", contact="sol@example.com", locale="es")
    customer = Customer.objects.for_owner(bakery, name=bakery.title, email=bakery.contact)
    onboarding.create_setup_link(customer)
    return bakery


@pytest.fixture
def page(site: str, visitor: Visitor, bakery: Bakery) -> Page:
    """A window of a member of staff, at the page of the bakery."""
    page = visitor.window()
    staff = make_user("staff", "superuser")
    StaffWorld(bakery, Customer.objects.get(), None, staff).log_in(page, site)  # type: ignore[arg-type]
    return page


def change_page(site: str, bakery: Bakery) -> str:
    return site + reverse("admin:host_site_bakery_change", args=[bakery.pk])


def disconnect(sandbox: Sandbox) -> None:
    """Let the bakery have connected a number with its setup link, and lost it."""
    customer = Customer.objects.get()
    remote = sandbox.add_number(customer_id=customer.kapso_id, phone_number="+4930123456")
    SetupLink.objects.update(status="used", setup_status="completed")
    make_connection(
        customer,
        setup_link=customer.latest_setup_link,
        phone_number_id=remote["phone_number_id"],
        display_phone_number="+4930123456",
        status="disconnected",
        disconnect_reason="partner_removed",
        connected_at=timezone.now() - timedelta(days=2),
        disconnected_at=timezone.now() - timedelta(days=1),
    )


def test_reconnect_and_email_in_two_clicks(
    site: str, page: Page, visitor: Visitor, bakery: Bakery, sandbox: Sandbox
) -> None:
    disconnect(sandbox)
    clicks = Clicks(page)
    page.goto(change_page(site, bakery))
    page.get_by_role("link", name="Reconnect").click()
    button = page.get_by_role("button", name="Create the link and e-mail it to sol@example.com")
    expect(button).to_be_visible()
    assert_accessible(page)
    visitor.look(page, "story-reconnect")
    button.click()
    expect(page.locator(".messagelist")).to_contain_text("was e-mailed to sol@example.com")
    expect(page).to_have_url(change_page(site, bakery))
    assert clicks.count <= 2
    (message,) = mail.outbox
    assert message.to == ["sol@example.com"]
    assert connect_url(Customer.objects.get()) in message.body
    # Nobody is asked to send it again.
    expect(page.locator(".kapso-sent")).to_contain_text("to sol@example.com.")
    expect(page.locator(".kapso-next")).to_have_count(0)
    visitor.look(page, "story-reconnected")


def test_personal_link_of_a_disconnected_customer_is_emailed(
    site: str, page: Page, visitor: Visitor, bakery: Bakery, sandbox: Sandbox
) -> None:
    disconnect(sandbox)
    page.goto(change_page(site, bakery))
    expect(page.get_by_text("It lets the customer connect the number again")).to_be_visible()
    page.get_by_role("link", name="E-mail the personal link").click()
    page.get_by_role("button", name="Send the e-mail").click()
    expect(page.locator(".messagelist")).to_contain_text("was e-mailed to sol@example.com")
    expect(page).to_have_url(change_page(site, bakery))
    customer = visitor.window()
    customer.goto(connect_url(Customer.objects.get()))
    customer.get_by_role("button", name="Conectar WhatsApp").click()
    expect(customer.get_by_role("heading", name="Conecta tu número de WhatsApp")).to_be_visible()
    assert SetupLink.objects.count() == 2


def test_kapso_is_asked_about_a_number_that_is_not_confirmed(
    site: str, page: Page, visitor: Visitor, bakery: Bakery, sandbox: Sandbox
) -> None:
    sandbox.set_webhook(None)
    sandbox.complete(SetupLink.objects.get().url, phone_number="+4930123456")
    (remote,) = sandbox.state()["phone_numbers"]
    SetupLink.objects.update(
        unconfirmed_phone_number_id=remote["phone_number_id"],
        unconfirmed_since=timezone.now() - timedelta(minutes=5),
    )
    store_statuses(Customer.objects.get())
    clicks = Clicks(page)
    page.goto(change_page(site, bakery))
    expect(page.get_by_text("which is longer than usual")).to_be_visible()
    visitor.look(page, "story-not-confirmed")
    page.get_by_role("button", name="Ask Kapso now").click()
    expect(page.locator(".messagelist")).to_contain_text("+49 30 123456 is connected")
    assert clicks.count == 1
