"""The REST API's own pages, for staff who look at it in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Page, expect

from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.testing import Sandbox

from ..api.support import API
from ..factories import make_connection, make_customer, make_link
from .support import Visitor

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = {
    "": "WhatsApp",
    "customers/": "Customers",
    "customers/?status=invited&page_size=1": "Customers",
    "customers/77/": "Customer",
    "customers/77/status/": "Onboarding status",
    "setup-links/": "Setup links",
    "setup-links/77/": "Setup link",
    "setup-links/77/revoke/": "Revoke a setup link",
    "connections/": "Connections",
    "connections/77/": "Connection",
    "connections/77/refresh/": "Refresh a connection",
    "connections/77/disconnect/": "Disconnect a number",
    "events/": "Timeline",
    "customers/?status=nowhere": "Customers",
    "customers/99/": "Customer",
}
FRAMEWORKS_OWN = [
    ".breadcrumb",  # the last link is grey on grey
    "[aria-label='request form']",
    "button.dropdown-toggle",  # the formats; has a tooltip for its name
]
"""Parts of Django REST framework's page that axe-core complains of, and ``html`` has no lang."""


@pytest.fixture
def at(site: str, unthrottled: None, sandbox: Sandbox) -> str:
    """The API's address; there are customers, links and a number."""
    row = sandbox.add_number(external_customer_id="acme")
    customer = make_customer(
        pk=77,
        name="Bäckerei " + "long" * 30,
        kapso_id=row["customer_id"],
        external_customer_id="acme",
    )
    make_link(customer, pk=77)
    make_connection(customer, pk=77, phone_number_id=row["phone_number_id"])
    make_link(make_customer(name="<b>Two</b>"))
    return site + API


@pytest.fixture
def page(at: str, visitor: Visitor) -> Iterator[Page]:
    """A window of a member of staff, who may do everything."""
    page = visitor.window()
    client = Client()
    client.force_login(User.objects.create_superuser("staff", password="x"))
    value = client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": value, "url": at}])
    yield page
    visitor.close()  # nothing more is told after that
    # A strict Content-Security-Policy blocks the framework's colours, and no more; browsers tell of
    # every status from 400.
    known = ("Applying inline style violates", "Failed to load resource: the server responded")
    visitor.complaints = [one for one in visitor.complaints if not any(k in one for k in known)]


def told(page: Page) -> str:
    """What the page shows of the answer."""
    return page.locator(".response-info").inner_text()


def send(page: Page, method: str, body: dict[str, Any]) -> None:
    """Edit the body that the page's form holds, and send it."""
    area = page.get_by_label("Content:")
    area.fill(json.dumps({**json.loads(area.input_value()), **body}))
    with page.expect_response(lambda answer: answer.request.method == method):
        page.get_by_role("button", name=method, exact=True).click()


def test_every_page_says_what_it_is(page: Page, at: str, visitor: Visitor) -> None:
    problems = []
    for path, title in PAGES.items():
        page.goto(at + path)
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.locator("#content p").first).not_to_be_empty()
        visitor.look(page, path.replace("/", "-").partition("?")[0] or "root")
        for rule in Axe().run(page, {"exclude": FRAMEWORKS_OWN}).response["violations"]:
            if rule["impact"] in {"serious", "critical"} and rule["id"] != "html-has-lang":
                problems += [f"{path} {rule['id']}: {node['html']}" for node in rule["nodes"]]
    assert problems == []
    assert page.locator("select[name=customer], option[value='77']").count() == 0


def test_the_way_from_the_root(page: Page, at: str) -> None:
    page.goto(at)
    page.get_by_role("link", name="/customers/").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Customers")
    page.get_by_role("link", name="WhatsApp").click()
    page.get_by_role("link", name="/schema/").click()
    expect(page.locator("body")).to_contain_text('"openapi": "3.1.0"')


