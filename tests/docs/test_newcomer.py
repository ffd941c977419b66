"""A newcomer's project: the tutorial, to which README leads, and then one how-to guide after
another, all in the same project."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import django
import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from example_project.demo.processes import HOST, free_port

from ..browser.support import Visitor, running_chromium
from .support import DOCS, NewSite, blocks_of


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewSite]:
    """A project after the tutorial's fifth step, with a running sandbox and the variables."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("newcomer")
        newcomer = NewSite(folder, free_port(0), free_port(0), stack)
        # What two guides have for one of these files is added up, as a reader does.
        newcomer.continued = ("mysite/", "crm/receivers.py", "crm/views.py", "chat/models.py")
        newcomer.execute("tutorial.md", last="5. Start the sandbox")
        newcomer.set_variables()
        yield newcomer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    visitor = Visitor(browser)
    yield visitor.window()
    visitor.close()
    assert visitor.complaints == []


def test_the_guides_fit_together(newcomer: NewSite, page: Page) -> None:
    with (newcomer.project / "mysite" / "settings.py").open("a") as settings:
        settings.write('DATABASES["default"]["ATOMIC_REQUESTS"] = True\n')
    if django.VERSION >= (6, 0):  # which has the middleware
        policy = "Content-Security-Policy"
        newcomer.execute("how-to/production.md", first=policy, last=policy)
    newcomer.execute("how-to/own-model.md")
    newcomer.execute("how-to/self-service.md")
    url = newcomer.output.strip().replace(":8000", f":{newcomer.port}")
    newcomer.execute("how-to/messages.md")
    newcomer.shell(ADD_THE_PHONE_NUMBER)
    with newcomer.started():
        log_in(page, url)
        connect(newcomer, page, url)
        check_the_first_message(newcomer)
        check_a_received_message(newcomer)
    newcomer.execute("how-to/popup.md", first="A window", last="A window")
    with newcomer.started():
        connect_in_a_window(page, url)
        erase(newcomer)


ADD_THE_PHONE_NUMBER = """
from crm.models import Company
Company.objects.update(contact_phone="+1 415-555-0199")
"""


def log_in(page: Page, url: str) -> None:
    answer = page.goto(url)
    if django.VERSION >= (6, 0):
        assert "form-action 'self'" in answer.headers["content-security-policy"]
    page.get_by_label("Username").fill("staff")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()


def connect(newcomer: NewSite, page: Page, url: str) -> None:
    """Press the button of the site's own page, connect at Kapso, and come back to that page."""
    expect(page.get_by_text("WhatsApp is not connected")).to_be_visible()
    page.get_by_role("button", name="Connect WhatsApp").click()
    press_connect_at_kapso(page)
    page.wait_for_url(f"http://{HOST}:{newcomer.port}/whatsapp/success/**")
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_text("Thank you, Ada's Bakery Ltd!")).to_be_visible()
    expect(page.get_by_text("WhatsApp is connected")).to_be_visible()
    expect(page).to_have_url(url)


def press_connect_at_kapso(page: Page) -> None:
    page.locator("button[name=outcome][value=connect]").click(no_wait_after=True)


def check_the_first_message(newcomer: NewSite) -> None:
    """The number that was connected has sent its first message, once."""
    wait_for_delivery(newcomer, "whatsapp.phone_number.created")
    asked = requests.get(f"{newcomer.sandbox}/sandbox/requests", timeout=10).json()["data"]
    sent = [one for one in asked if one["path"].endswith("/messages")]
    assert [(one["status"], one["body"]["to"]) for one in sent] == [(200, "14155550199")]


def check_a_received_message(newcomer: NewSite) -> None:
    """A message arrives at the webhook of the number, and is refused without its signature."""
    number = numbers_at_kapso(newcomer)[0]["phone_number_id"]
    url = f"{newcomer.sandbox}/sandbox/numbers/{number}/messages"
    message = {"from": "15551234567", "body": "Is it ready?"}
    requests.post(url, json=message, timeout=10).raise_for_status()
    wait_for_delivery(newcomer, "whatsapp.message.received")
    assert newcomer.shell(SHOW_RECEIVED).splitlines() == [f"{number} 15551234567 Is it ready?"]
    own = f"http://{HOST}:{newcomer.port}/chat/messages/"
    headers = {"X-Webhook-Event": "whatsapp.message.received", "X-Webhook-Signature": "0" * 64}
    assert requests.post(own, json={}, headers=headers, timeout=10).status_code == 401


SHOW_RECEIVED = """
from chat.models import ReceivedMessage
for message in ReceivedMessage.objects.all():
    print(message.phone_number_id, message.sender, message.text)
"""


def wait_for_delivery(newcomer: NewSite, event: str) -> None:
    """Wait until the site has accepted what Kapso reports."""
    deadline = time.monotonic() + 10
    states: dict[str, str] = {}
    while states.get(event) != "delivered":
        assert time.monotonic() < deadline, states
        answer = requests.get(f"{newcomer.sandbox}/deliveries.json", timeout=10)
        states = {one["event"]: one["state"] for one in answer.json()["data"]}
        time.sleep(0.05)


def connect_in_a_window(page: Page, url: str) -> None:
    """Disconnect the number on the page, and connect another in a window, which closes."""
    page.goto(url)
    page.get_by_text("Disconnect", exact=True).click()
    page.get_by_role("button", name="Disconnect this number").click()
    expect(page.get_by_text("Your number is disconnected")).to_be_visible()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Connect another number").click()
    with opened.value.expect_event("close"):
        press_connect_at_kapso(opened.value)
    expect(page.get_by_text("WhatsApp is connected")).to_be_visible()


def erase(newcomer: NewSite) -> None:
    """Erase the customer, and delete the company, as in "Erase and delete customers"."""
    assert len(numbers_at_kapso(newcomer)) == 1
    for block in blocks_of(DOCS / "how-to" / "erasing.md"):
        if block.language == "python":
            newcomer.execute_block(block)
    assert numbers_at_kapso(newcomer) == []
    assert newcomer.shell(SHOW_WHAT_IS_LEFT).splitlines() == [
        "0",
        *["Erased customer 1 disconnected"] * 2,
    ]


SHOW_WHAT_IS_LEFT = """
from crm.models import Company
from kapso_connect.models import Connection
print(Company.objects.count())
for connection in Connection.objects.all():
    print(connection.customer, connection.status)
"""


def numbers_at_kapso(newcomer: NewSite) -> list[dict[str, str]]:
    url = f"{newcomer.sandbox}/platform/v1/whatsapp/phone_numbers"
    answer = requests.get(url, headers={"X-API-Key": "sandbox"}, timeout=10)
    numbers: list[dict[str, str]] = answer.json()["data"]
    return numbers
