"""Webhook subscriptions of the project and of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"
DELETED = "whatsapp.phone_number.deleted"
RECEIVED = "whatsapp.message.received"
URL = "https://site.example/hook"
NUMBER = "123456789012345"
# A valid webhook of one number, in Kapso's form.
OF_NUMBER = {"phone_number_id": NUMBER, "secret_key": "s", "events": [RECEIVED]}


@pytest.fixture
def number(box: Sandbox) -> dict[str, Any]:
    return box.add_number(phone_number_id=NUMBER)


def create(api: Api, **fields: Any) -> Any:
    return api("POST", "/whatsapp/webhooks", {"whatsapp_webhook": {"url": URL, **fields}})


def created(api: Api, **fields: Any) -> dict[str, Any]:
    response = create(api, **fields)
    assert response.status_code == 201, response.text
    webhook: dict[str, Any] = response.json()["data"]
    return webhook


def change(api: Api, webhook: dict[str, Any], **fields: Any) -> Any:
    return api("PATCH", f"/whatsapp/webhooks/{webhook['id']}", {"whatsapp_webhook": fields})


def error(response: Any) -> str:
    text: str = response.json()["error"]
    return text


def test_a_webhook_is_created_read_changed_and_deleted(box_api: Api) -> None:
    from tests.sandbox.support import CONTRACT

    events = [CREATED, "workflow.execution.failed", "kapso_agent.run.completed"]
    webhook = created(box_api, events=events, secret_key="s", headers={"X-Extra": "1"})
    path = f"/whatsapp/webhooks/{webhook['id']}"
    assert set(webhook) == set(CONTRACT["components"]["schemas"]["Webhook"]["properties"])
    assert webhook["events"] == events
    assert box_api("GET", path).json()["data"] == webhook
    changed = change(box_api, webhook, active=False, kind="kapso").json()["data"]
    assert changed["active"] is False
    assert box_api("GET", "/whatsapp/webhooks?kind=kapso").json()["data"] == [changed]
    assert box_api("GET", "/whatsapp/webhooks?kind=meta").json()["data"] == []
    assert box_api("DELETE", path).status_code == 204
    assert box_api("GET", "/whatsapp/webhooks").json()["data"] == []


def test_a_webhook_has_kapsos_defaults(box_api: Api) -> None:
    webhook = created(box_api)
    defaults = {
        "kind": "kapso",
        "events": [],
        "active": True,
        "headers": {},
        "payload_version": "v2",
        "phone_number_id": None,
        "secret_key": None,
        "buffer_enabled": False,
        "buffer_window_seconds": 5,
        "max_buffer_size": 50,
        "buffer_events": [],
        "inactivity_minutes": 60,
    }
    assert {name: webhook[name] for name in defaults} == defaults


def test_headers_are_never_null(box_api: Api) -> None:
    webhook = created(box_api, headers=None)
    assert webhook["headers"] == {}
    change(box_api, webhook, headers={"X-A": "b"})
    assert change(box_api, webhook, headers=None).json()["data"]["headers"] == {}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"url": "ftp://site.example"}, "url is not a valid URL"),
        ({"events": "all"}, "events must be a list"),
        ({"events": [7]}, "events[0] must be a string"),
        ({"kind": "other"}, "kind is not included"),
        ({"active": "yes"}, "active must be true or false"),
        ({"secret_key": 5}, "secret_key must be a string"),
        ({"secret_key": ""}, "secret_key can't be empty"),
        ({"headers": {"X-A": "a\r\nb"}}, "headers must be"),
        ({"headers": {"X A": "b"}}, "headers must be"),
        ({"payload_version": "v9"}, "payload_version"),
        ({"buffer_window_seconds": 0}, "buffer_window_seconds must be between 1 and 60"),
        ({"buffer_window_seconds": 61}, "buffer_window_seconds must be between 1 and 60"),
        ({"max_buffer_size": 0}, "max_buffer_size must be between 1 and 100"),
        ({"max_buffer_size": 101}, "max_buffer_size must be between 1 and 100"),
        ({"inactivity_minutes": 0}, "inactivity_minutes must be between 1 and 1440"),
        ({"inactivity_minutes": 1441}, "inactivity_minutes must be between 1 and 1440"),
        ({"buffer_events": [CREATED]}, f'Events contains unsupported events: "{CREATED}"'),
        (
            {"events": [CREATED, "whatsapp.nonsense", "workflow.execution.done"]},
            'Events contains unsupported events: "whatsapp.nonsense", "workflow.execution.done"',
        ),
        ({"events": [RECEIVED]}, f'Events contains unsupported events: "{RECEIVED}"'),
        ({"kind": "meta"}, "phone_number_id is required"),
        ({"phone_number_id": "x"}, "phone_number_id must be"),
        ({**OF_NUMBER, "events": [CREATED]}, f'Events contains unsupported events: "{CREATED}"'),
        ({**OF_NUMBER, "events": []}, "Validation failed: events can't be blank"),
        ({**OF_NUMBER, "secret_key": None}, "Validation failed: secret_key can't be blank"),
        ({"phone_number_id": NUMBER, "events": [RECEIVED]}, "Validation failed: secret_key"),
        ({"phone_number_id": NUMBER, "secret_key": "s"}, "Validation failed: events"),
        ({**OF_NUMBER, "kind": "meta", "buffer_enabled": True}, "buffer_enabled is not supported"),
    ],
)
def test_a_webhook_that_is_not_valid_is_422_and_not_saved(
    box_api: Api, number: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    response = create(box_api, **fields)
    assert response.status_code == 422
    assert error(response).startswith(text)
    assert box_api("GET", "/whatsapp/webhooks").json()["data"] == []


def test_a_webhook_needs_a_url(box_api: Api) -> None:
    response = box_api("POST", "/whatsapp/webhooks", {"whatsapp_webhook": {"active": True}})
    assert (response.status_code, error(response)) == (422, "Validation failed: url can't be blank")


def test_a_webhook_for_an_unknown_number_is_404(box_api: Api) -> None:
    assert create(box_api, **{**OF_NUMBER, "phone_number_id": "9"}).status_code == 404


def test_webhooks_of_the_project_and_of_numbers_are_listed_together(
    box_api: Api, number: dict[str, Any]
) -> None:
    first, second = created(box_api, events=[CREATED]), created(box_api, **OF_NUMBER)
    rows = box_api("GET", "/whatsapp/webhooks").json()["data"]
    assert [(row["id"], row["phone_number_id"]) for row in rows] == [
        (second["id"], NUMBER),
        (first["id"], None),
    ]


def test_a_webhook_in_metas_form_gets_everything_of_one_number(
    box_api: Api, number: dict[str, Any]
) -> None:
    webhook = created(box_api, **OF_NUMBER, kind="meta")
    assert (webhook["kind"], webhook["events"]) == ("meta", [])
    again = create(box_api, phone_number_id=NUMBER, secret_key="s", kind="meta")
    assert (again.status_code, "already has" in error(again)) == (422, True)
    created(box_api, **OF_NUMBER)
    changed = change(box_api, webhook, events=[RECEIVED], active=False).json()["data"]
    assert (changed["events"], changed["active"]) == ([], False)
    assert change(box_api, webhook, buffer_enabled=True).status_code == 422


@pytest.mark.parametrize(
    "fields",
    [{"kind": "meta"}, {"events": [CREATED]}, {"events": []}, {"secret_key": None}, {"url": ""}],
)
def test_a_change_keeps_to_the_rules_of_the_scope(
    box_api: Api, number: dict[str, Any], fields: dict[str, Any]
) -> None:
    webhook = created(box_api, **OF_NUMBER)
    assert change(box_api, webhook, **fields).status_code == 422
    assert box_api("GET", "/whatsapp/webhooks").json()["data"] == [webhook]


@pytest.mark.parametrize(
    ("body", "status", "sent"),
    [
        ({}, 200, [CREATED]),
        ({"event_type": DELETED}, 200, [DELETED]),
        ({"event_type": "whatsapp.phone_number.offboarded"}, 422, []),
        ({"event_type": "nonsense"}, 422, []),
        ({"event_type": None}, 422, []),
        ([], 400, []),
    ],
)
def test_a_test_is_of_an_event_of_the_webhook(
    box: Sandbox, box_api: Api, body: object, status: int, sent: list[str]
) -> None:
    webhook = created(box_api, events=[CREATED, DELETED])
    box.faults(drop=True)
    response = box_api("POST", f"/whatsapp/webhooks/{webhook['id']}/test", body)
    assert response.status_code == status
    assert [row["event"] for row in box.deliveries()] == sent


def test_a_webhook_without_events_cannot_be_tested(box_api: Api) -> None:
    path = f"/whatsapp/webhooks/{created(box_api)['id']}/test"
    assert box_api("POST", path, {}).status_code == 422
