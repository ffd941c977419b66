"""The sandbox's pages: what each button does, and that there is one for everything."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.sandbox.faults import RULE_KINDS, Faults, Rule, descriptions
from kapso_connect.testing import Sandbox
from tests import ROOT

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"
SECRET = "s3cret"


class Browser:
    """Presses buttons as a browser does, and reads the notice of the page that follows."""

    def __init__(self, box: Sandbox) -> None:
        self.url = box.url
        self.http = requests.Session()

    def get(self, path: str) -> str:
        answer = self.http.get(self.url + path, timeout=10)
        assert answer.status_code == 200, answer.text
        return unescape(answer.text)

    def press(self, form: str, button: str, target: str = "", **fields: Any) -> str:
        data = {"target": target, "button": button, **fields}
        answer = self.http.post(f"{self.url}/press/{form}", data=data, timeout=10)
        self.place = answer.url.removeprefix(self.url)
        (notice,) = re.findall(r'role="(?:status|alert)"[^>]*>(.*?)</p>', answer.text)
        return unescape(notice)


@pytest.fixture
def browser(box: Sandbox) -> Iterator[Browser]:
    browser = Browser(box)
    yield browser
    browser.http.close()


@pytest.fixture
def number(box: Sandbox) -> str:
    number_id: str = box.add_number(external_customer_id="ada")["phone_number_id"]
    return number_id


def test_customers_and_numbers_are_added(box: Sandbox, browser: Browser) -> None:
    notice = browser.press(
        "seed", "seed", customers=2, numbers_per_customer=1, name_prefix="shop", webhooks="on"
    )
    assert notice == "Customers added: 2, numbers: 2."
    first, _second = box.state()["customers"]
    assert first["external_customer_id"] == "shop-1"
    browser.press(
        "add_number",
        "add",
        customer_id=first["id"],
        phone_number="+14155550142",
        verified_name="Ada",
        is_coexistence="on",
    )
    number = box.state()["phone_numbers"][-1]
    named = ("customer_id", "display_phone_number", "verified_name", "is_coexistence")
    assert [number[k] for k in named] == [first["id"], "+1 415-555-0142", "Ada", True]
    page = browser.get("/")
    assert "shop 1" in page
    assert "+1 415-555-0142" in page


@pytest.mark.parametrize(
    ("form", "fields", "text"),
    [
        ("seed", {"customers": 0}, "Customers: Ensure this value is greater than or equal to 1."),
        ("add_number", {"phone_number": "12"}, "E.164"),
        ("add_number", {"customer_id": "nobody"}, "nobody is not one of the available choices"),
        ("default_webhook", {}, "The URL is missing."),
        ("default_webhook", {"url": "nowhere"}, "url is not a valid URL."),
        ("event", {"event": CREATED, "payload": "{"}, "Enter a valid JSON."),
        ("event", {"event": CREATED}, "phone_number_id (a number of the sandbox) or payload"),
        ("event", {"event": CREATED, "payload": "7"}, "payload must be an object"),
        ("event", {"payload": "{}"}, "event is missing"),
        ("fault", {"target": "no_such"}, "unknown: no_such"),
        ("fault", {"target": "delay"}, "delay must be a number of seconds"),
        ("add_rule", {"kind": "close", "match": "("}, "not a regular expression"),
        ("remove_rule", {"target": "3"}, "Rule not found"),
        ("resend", {"target": "3"}, "Delivery not found"),
        ("setup_link", {"target": "3"}, "Setup link not found"),
        ("test_delivery", {"target": "3", "event_type": "x"}, "not one of the available choices"),
        ("seed", {"button": "explode"}, "Button not found"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    box: Sandbox, browser: Browser, form: str, fields: dict[str, Any], text: str
) -> None:
    from kapso_connect.sandbox.forms import FORMS

    before = box.state()
    usual = next(iter(FORMS[form].buttons))
    assert text in browser.press(form, fields.pop("button", usual), **fields)
    assert box.state() == before


def test_a_form_that_does_not_exist_is_404(box: Sandbox) -> None:
    assert requests.post(f"{box.url}/press/nothing", timeout=10).status_code == 404


def test_the_default_webhook_is_set_and_removed(box: Sandbox, browser: Browser) -> None:
    url = "http://127.0.0.1:9/hook"
    assert browser.press("default_webhook", "set", url=url, secret=SECRET).endswith(f"{url}.")
    other = f"{url}/other"
    browser.press("default_webhook", "set", url=other)
    (webhook,) = box.state()["webhooks"]
    assert (webhook["url"], webhook["secret_key"]) == (other, SECRET)
    assert SECRET not in browser.get("/")
    browser.press("default_webhook", "remove", url=other)
    assert box.state()["webhooks"] == []


def test_a_test_delivery_is_sent(box: Sandbox, browser: Browser, box_receiver: Receiver) -> None:
    (webhook,) = box.state()["webhooks"]
    browser.press("test_delivery", "test", webhook["id"], event_type=CREATED)
    box.send_test(webhook["id"], CREATED)
    assert [row["event"] for row in box.wait_for_deliveries(2)] == [CREATED, CREATED]


def test_links_expire_are_revoked_and_come_back(
    box: Sandbox, browser: Browser, box_api: Api
) -> None:
    customer = box_api.customer()
    link = box_api.link(customer)
    for button, status in {"expire": "expired", "activate": "active", "revoke": "revoked"}.items():
        assert browser.press("setup_link", button, link["id"]) == f"The setup link is {status}."
        assert box_api.links(customer)[0]["status"] == status
    box.complete(box_api.link(customer)["url"])
    page = browser.get("/")
    assert page.count(">Activate<") == 1, "a link that was used has no button"


def test_any_event_is_sent(box: Sandbox, browser: Browser, box_receiver: Receiver) -> None:
    number = box.add_number()["phone_number_id"]
    browser.press(
        "event",
        "send",
        event="whatsapp.phone_number.disconnected",
        phone_number_id=number,
        payload='{"more": 1}',
        idempotency_key="k",
        reason="left",
        keep="on",
    )
    browser.press("event", "send", other_event="whatsapp.something.new", payload='{"id": "1"}')
    first, second = box.wait_for_deliveries(2)
    assert first["idempotency_key"] == "k"
    assert '"more":1' in first["body"]
    assert '"reason":"left"' in first["body"]
    assert second["event"] == "whatsapp.something.new"
    assert box.state()["phone_numbers"][0]["status"] == "CONNECTED"


@pytest.mark.parametrize(
    ("form", "button", "event", "status"),
    [
        *(
            ("meta", f"whatsapp.account.{what}", None, "CONNECTED")
            for what in ("restricted", "disabled", "reinstated", "violation")
        ),
        ("meta", "whatsapp.phone_number.offboarded", None, "DISCONNECTED"),
        ("meta", "whatsapp.phone_number.reconnected", None, "CONNECTED"),
        *(
            ("withdraw", source, "whatsapp.phone_number.disconnected", "DISCONNECTED")
            for source in ("PARTNER_REMOVED", "PARTNER_APP_UNINSTALLED")
        ),
        ("delete_number", "delete", "whatsapp.phone_number.deleted", None),
    ],
)
def test_what_happens_to_a_number(
    box: Sandbox,
    browser: Browser,
    number: str,
    box_receiver: Receiver,
    form: str,
    button: str,
    event: str | None,
    status: str | None,
) -> None:
    number = box.add_number()["phone_number_id"]
    browser.press(form, button, number)
    (delivery,) = box.wait_for_deliveries(1)
    assert delivery["event"] == event or button
    if form == "withdraw":
        assert button in delivery["body"]
    if status:
        assert box.state()["phone_numbers"][0]["status"] == status
        assert browser.place == f"/numbers/{number}"
