"""How members of staff find a customer, and the numbers that need attention, in few clicks."""

from __future__ import annotations

import pytest
from django.test import Client
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from kapso_connect.models import Connection, Customer, Health
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery
from .clicks import Clicks
from .support import Visitor, assert_accessible, select_all

WIDE = {"width": 1440, "height": 900}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def page(site: str, visitor: Visitor, admin_client: Client) -> Page:
    page = visitor.window(WIDE)
    value = admin_client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": value, "url": site}])
    return page


@pytest.mark.parametrize("label", ["Customers", "Bakeries"])
def test_find_a_customer_by_reference(server: LiveServer, page: Page, label: str) -> None:
    for name in ("Ada's", "Bo's"):
        bakery = Bakery.objects.create(title=name)
        make_link(Customer.objects.for_owner(bakery, name=name))
    reference = make_link(Customer.objects.get(name="Bo's")).reference
    clicks = Clicks(page)
    page.goto(server.url + "/admin/")
    page.get_by_role("link", name=label, exact=True).first.click()
    page.locator("#searchbar").fill(f" {reference.upper()} ")
    page.locator("#searchbar").press("Enter")
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Bo's")
    assert clicks.count <= 2


def test_see_which_customers_need_attention_and_what_to_do(
    server: LiveServer, visitor: Visitor, page: Page
) -> None:
    make_connection(make_customer(name="Fine Ltd"), display_phone_number="+4930111111")
    number = make_connection(
        make_customer(name="Restricted Ltd"),
        display_phone_number="+52 1 55 1234 5678",
        account_status="restricted",
        restrictions=[{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING"}],
        name_status="DECLINED",
        health_status=Health.HEALTHY,
    )
    clicks = Clicks(page)
    page.goto(server.url + "/admin/")
    page.get_by_role("link", name="Customers", exact=True).first.click()
    page.get_by_role("link", name="For any reason").click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Account restricted")
    assert clicks.count <= 2
    # Two more badges and the number fit; the number does not break.
    visitor.look(page, "attention-customers")
    height = page.locator(".kapso-phone").first.evaluate("node => node.getClientRects().length")
    assert height == 1
    page.get_by_role("link", name="Restricted Ltd").click()
    panel = page.locator(".kapso-panel")
    expect(panel).to_contain_text("The number cannot start conversations.")
    expect(panel.get_by_role("link", name="Meta's Business Support Home")).to_be_visible()
    visitor.look(page, "attention-customer")
    page.goto(f"{server.url}/admin/kapso_connect/connection/{number.pk}/change/")
    expect(page.locator("#content")).to_contain_text("The number cannot start conversations.")
    visitor.look(page, "attention-connection")


def test_check_the_health_of_many(
    server: LiveServer, visitor: Visitor, page: Page, sandbox: Sandbox
) -> None:
    for place, name in enumerate(("Ada's", "Bo's", "Cy's")):
        customer = make_customer(name=name)
        remote = sandbox.add_number(
            external_customer_id=customer.external_customer_id, phone_number=f"+141555501{place:02}"
        )
        customer.kapso_id = remote["customer_id"]
        customer.save(update_fields=["kapso_id"])
        number = {name: remote[name] for name in ("phone_number_id", "display_phone_number")}
        make_connection(customer, **number)
    sandbox.patch_number(Connection.objects.all()[0].phone_number_id, payment_problem=True)
    page.goto(server.url + "/admin/kapso_connect/customer/")
    select_all(page)
    page.get_by_label("Action:").select_option(label="Check health")
    page.get_by_role("button", name="Go").or_(page.get_by_role("button", name="Run")).click()
    expect(page.get_by_role("heading", name="Check health")).to_be_visible()
    visitor.look(page, "check-health")
    page.get_by_role("button", name="Check health").click()
    expect(page.get_by_role("status")).to_have_text("Finished: 1 number needs attention.")
    expect(page.locator(".kapso-results > li")).to_have_count(3)
    visitor.look(page, "checked-health")
    assert visitor.complaints == []
    assert_accessible(page)
    visitor.complaints.clear()  # axe-core itself tries inline styles
