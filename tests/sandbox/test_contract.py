"""Every operation of Kapso's contract, each answered as it says (``Api`` checks each answer)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.testing import Sandbox
from tests.contract import CONTRACT, META_PATH, find_path

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)

URL = "https://site.example/hook"
NUMBER = "100000000000001"
RECEIVED = "whatsapp.message.received"
NEW_NUMBER = {
    "name": "Shop",
    "phone_number_id": "100000000000002",
    "business_account_id": "200000000000001",
    "access_token": "t",
}
# Operation, path, body, the key of what is created ("" for none), and the expected status.
CALLS: list[tuple[str, str, Any, str, int]] = [
    ("POST", "/customers", {"customer": {"name": "Acme"}}, "customer", 201),
    ("GET", "/customers", None, "", 200),
    ("GET", "/customers?page=0", None, "", 422),
    ("GET", "/customers/{customer}", None, "", 200),
    ("PATCH", "/customers/{customer}", {"customer": {"name": "Acme Ltd"}}, "", 200),
    ("PATCH", "/customers/{customer}", {}, "", 400),
    ("POST", "/customers", {"customer": {"name": ""}}, "", 422),
    ("POST", "/customers/{customer}/setup_links", {"setup_link": {}}, "link", 201),
    ("GET", "/customers/{customer}/setup_links", None, "", 200),
    (
        "PATCH",
        "/customers/{customer}/setup_links/{link}",
        {"setup_link": {"status": "revoked"}},
        "",
        200,
    ),
    (
        "PATCH",
        "/customers/{customer}/setup_links/{link}",
        {"setup_link": {"status": "used"}},
        "",
        422,
    ),
    (
        "POST",
        "/customers/{customer}/whatsapp/phone_numbers",
        {"whatsapp_phone_number": NEW_NUMBER},
        "number",
        201,
    ),
    (
        "POST",
        "/customers/{customer}/whatsapp/phone_numbers",
        {"whatsapp_phone_number": NEW_NUMBER},
        "",
        409,
    ),
    ("GET", "/whatsapp/phone_numbers", None, "", 200),
    ("GET", "/whatsapp/phone_numbers/{number}", None, "", 200),
    (
        "PATCH",
        "/whatsapp/phone_numbers/{number}",
        {"whatsapp_phone_number": {"name": "Shop 2"}},
        "",
        200,
    ),
    ("GET", "/whatsapp/phone_numbers/{number}/health", None, "", 200),
    (
        "POST",
        "/whatsapp/phone_numbers/{number}/webhooks",
        {"whatsapp_webhook": {"url": URL, "secret_key": "s", "events": [RECEIVED]}},
        "number_webhook",
        201,
    ),
    ("GET", "/whatsapp/phone_numbers/{number}/webhooks", None, "", 200),
    ("GET", "/whatsapp/phone_numbers/{number}/webhooks/{number_webhook}", None, "", 200),
    (
        "PATCH",
        "/whatsapp/phone_numbers/{number}/webhooks/{number_webhook}",
        {"whatsapp_webhook": {"active": False}},
        "",
        200,
    ),
    (
        "POST",
        "/whatsapp/webhooks",
        {"whatsapp_webhook": {"url": URL, "events": ["whatsapp.phone_number.created"]}},
        "webhook",
        201,
    ),
    ("GET", "/whatsapp/webhooks", None, "", 200),
    ("GET", "/whatsapp/webhooks/{webhook}", None, "", 200),
    (
        "PATCH",
        "/whatsapp/webhooks/{webhook}",
        {"whatsapp_webhook": {"secret_key": "new"}},
        "",
        200,
    ),
    ("POST", "/whatsapp/webhooks/{webhook}/test", {}, "", 200),
    ("POST", "/whatsapp/webhooks/{webhook}/test", {"event_type": RECEIVED}, "", 422),
    ("GET", "/webhook_deliveries", None, "", 200),
    ("GET", "/whatsapp/accounts/200000000000001/funding", None, "", 200),
    ("DELETE", "/whatsapp/phone_numbers/{number}/webhooks/{number_webhook}", None, "", 204),
    ("DELETE", "/whatsapp/webhooks/{webhook}", None, "", 204),
    ("DELETE", "/whatsapp/phone_numbers/{number}", None, "", 204),
    ("DELETE", "/customers/{customer}", None, "", 204),
    ("GET", "/customers/{customer}", None, "", 404),
]
MESSAGE = {
    "messaging_product": "whatsapp",
    "to": "14155550199",
    "type": "template",
    "template": {"name": "hello", "language": {"code": "en_US"}},
}


def operations() -> set[tuple[str, str]]:
    return {
        (path, method.upper())
        for path, methods in CONTRACT["paths"].items()
        for method in methods
        if method in ("get", "post", "patch", "delete")
    }


def test_every_operation_is_answered_as_the_contract_says(box: Sandbox, box_api: Api) -> None:
    from tests.sandbox.support import check_against_contract

    box.faults(drop=True)
    ids: dict[str, str] = {}
    called: set[tuple[str | None, str]] = set()
    for method, path, body, creates, status in CALLS:
        response = box_api(method, path.format(**ids), body)
        assert response.status_code == status, f"{method} {path}: {response.text}"
        called.add((find_path(path.split("?")[0]), method))
        if creates:
            ids[creates] = response.json()["data"]["id"]
    box.add_number(phone_number_id=NUMBER)
    response = requests.post(
        f"{box.url}{META_PATH}/{NUMBER}/messages",
        json=MESSAGE,
        headers={"X-API-Key": box.api_key},
        timeout=10,
    )
    assert response.status_code == 200
    check_against_contract(response)
    called.add((find_path(f"/{NUMBER}/messages"), "POST"))
    assert called == operations()


@pytest.mark.parametrize("status", [401, 429])
def test_every_operation_can_be_refused_as_the_contract_says(
    box: Sandbox, box_api: Api, status: int
) -> None:
    from tests.sandbox.support import check_against_contract

    key = box.api_key if status == 429 else "wrong"
    box.set_rate_limit(1)
    box_api("GET", "/customers")
    for path, method in sorted(operations()):
        mount = META_PATH if path.endswith("/messages") else "/platform/v1"
        url = f"{box.url}{mount}{path}".replace("{", "").replace("}", "")
        response = requests.request(method, url, json={}, headers={"X-API-Key": key}, timeout=10)
        assert response.status_code == status, f"{method} {path}"
        if status == 401 or not path.endswith("/health"):
            check_against_contract(response)
