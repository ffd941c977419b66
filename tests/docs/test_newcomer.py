"""A newcomer's project: the tutorial, to which README leads, and then one how-to guide after
another, all in the same project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import django
import pytest
import requests
from playwright.sync_api import Browser, expect

from example_project.demo.processes import HOST, free_port

from ..browser.support import Visitor, running_chromium
from .support import DOCS, NewSite, blocks_of


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewSite]:
    """A project after the tutorial's fifth step, with a running sandbox and the variables."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("newcomer")
        newcomer = NewSite(folder, free_port(0), free_port(0), stack)
        # What two guides have for one file is added up, as a reader does.
        newcomer.continued = ("mysite/", "crm/receivers.py", "crm/views.py", "crm/urls.py")
        newcomer.execute("tutorial.md", last="5. Start the sandbox")
        newcomer.set_variables()
        yield newcomer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    visitor = Visitor(browser)
    yield visitor
    visitor.close()
    assert visitor.complaints == []


def test_the_guides_fit_together(newcomer: NewSite, visitor: Visitor) -> None:
    if django.VERSION >= (6, 0):  # which has the middleware
        policy = "Content-Security-Policy"
        newcomer.execute("how-to/production.md", first=policy, last=policy)
    newcomer.execute("how-to/own-model.md")
    with newcomer.started():
        connect(newcomer, visitor)
        erase(newcomer)


def connect(newcomer: NewSite, visitor: Visitor) -> None:
    """Connect the number of the company of "Use your own model"."""
    page = visitor.window()
    answer = page.goto(newcomer.shell(CONNECT_URL).strip())
    if django.VERSION >= (6, 0):
        assert "form-action 'self'" in answer.headers["content-security-policy"]
    page.get_by_role("button", name="Connect WhatsApp").click()
    page.get_by_role("button", name="Connect").first.click()
    expect(page.get_by_text("Ada's Bakery Ltd").first).to_be_visible()
    assert page.url.startswith(f"http://{HOST}:{newcomer.port}/whatsapp/success/")


CONNECT_URL = """
from crm.models import Company
from kapso_connect.models import Customer
from kapso_connect.onboarding import connect_url
print(connect_url(Customer.objects.for_owner(Company.objects.get(contact_email="ada@example.com"))))
"""


def erase(newcomer: NewSite) -> None:
    """Erase the customer, and delete the company, as in "Erase and delete customers"."""
    numbers = f"{newcomer.sandbox}/platform/v1/whatsapp/phone_numbers"
    headers = {"X-API-Key": "sandbox"}
    assert len(requests.get(numbers, headers=headers, timeout=10).json()["data"]) == 1
    for block in blocks_of(DOCS / "how-to" / "erasing.md"):
        if block.language == "python":
            newcomer.execute_block(block)
    assert requests.get(numbers, headers=headers, timeout=10).json()["data"] == []
    assert newcomer.shell(SHOW_WHAT_IS_LEFT).splitlines() == ["0", "Erased customer 1 disconnected"]


SHOW_WHAT_IS_LEFT = """
from crm.models import Company
from kapso_connect.models import Connection, Customer
print(Company.objects.filter(contact_email="ada@example.com").count())
for connection in Connection.objects.all():
    print(connection.customer, connection.status)
"""
