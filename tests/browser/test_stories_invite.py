"""Stories of staff who invite customers, with the clicks that they take."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from playwright.sync_api import Page, expect

from kapso_connect.models import Customer, SetupLink
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from .clicks import Clicks
from .support import Visitor, assert_accessible

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/kapso_connect/customer/"
WIDE = {"width": 1440, "height": 900}
FINISHED = "Finished: every customer has a link."


@pytest.fixture
def page(site: str, sandbox: Sandbox, visitor: Visitor) -> Page:
    return open_window(site, visitor)


def open_window(site: str, visitor: Visitor, **options: Any) -> Page:
    """Open the list of customers as a member of staff."""
    client = Client()
    client.force_login(User.objects.create_superuser("staff"))
    page = visitor.window(WIDE, **options)
    value = client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": value, "url": site}])
    page.goto(site + LIST)
    return page


def sol() -> Customer:
    return make_customer(name="Sol", kapso_id=None, email="sol@example.com")


def mixed() -> None:
    """Five customers, of whom one is connected, and another one has a link that works."""
    rows = [make_customer(name=f"Customer {n}", kapso_id=None) for n in range(5)]
    Customer.objects.filter(pk__in=[row.pk for row in rows[:4]]).update(email="c@example.com")
    make_connection(rows[0])
    make_link(rows[1])


def choose_all(page: Page) -> None:
    for row in page.locator("input.action-select").all():
        row.check()
    page.get_by_label("Action:").select_option(label="Create WhatsApp setup link")
    page.locator("#changelist-form [name=index]").click()
    expect(page.get_by_role("heading", name="For 5 customers")).to_be_visible()


def assert_emailed() -> None:
    (message,) = mail.outbox
    assert message.to == ["sol@example.com"]
    assert SetupLink.objects.count() == 1


def test_a_customer_in_the_list_is_invited_and_emailed_in_4_clicks(
    site: str, page: Page, visitor: Visitor
) -> None:
    sol()
    clicks = Clicks(page)
    page.goto(site + LIST)
    page.locator("tr", has_text="Sol").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(label="Create WhatsApp setup link")
    page.locator("#changelist-form [name=index]").click()
    expect(page.get_by_label("E-mail to sol@example.com")).to_be_checked()
    expect(page.get_by_label("The customer chooses")).to_be_hidden()
    visitor.look(page, "invite-story-one")
    page.get_by_role("button", name="Create the link and e-mail it").click()
    expect(page.get_by_text("1 e-mailed")).to_be_visible()
    assert clicks.count <= 4
    assert_emailed()


def test_a_customer_is_invited_and_emailed_from_the_customers_page_in_2_clicks(
    site: str, page: Page
) -> None:
    customer = sol()
    clicks = Clicks(page)
    page.goto(f"{site}{LIST}{customer.pk}/change/")
    page.get_by_role("button", name="Create WhatsApp setup link").click()
    page.get_by_role("button", name="Create the link and e-mail it").click()
    expect(page.get_by_text("1 e-mailed")).to_be_visible()
    assert clicks.count == 2
    assert_emailed()


def test_numbers_follow_who_is_left_out_and_the_delivery(
    site: str, page: Page, visitor: Visitor
) -> None:
    mixed()
    page.reload()
    choose_all(page)
    expect(page.get_by_text("left out", exact=True).locator("visible=true")).to_have_count(2)
    visitor.look(page, "invite-story-mixed")
    assert visitor.complaints == []
    assert_accessible(page)
    visitor.complaints.clear()  # axe-core itself tries inline styles
    button = page.locator(".submit-row input[type=submit]")
    expect(button).to_have_value("Create 3 links and e-mail 2 of them")
    page.get_by_label("Leave out the 1 customer who is connected").uncheck()
    expect(button).to_have_value("Create 4 links and e-mail 3 of them")
    expect(page.get_by_text("left out", exact=True).locator("visible=true")).to_have_count(1)
    expect(page.get_by_label("E-mail to the 3 customers who have an address")).to_be_checked()
    page.get_by_label("Copy it yourself").check()
    expect(button).to_have_value("Create 4 links")
    expect(page.get_by_text("has no e-mail address")).to_be_hidden()
    button.click()
    expect(page.get_by_text("1 customer was left out.")).to_be_visible()
    expect(page.get_by_text(FINISHED)).to_be_visible()
    assert mail.outbox == []


def test_without_scripts_a_button_updates_the_numbers(
    site: str, sandbox: Sandbox, visitor: Visitor
) -> None:
    page = open_window(site, visitor, java_script_enabled=False)
    mixed()
    page.reload()
    choose_all(page)
    page.get_by_label("Leave out the 1 customer who is connected").uncheck()
    page.get_by_role("button", name="Update the numbers").click()
    page.get_by_role("button", name="Create 4 links and e-mail 3 of them").click()
    expect(page.get_by_text("1 customer was left out.")).to_be_visible()
    expect(page.get_by_text("3 e-mailed")).to_be_visible()
    assert len(mail.outbox) == 3


def test_the_second_member_of_staff_is_told_and_may_go_on(
    site: str, page: Page, visitor: Visitor
) -> None:
    customer = sol()
    page.goto(f"{site}{LIST}{customer.pk}/change/")
    page.get_by_role("button", name="Create WhatsApp setup link").click()
    button = page.get_by_role("button", name="Create the link and e-mail it")
    expect(button).to_be_visible()
    bea = Client()
    bea.force_login(User.objects.create_superuser("Bea"))
    response = bea.post(f"{LIST}whatsapp/{customer.pk}/invite/")
    bea.post(response["Location"], {"connection_types": "dedicated", "send_email": ""})
    button.click()
    expect(page.get_by_text("Somebody else was faster.")).to_be_visible()
    expect(page.get_by_text("Bea created a link for Sol 0 minutes ago.")).to_be_visible()
    visitor.look(page, "invite-story-second")
    assert visitor.complaints == []
    assert_accessible(page)
    visitor.complaints.clear()
    assert SetupLink.objects.count() == 1
    page.get_by_label("Create another link anyway.").check()
    button.click()
    expect(page.get_by_text("1 e-mailed")).to_be_visible()
    assert SetupLink.objects.count() == 2
