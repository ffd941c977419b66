"""The sandbox's pages: what each button does, and that there is one for everything."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.sandbox import urls
from kapso_connect.sandbox.faults import RULE_KINDS, Faults, Rule, descriptions
from kapso_connect.sandbox.forms import FORMS, NumberForm
from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"
DISCONNECTED = "whatsapp.phone_number.disconnected"
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
        ("event", {}, "event can't be blank"),
        ("event", {"event": CREATED, "payload": "{"}, "Enter a valid JSON."),
        ("event", {"event": CREATED}, "phone_number_id (a number of the sandbox) or payload"),
        ("event", {"event": CREATED, "payload": "7"}, "payload must be an object"),
        ("fault", {"target": "no_such"}, "unknown: no_such"),
        ("fault", {"target": "delay"}, "delay must be a number of seconds"),
        ("add_rule", {"kind": "close", "match": "("}, "not a regular expression"),
        ("remove_rule", {"target": "3"}, "Rule not found"),
        ("resend", {"target": "3"}, "Delivery not found"),
        ("setup_link", {"target": "3"}, "Setup link not found"),
        ("test_delivery", {"target": "3", "event_type": "x"}, "not one of the available choices"),
        ("seed", {"button": "explode"}, "Button not found"),
        ("meta", {"target": "3"}, "Phone number not found"),
        ("funding", {"target": "3", "funding": "funded"}, "account not found"),
        ("message", {"target": "3", "sender": "+1", "body": "x"}, "Phone number not found"),
        ("number_webhook", {"target": "3", "url": "http://x/", "secret_key": "s"}, "not found"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    box: Sandbox, browser: Browser, form: str, fields: dict[str, Any], text: str
) -> None:
    before = box.state()
    usual = next(iter(FORMS[form].buttons))
    assert text in browser.press(form, fields.pop("button", usual), **fields)
    assert box.state() == before


@pytest.mark.parametrize(
    ("form", "field", "typed", "others"),
    [
        ("event", "payload", '{"a": ', {"event": CREATED}),
        ("event", "idempotency_key", "ä", {"event": CREATED, "payload": "{}"}),
        ("add_rule", "match", "^GET (", {"kind": "close"}),
        ("rate_limit", "limit", "-7", {}),
        ("fault", "value", "soon", {"target": "delay"}),
        ("device", "seconds", "soon", {}),
        ("number_webhook", "url", "nowhere/at all", {"secret_key": "s"}),
    ],
)
def test_a_refused_form_keeps_what_was_typed(
    browser: Browser, number: str, form: str, field: str, typed: str, others: dict[str, str]
) -> None:
    target = number if issubclass(FORMS[form], NumberForm) else ""
    data = {"target": target, **others, field: typed}
    answer = browser.http.post(f"{browser.url}/press/{form}", data=data, timeout=10)
    assert answer.status_code == 200
    sent = [
        part
        for part in re.findall(rf'action="/press/{form}".*?</form>', answer.text, re.DOTALL)
        if typed in unescape(part)
    ]
    assert len(sent) == 1
    assert f'value="{data["target"]}"' in sent[0] or not data["target"]
    before = answer.text.partition(sent[0])[0]
    _others, closed, after = before.rpartition("<details>")
    assert not closed or "</details>" in after


def test_notices_do_not_take_the_place_of_those_of_a_site_on_this_machine(box: Sandbox) -> None:
    """Cookies are sent to every port."""
    answer = requests.post(f"{box.url}/press/reset", allow_redirects=False, timeout=10)
    assert answer.headers["Set-Cookie"].startswith("kapso_sandbox_notices=")


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
        ("meta", "whatsapp.account.restricted", None, "CONNECTED"),
        ("meta", "whatsapp.account.disabled", None, "CONNECTED"),
        ("meta", "whatsapp.account.reinstated", None, "CONNECTED"),
        ("meta", "whatsapp.account.violation", None, "CONNECTED"),
        ("meta", "whatsapp.phone_number.offboarded", None, "DISCONNECTED"),
        ("meta", "whatsapp.phone_number.reconnected", None, "CONNECTED"),
        ("withdraw", "PARTNER_REMOVED", DISCONNECTED, "DISCONNECTED"),
        ("withdraw", "PARTNER_APP_UNINSTALLED", DISCONNECTED, "DISCONNECTED"),
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
    browser.press(form, button, number)
    (delivery,) = box.wait_for_deliveries(1)
    assert delivery["event"] == (event or button)
    if form == "withdraw":
        assert button in delivery["body"]
    if status:
        assert box.state()["phone_numbers"][0]["status"] == status
        assert browser.place == f"/numbers/{number}"


def test_a_phone_changes(
    box: Sandbox, browser: Browser, number: str, box_receiver: Receiver
) -> None:
    browser.press("device", "change", number, seconds=0.3)
    assert box.state()["phone_numbers"][0]["status"] == "DISCONNECTED"
    events = [row["event"] for row in box.wait_for_deliveries(2)]
    assert events == ["whatsapp.phone_number.offboarded", "whatsapp.phone_number.reconnected"]
    assert box.state()["phone_numbers"][0]["status"] == "CONNECTED"


def test_a_number_that_was_replaced_is_not_reconnected(
    box: Sandbox, box_receiver: Receiver
) -> None:
    """Meta keeps its id."""
    phone = "+14155550142"
    first = box.add_number(phone_number=phone)["phone_number_id"]
    box.change_device(first, 0.3)
    box.delete_number(first)
    second = box.add_number(phone_number=phone, status="BANNED")
    assert second["phone_number_id"] == first
    time.sleep(0.5)
    assert [row["event"] for row in box.deliveries()][1:] == ["whatsapp.phone_number.deleted"]
    assert box.state()["phone_numbers"][0]["status"] == "BANNED"


def test_what_the_api_says_of_a_number(box: Sandbox, browser: Browser, number: str) -> None:
    page = browser.get(f"/numbers/{number}")
    assert "ada" in page
    browser.press(
        "number",
        "change",
        number,
        status="RESTRICTED",
        quality_rating="RED",
        name_status="DECLINED",
        verified_name="Ada",
        customer_id="",
    )
    changed = box.state()["phone_numbers"][0]
    names = ("status", "quality_rating", "name_status", "verified_name", "customer_id")
    assert [changed[k] for k in names] == ["RESTRICTED", "RED", "DECLINED", "Ada", None]


def test_saving_a_number_as_it_is_changes_nothing(box: Sandbox, browser: Browser) -> None:
    """Also what the form does not offer to others: any status, a customer of long ago."""
    number = box.add_number(external_customer_id="first", status="ODD", quality_rating=None)
    box.seed(201)
    (before,) = box.state()["phone_numbers"]
    form = browser.get(f"/numbers/{number['phone_number_id']}").partition('"/press/number"')[2]
    names = ("status", "quality_rating", "name_status", "customer_id")
    chosen = dict(zip(names, re.findall(r'value="([^"]*)" selected', form), strict=True))
    name = number["verified_name"]
    browser.press("number", "change", number["phone_number_id"], verified_name=name, **chosen)
    (after,) = box.state()["phone_numbers"]
    assert {**after, "updated_at": ""} == {**before, "updated_at": ""}


def test_a_number_that_does_not_exist_has_a_page_that_says_so(box: Sandbox) -> None:
    answer = requests.get(f"{box.url}/numbers/1", timeout=10)
    assert answer.status_code == 404
    assert "does not exist" in answer.text


def test_someone_writes_to_a_number(
    box: Sandbox, browser: Browser, number: str, box_receiver: Receiver
) -> None:
    assert "Nothing was sent" in browser.press("message", "send", number, sender="+1", body="Hi")
    url = box_receiver.url
    browser.press("number_webhook", "add", number, url=url, secret_key=SECRET)
    browser.press("message", "send", number, sender="+14155550199", body="Good morning")
    rows = box.wait_for_deliveries(2)
    assert "Good morning" in rows[-1]["body"]


def test_kapso_pays_for_an_account(
    box: Sandbox, browser: Browser, box_api: Api, number: str
) -> None:
    account = box.state()["phone_numbers"][0]["business_account_id"]
    assert browser.press("funding", "set", number, funding="pending") == "The account is pending."
    answer = box_api("GET", f"/whatsapp/accounts/{account}/funding")
    assert answer.json()["data"]["status"] == "pending"


@pytest.mark.parametrize(
    ("fault", "fields", "on"),
    [
        ("duplicate", {"value": 2}, 2),
        ("delay", {"value": 0.5}, 0.5),
        ("reorder", {"value": 2}, 2),
        ("batch", {"value": 3}, 3),
        ("envelope", {"value": "event"}, True),
        ("envelope", {"value": "type"}, "type"),
        ("drop", {}, True),
        ("webhook_first", {}, True),
        ("lag", {"value": 5}, 5),
    ],
)
def test_each_fault_has_a_switch(
    box: Sandbox, browser: Browser, fault: str, fields: dict[str, Any], on: object
) -> None:
    assert browser.press("fault", "on", fault, **fields) == f"The fault {fault} is on."
    assert box.faults()[fault] == on
    assert f"On: {fault}." in browser.get("/faults")
    assert browser.press("fault", "off", fault) == f"The fault {fault} is off."
    assert box.faults() == dataclasses.asdict(Faults())


def test_the_faults_page_shows_and_explains_all() -> None:
    names = {field.name for field in dataclasses.fields(Faults)}
    assert names == set(descriptions(Faults))
    assert {field.name for field in dataclasses.fields(Rule)} == set(descriptions(Rule))
    kinds = descriptions(Rule)["kind"]
    assert [kind for kind in RULE_KINDS if f"``{kind}``" not in kinds] == []


def test_rules_are_added_and_removed(box: Sandbox, browser: Browser, box_api: Api) -> None:
    browser.press("add_rule", "add", kind="status", match="/customers$", status=503, times=9)
    browser.press("add_rule", "add", kind="cloudflare")
    assert box_api("GET", "/customers").status_code == 503
    browser.press("remove_rule", "off", "0")
    assert [rule["kind"] for rule in box.faults()["api"]] == ["cloudflare"]
    browser.press("clear_faults", "clear")
    assert box.faults()["api"] == []


def test_deliveries_are_sent_again(box: Sandbox, browser: Browser, box_receiver: Receiver) -> None:
    box.add_number(webhook=True)
    (first,) = box.wait_for_deliveries(1)
    browser.press("resend", "again", first["id"])
    browser.press("resend", "new_key", first["id"])
    keys = [row["idempotency_key"] for row in box.wait_for_deliveries(3)]
    assert keys[0] == keys[1] != keys[2]
    assert browser.place == "/deliveries"


def test_everything_is_forgotten(box: Sandbox, browser: Browser) -> None:
    box.seed(2)
    browser.press("reset", "reset")
    assert box.state()["customers"] == []


# A button for everything


def test_each_control_has_a_button() -> None:
    writes = {
        f"{method.upper()} {entry.pattern}"
        for entry in urls.controls
        for method in ("post", "patch", "delete")
        if hasattr(entry.callback.view_class, method)
    }
    for entry in urls.controls:
        for method in ("get", "post", "patch", "delete"):
            view = getattr(entry.callback.view_class, method, None)
            assert view is None or view.__doc__, f"{method} {entry.pattern} is not documented"
    assert len(writes) >= 14
    assert writes == {form.endpoint for form in FORMS.values()} - {""}


def test_each_form_is_on_a_page(
    box: Sandbox, browser: Browser, box_api: Api, box_receiver: Receiver
) -> None:
    box_api.link(box_api.customer())
    number = box.add_number(webhook=True)["phone_number_id"]
    box.faults(api=[{"kind": "close", "match": "^never$"}])
    pages = [browser.get(p) for p in ("/", f"/numbers/{number}", "/faults", "/deliveries")]
    shown = set(re.findall(r'action="/press/(\w+)"', " ".join(pages)))
    assert shown == set(FORMS)
    faults = {field.name for field in dataclasses.fields(Faults)} - {"api"}
    assert set(re.findall(r'id="fault-(\w+)-target"', pages[2])) == faults
