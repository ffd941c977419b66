"""The sandbox's own pages: every kind of button, on a phone and a desktop, without scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from kapso_connect.testing import Sandbox

from .support import DESKTOP, PHONE, Visitor, assert_accessible

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)
pytestmark = pytest.mark.slow

APPEARANCES = pytest.mark.parametrize("appearance", ["light", "dark"])
NOWHERE = "http://127.0.0.1:9/whatsapp/webhook/"


def look(visitor: Visitor, page: Page, name: str, appearance: str) -> None:
    """See the page in both widths with everything unfolded; axe-core finds nothing."""
    for summary in page.locator("summary").all():
        summary.click()
    visitor.look(page, f"sandbox-{name}-{appearance}")
    for size in (PHONE, DESKTOP):
        page.set_viewport_size(size)
        assert_accessible(page)


@APPEARANCES
def test_pages_can_be_read_by_everybody(
    box: Sandbox, box_api: Api, visitor: Visitor, appearance: Any
) -> None:
    box.set_webhook(NOWHERE)
    customers = [box_api.customer(f"Customer {i} " + "long " * (8 * i)) for i in range(3)]
    links = [box_api.link(customer) for customer in customers]
    box.complete(links[0]["url"])
    number = box.add_number(customer_id=customers[1]["id"], webhook=True)["phone_number_id"]
    box.patch_setup_link(links[2]["id"], status="revoked")
    box.faults(
        duplicate=1,
        envelope="type",
        webhook_first=True,
        api=[{"kind": "status", "match": "^POST .*/customers$", "status": 503, "retry_after": 7}],
    )
    page = visitor.window(color_scheme=appearance)
    for name, path in {
        "index": "/",
        "number": f"/numbers/{number}",
        "faults": "/faults",
        "deliveries": "/deliveries",
        "setup": links[1]["url"].removeprefix(box.url),
    }.items():
        page.goto(box.url + path)
        look(visitor, page, name, appearance)
    box.reset()
    page.goto(box.url)
    look(visitor, page, "empty", appearance)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no_scripts"])
def test_every_kind_of_button_is_pressed(box: Sandbox, visitor: Visitor, scripts: bool) -> None:
    page = visitor.window(PHONE, java_script_enabled=scripts)
    page.goto(box.url)

    def press(label: str, notice: str) -> None:
        page.get_by_role("button", name=label, exact=True).first.click()
        expect(page.locator(".notice")).to_contain_text(notice)

    def unfold(label: str) -> None:
        page.locator("summary", has_text=label).first.click()

    unfold("Add customers")
    page.get_by_label("Phone numbers of each").fill("2")
    press("Add customers", "Customers added: 3, numbers: 6.")
    unfold("Add a number")
    page.get_by_placeholder("+14155550100").fill("+14155550142")
    press("Add the number", "+1 415-555-0142 was added.")
    unfold("Where every event goes")
    page.get_by_role("button", name="Send every event there").click()
    expect(page.get_by_role("alert")).to_have_text("The URL is missing.")
    visitor.look(page, "sandbox-error")
    page.locator("#webhooks").get_by_label("URL").fill(NOWHERE)
    press("Send every event there", f"Every event goes to {NOWHERE}.")
    page.get_by_label("Event to").select_option("whatsapp.account.violation")
    press(f"Send a test delivery to {NOWHERE}", "whatsapp.account.violation: 1 deliveries.")
    unfold("Send any event")
    page.get_by_label("Phone number That it is about").select_option(index=1)
    press("Send the event", "1 deliveries.")

    page.get_by_role("link", name="+1 415-555-0142").click()
    for label, notice in {
        "Restrict the account": "whatsapp.account.restricted",
        "Disable the account": "whatsapp.account.disabled",
        "Reinstate the account": "whatsapp.account.reinstated",
        "Report a violation": "whatsapp.account.violation",
        "Take the number off the API": "whatsapp.phone_number.offboarded",
        "Reconnect the number": "whatsapp.phone_number.reconnected",
        "Change the phone": "whatsapp.phone_number.reconnected in 60 s",
        "Uninstall the app": "whatsapp.phone_number.disconnected",
        "Remove the partner": "whatsapp.phone_number.disconnected",
        "Send to the number": "Nothing was sent",
    }.items():
        press(label, notice)
    page.get_by_label("Quality rating").select_option("RED")
    press("Save", "was changed")
    expect(page.get_by_text("RED").first).to_be_visible()
    press("Delete the number", "The number is removed")

    page.get_by_role("link", name="Faults").first.click()
    press("Turn on the fault delay", "The fault delay is on.")
    visitor.look(page, "sandbox-notice")
    press("Turn off the fault delay", "The fault delay is off.")
    press("Turn on the fault drop", "The fault drop is on.")
    page.get_by_label("Kind").select_option("cloudflare")
    press("Add the rule", "The rule cloudflare is on.")
    expect(page.locator("#rules article")).to_have_count(1)
    press("Turn off the rule cloudflare", "The rule cloudflare is off.")
    press("Turn all faults off", "All faults are off")

    page.get_by_role("link", name="Deliveries").click()
    press("Send again", "is sent again.")
    press("Replay under a new key", "is sent again.")
    page.get_by_role("link", name="Overview").click()
    unfold("Forget customers")
    press("Forget everything", "Everything is forgotten")
    assert box.state()["customers"] == []