def test_lists_are_narrowed_by_clicks(page: Page, at: str, visitor: Visitor) -> None:
    page.goto(at + "customers/")
    page.get_by_role("button", name="Filters").click()
    dialog = page.locator("#filtersModal")  # the framework hides it from others than eyes
    expect(dialog.get_by_text("Status", exact=True)).to_be_visible()
    visitor.look(page, "filters")
    found = Axe().run(page, {"include": [".modal-body"]}).response["violations"]
    assert [rule["id"] for rule in found if rule["impact"] in {"serious", "critical"}] == []
    dialog.get_by_text("Invited", exact=True).click()
    expect(page.locator(".response-info")).to_contain_text('"count": 1')
    assert page.url.endswith("?status=invited")
    page.get_by_role("button", name="Filters").click()
    expect(dialog.get_by_text("Invited", exact=True)).to_have_attribute("aria-current", "true")
    dialog.get_by_label("Search").fill("nobody")
    dialog.get_by_label("Search").press("Enter")
    expect(page.locator(".response-info")).to_contain_text('"count": 0')
    page.get_by_role("button", name="Filters").click()
    dialog.locator("form").filter(has=page.get_by_label("Search")).get_by_text("All").click()
    expect(page.locator(".response-info")).to_contain_text('"count": 1')
    assert page.url.endswith("?status=invited")


def test_pages_are_turned(page: Page, at: str) -> None:
    for number in range(3):
        make_customer(name=f"More {number}")
    page.goto(at + "customers/?page_size=2")
    page.get_by_role("link", name="3", exact=True).click()
    expect(page.locator(".response-info")).to_contain_text("longlong")
    page.goto(at + "customers/?page_size=2&page=2")
    page.get_by_role("button", name="Filters").click()
    page.locator("#filtersModal").get_by_text("Not invited").click()
    page.wait_for_url("**/customers/?page_size=2&status=not_invited")
    expect(page.locator(".response-info")).to_contain_text("HTTP 200 OK")


def test_a_customer_and_a_link_are_made_with_the_forms(
    page: Page, at: str, sandbox: Sandbox
) -> None:
    page.goto(at + "customers/")
    send(page, "POST", {"name": "Ünïcode"})
    expect(page.locator(".response-info")).to_contain_text("HTTP 201 Created")
    customer = Customer.objects.get(name="Ünïcode")
    assert customer.email == "ada@example.com"
    page.goto(f"{at}setup-links/?customer={customer.pk}")
    send(page, "POST", {})
    expect(page.locator(".response-info")).to_contain_text("HTTP 201 Created")
    assert customer.setup_links.get().options["language"] == "en"


def test_nobody_is_invited_by_accident(page: Page, at: str) -> None:
    page.goto(at + "setup-links/")
    send(page, "POST", {})
    expect(page.locator(".response-info")).to_contain_text("HTTP 400 Bad Request")
    assert '"customer"' in told(page)
    assert "This field may not be null." in told(page)
    assert SetupLink.objects.count() == 2


def test_what_was_refused_can_be_put_right(page: Page, at: str) -> None:
    page.goto(at + "customers/")
    send(page, "POST", {"name": "Much to write", "email": "nobody"})
    expect(page.locator(".response-info")).to_contain_text("HTTP 400 Bad Request")
    assert "Enter a valid email address." in told(page)
    send(page, "POST", {"email": None})
    expect(page.locator(".response-info")).to_contain_text("HTTP 201 Created")
    assert Customer.objects.filter(name="Much to write", email="").exists()


def test_a_customer_is_changed_with_the_form(page: Page, at: str) -> None:
    page.goto(at + "customers/77/")
    send(page, "PATCH", {"email": "new@example.com"})
    expect(page.locator(".response-info")).to_contain_text("HTTP 200 OK")
    customer = Customer.objects.get(pk=77)
    assert (customer.email, customer.external_customer_id) == ("new@example.com", "acme")
    assert customer.name.startswith("Bäckerei long")


def test_a_number_is_disconnected_with_the_form(page: Page, at: str, sandbox: Sandbox) -> None:
    # Webhook and page write one after the other, whichever database it is.
    sandbox.faults(delay=1)
    page.goto(at + "connections/77/disconnect/")
    send(page, "POST", {})
    expect(page.locator(".response-info")).to_contain_text("HTTP 200 OK")
    assert Connection.objects.get().status == "disconnected"
