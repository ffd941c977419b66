"""Numbers that are connected with Meta's credentials, changes of a number, and its webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

PRODUCTION = {
    "name": "Main",
    "phone_number_id": "123456789012345",
    "business_account_id": "42",
    "access_token": "EAAG-token",
}
SANDBOX = {
    "name": "Try",
    "kind": "sandbox",
    "phone_number_id": "sandbox",
    "business_account_id": "sandbox",
    "access_token": "sandbox",
}
UNKNOWN = "6f1f7c0e-6f0a-4d0e-9d3c-0b5a3f9f2c11"
SENT = "whatsapp.message.sent"


def connect(api: Api, customer_id: str, /, **fields: Any) -> Any:
    path = f"/customers/{customer_id}/whatsapp/phone_numbers"
    return api("POST", path, {"whatsapp_phone_number": fields})


def change(api: Api, phone_number_id: str, /, **fields: Any) -> Any:
    path = f"/whatsapp/phone_numbers/{phone_number_id}"
    return api("PATCH", path, {"whatsapp_phone_number": fields})


def test_a_number_is_connected_with_credentials(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    customer = box_api.customer()
    answer = connect(box_api, customer["id"], **PRODUCTION, calls_enabled=True)
    assert answer.status_code == 201
    assert "EAAG-token" not in answer.text
    number = answer.json()["data"]
    assert (number["customer_id"], number["name"]) == (customer["id"], "Main")
    assert (number["phone_number_id"], number["business_account_id"]) == ("123456789012345", "42")
    assert (number["calls_enabled"], number["inbound_processing_enabled"]) == (True, True)
    listed = box_api("GET", "/whatsapp/phone_numbers").json()["data"]
    assert listed == [number]
    box.wait_for_deliveries(1)
    assert box_receiver.received[0].headers["X-Webhook-Event"] == "whatsapp.phone_number.created"
    assert connect(box_api, customer["id"], **PRODUCTION).status_code == 409
    assert connect(box_api, customer["id"], **SANDBOX).json()["data"]["id"] == "sandbox"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({**PRODUCTION, "name": " "}, "name can't be blank"),
        ({k: v for k, v in PRODUCTION.items() if k != "access_token"}, "access_token can't be"),
        ({**PRODUCTION, "access_token": ""}, "access_token can't be empty"),
        ({**PRODUCTION, "phone_number_id": "x"}, "phone_number_id must be"),
        ({**PRODUCTION, "kind": "test"}, "kind is not included"),
        ({**PRODUCTION, "kind": "sandbox"}, 'must be "sandbox"'),
        ({**SANDBOX, "kind": "production"}, 'can\'t be "sandbox"'),
    ],
)
def test_credentials_that_are_not_valid_are_422(
    box_api: Api, fields: dict[str, Any], text: str
) -> None:
    answer = connect(box_api, box_api.customer()["id"], **fields)
    assert answer.status_code == 422
    assert text in answer.json()["error"]


def test_a_number_is_changed(box: Sandbox, box_api: Api) -> None:
    pk = box.add_number()["phone_number_id"]
    health = box_api("GET", f"/whatsapp/phone_numbers/{pk}/health").json()["timestamp"]
    changed = change(box_api, pk, name="New", inbound_processing_enabled=False).json()["data"]
    assert (changed["name"], changed["inbound_processing_enabled"]) == ("New", False)
    # Kapso drops the cached health when a number's configuration changes.
    assert box_api("GET", f"/whatsapp/phone_numbers/{pk}/health").json()["timestamp"] > health
    assert change(box_api, pk, name="").status_code == 422
    assert change(box_api, pk).status_code == 400
    assert change(box_api, "1", name="New").status_code == 404


def test_a_sandbox_number_becomes_a_real_one(box: Sandbox, box_api: Api) -> None:
    connect(box_api, box_api.customer()["id"], **SANDBOX)
    taken = box.add_number()["phone_number_id"]
    credentials = {k: v for k, v in PRODUCTION.items() if k != "name"}
    assert change(box_api, "sandbox", kind="production").status_code == 422
    assert change(box_api, "sandbox", phone_number_id="1").status_code == 422
    again = {**credentials, "phone_number_id": taken, "kind": "production"}
    assert change(box_api, "sandbox", **again).status_code == 422
    webhook = box_api.number_webhook("sandbox", url="https://a.example/hook", events=[SENT])
    changed = change(box_api, "sandbox", kind="production", **credentials).json()["data"]
    assert changed["phone_number_id"] == "123456789012345"
    assert box_api("GET", "/whatsapp/phone_numbers/sandbox").status_code == 404
    assert box_api("GET", "/whatsapp/phone_numbers/123456789012345").json()["data"] == changed
    webhooks = box_api("GET", "/whatsapp/phone_numbers/123456789012345/webhooks").json()["data"]
    assert [row["id"] for row in webhooks] == [webhook["id"]]


def test_a_new_token_ends_an_access_error(box: Sandbox, box_api: Api) -> None:
    pk = box.add_number(access_error="The access token has expired")["phone_number_id"]
    path = f"/whatsapp/phone_numbers/{pk}/health"
    assert box_api("GET", path).json()["status"] == "error"
    change(box_api, pk, name="New")
    assert box_api("GET", path).json()["status"] == "error"
    change(box_api, pk, access_token="new")
    assert box_api("GET", path).json()["status"] == "healthy"


# Webhooks of a number


def test_a_webhook_of_a_number_is_created_read_changed_and_deleted(
    box: Sandbox, box_api: Api
) -> None:
    pk, other = box.add_number()["phone_number_id"], box.add_number()["phone_number_id"]
    webhook = box_api.number_webhook(pk, url="https://a.example/hook", events=[SENT])
    base = f"/whatsapp/phone_numbers/{pk}/webhooks"
    path = f"{base}/{webhook['id']}"
    assert (webhook["phone_number_id"], webhook["headers"]) == (pk, {})
    assert box_api("GET", path).json()["data"] == webhook
    changed = box_api("PATCH", path, {"whatsapp_webhook": {"active": False}}).json()["data"]
    assert changed["active"] is False
    # Those of the project and of all numbers are in one list.
    assert box_api("GET", "/whatsapp/webhooks").json()["data"] == [changed]
    assert box_api("GET", f"/whatsapp/phone_numbers/{other}/webhooks").json()["data"] == []
    elsewhere = path.replace(pk, other)
    for method in ("GET", "PATCH", "DELETE"):
        assert box_api(method, elsewhere).status_code == 404
    assert box_api("DELETE", path).status_code == 204
    assert box_api("GET", base).json()["data"] == []


def test_webhooks_of_a_number_are_filtered(box: Sandbox, box_api: Api) -> None:
    pk = box.add_number()["phone_number_id"]
    a = box_api.number_webhook(pk, url="https://a.example/hook", events=[SENT], active=False)
    b = box_api.number_webhook(pk, url="https://b.example/hook", kind="meta")
    path = f"/whatsapp/phone_numbers/{pk}/webhooks"
    for query, found in [
        ("url_contains=a.ex", [a]),
        ("kind=meta", [b]),
        ("active=true", [b]),
        ("active=false", [a]),
        ("page=1", [b, a]),
    ]:
        rows = box_api("GET", f"{path}?{query}").json()["data"]
        assert [row["id"] for row in rows] == [row["id"] for row in found]
    assert box_api("GET", f"{path}?active=maybe").status_code == 422


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"secret_key": "s", "events": [SENT]}, "url can't be blank"),
        ({"url": "https://x.example", "events": [SENT]}, "secret_key can't be blank"),
        ({"url": "https://x.example", "secret_key": "s"}, "events can't be blank"),
        (
            {"url": "https://x.example", "secret_key": "s", "events": ["project.event"]},
            'unsupported events: "project.event"',
        ),
        (
            {"url": "https://x.example", "secret_key": "s", "kind": "meta", "events": ["x"]},
            'unsupported events: "x"',
        ),
    ],
)
def test_a_webhook_of_a_number_that_is_not_valid_is_422(
    box: Sandbox, box_api: Api, fields: dict[str, Any], text: str
) -> None:
    path = f"/whatsapp/phone_numbers/{box.add_number()['phone_number_id']}/webhooks"
    answer = box_api("POST", path, {"whatsapp_webhook": fields})
    assert answer.status_code == 422
    assert text in answer.json()["error"]


def test_unknown_numbers_have_no_webhooks(box_api: Api) -> None:
    fields = {"url": "https://x.example", "secret_key": "s", "events": [SENT]}
    path = "/whatsapp/phone_numbers/123/webhooks"
    assert box_api("GET", path).status_code == 404
    assert box_api("POST", path, {"whatsapp_webhook": fields}).status_code == 404
    assert box_api("GET", f"{path}/{UNKNOWN}").status_code == 404
    assert connect(box_api, UNKNOWN, **PRODUCTION).status_code == 404


def test_webhooks_go_with_their_number(box: Sandbox, box_api: Api) -> None:
    pk, other = (box.add_number()["phone_number_id"] for _ in range(2))
    for number in (pk, other):
        box_api.number_webhook(number, url="https://site.example/", events=[SENT])
    assert box_api("DELETE", f"/whatsapp/phone_numbers/{pk}").status_code == 204
    left = box_api("GET", "/whatsapp/webhooks").json()["data"]
    assert [row["phone_number_id"] for row in left] == [other]
