from __future__ import annotations

import hashlib
import hmac
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.testing import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Received, Receiver

pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"
DELETED = "whatsapp.phone_number.deleted"
DISCONNECTED = "whatsapp.phone_number.disconnected"
RECONNECTED = "whatsapp.phone_number.reconnected"
OFFBOARDED = "whatsapp.phone_number.offboarded"


def signature(body: bytes, secret: bytes = b"s3cret") -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def events(receiver: Receiver) -> list[str]:
    return [received.headers["X-Webhook-Event"] for received in receiver.received]


def ids(receiver: Receiver) -> list[str]:
    return [received.json["phone_number_id"] for received in receiver.received]


def test_a_connection_is_announced_flat_and_signed(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    customer = box_api.customer("Ünïcode", external_customer_id="c-1")
    box.complete(box_api.link(customer)["url"])
    box.wait_for_deliveries(1)
    (received,) = box_receiver.received
    (number,) = box.state()["phone_numbers"]
    assert received.json == {
        "phone_number_id": number["phone_number_id"],
        "project": {"id": box.state()["project_id"]},
        "customer": {"id": customer["id"], "external_id": "c-1"},
    }
    headers = received.headers
    assert headers["X-Webhook-Event"] == CREATED
    assert headers["X-Webhook-Signature"] == signature(received.body)
    assert headers["X-Webhook-Payload-Version"] == "v2"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Idempotency-Key"]
    assert "X-Webhook-Batch" not in headers


def test_each_event_has_a_key_of_its_own(box: Sandbox, box_receiver: Receiver) -> None:
    for _ in range(2):
        box.add_number(webhook=True)
    box.wait_for_deliveries(2)
    assert len({received.headers["X-Idempotency-Key"] for received in box_receiver.received}) == 2


def test_a_project_number_has_no_customer(box: Sandbox, box_receiver: Receiver) -> None:
    box.add_number(webhook=True)
    box.wait_for_deliveries(1)
    assert set(box_receiver.received[0].json) == {"phone_number_id", "project"}


def test_a_deletion_is_announced_when_teardown_starts(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    path = f"/whatsapp/phone_numbers/{box.add_number()['phone_number_id']}"
    box_api("DELETE", path)
    box_api("DELETE", path)
    assert box_api("GET", path).status_code == 200
    box.wait_for_deliveries(1)
    time.sleep(0.25)
    assert events(box_receiver) == [DELETED]


def test_deleting_a_customer_tears_its_numbers_down(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    customer = box_api.customer()
    number = box.add_number(customer_id=customer["id"])
    box_api("DELETE", f"/customers/{customer['id']}")
    box.wait_for_deliveries(1)
    assert box_receiver.received[0].json["customer"]["id"] == customer["id"]
    assert ids(box_receiver) == [number["phone_number_id"]]


# Every event


@pytest.mark.parametrize(
    ("event", "source", "status"),
    [
        (DISCONNECTED, "PARTNER_REMOVED", "DISCONNECTED"),
        (RECONNECTED, "ACCOUNT_RECONNECTED", "CONNECTED"),
        (OFFBOARDED, "ACCOUNT_OFFBOARDED", "DISCONNECTED"),
    ],
)
def test_an_event_is_sent_and_applied(
    box: Sandbox, box_receiver: Receiver, event: str, source: str, status: str
) -> None:
    number = box.add_number(status="PENDING", is_coexistence=True, business_account_id="42")
    box.send_event(event, phone_number_id=number["phone_number_id"], initiated_by="customer")
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    assert body.pop("id")
    assert datetime.fromisoformat(body.pop("occurred_at").replace("Z", "+00:00"))
    if event == DISCONNECTED:
        disconnection = body.pop("disconnection")
        assert disconnection == {"reason": None, "initiated_by": "customer"}
    assert body == {
        "event": event,
        "phone_number_id": number["phone_number_id"],
        "project": {"id": box.state()["project_id"]},
        "connection_type": "coexistence",
        "source": {"provider": "meta", "event": source, "business_account_id": "42"},
    }
    assert [row["status"] for row in box.state()["phone_numbers"]] == [status]


def test_a_disconnection_can_have_another_source(box: Sandbox, box_receiver: Receiver) -> None:
    number = box.add_number()["phone_number_id"]
    box.send_event(
        DISCONNECTED, phone_number_id=number, source_event="PARTNER_APP_UNINSTALLED", reason="left"
    )
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    # A number without a business account: what has no value is left out.
    assert body["source"] == {"provider": "meta", "event": "PARTNER_APP_UNINSTALLED"}
    assert body["disconnection"] == {"reason": "left", "initiated_by": None}


def test_an_offboarded_number_is_known_until_it_is_reconnected(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    number = box.add_number(is_coexistence=True)["phone_number_id"]
    path = f"/whatsapp/phone_numbers/{number}"
    box.send_event(OFFBOARDED, phone_number_id=number)
    assert box_api("GET", path).json()["data"]["status"] == "DISCONNECTED"
    assert box_api("GET", f"{path}/health").json()["status"] == "unhealthy"
    box.send_event(RECONNECTED, phone_number_id=number)
    assert box_api("GET", path).json()["data"]["status"] == "CONNECTED"
    assert box_api("GET", f"{path}/health").json()["status"] == "healthy"


def test_an_event_can_be_sent_without_being_applied(box: Sandbox, box_receiver: Receiver) -> None:
    number = box.add_number()["phone_number_id"]
    box.send_event(OFFBOARDED, phone_number_id=number, apply=False)
    box.wait_for_deliveries(1)
    assert box.state()["counts"]["phone_numbers"] == 1


@pytest.mark.parametrize(
    ("what", "source", "details"),
    [
        ("disabled", "DISABLED_UPDATE", {"ban": {"state": "DISABLE"}}),
        (
            "restricted",
            "ACCOUNT_RESTRICTION",
            {
                "restrictions": [
                    {
                        "type": "RESTRICTED_BIZ_INITIATED_MESSAGING",
                        "expires_at": "2030-01-01T00:00:00Z",
                    }
                ]
            },
        ),
        ("reinstated", "DISABLED_UPDATE", {"ban": {"state": "REINSTATE"}}),
        ("violation", "ACCOUNT_VIOLATION", {"violation": {"type": "SPAM"}}),
    ],
)
def test_an_account_event_is_one_delivery_with_all_numbers_of_the_account(
    box: Sandbox, box_receiver: Receiver, what: str, source: str, details: dict[str, Any]
) -> None:
    rows = [box.add_number(business_account_id="42") for _ in range(2)]
    box.add_number(business_account_id="43")
    event = f"whatsapp.account.{what}"
    box.send_event(event, phone_number_id=rows[0]["phone_number_id"])
    box.wait_for_deliveries(1)
    (received,) = box_receiver.received
    body = received.json
    assert body.pop("id").startswith("wae_")
    assert body.pop("occurred_at")
    assert body == {
        "event": event,
        "business_account_id": "42",
        "project": {"id": box.state()["project_id"]},
        "phone_numbers": [
            {"id": row["phone_number_id"], "display_phone_number": row["display_phone_number"]}
            for row in rows
        ],
        "source": {"provider": "meta", "event": source},
        **details,
    }


def test_an_account_event_of_a_number_without_an_account_is_about_that_number(
    box: Sandbox, box_receiver: Receiver
) -> None:
    box.add_number()
    number = box.add_number()
    box.send_event("whatsapp.account.disabled", phone_number_id=number["phone_number_id"])
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    assert [row["id"] for row in body["phone_numbers"]] == [number["phone_number_id"]]
    assert "business_account_id" not in body


@pytest.mark.parametrize(
    ("event", "keys"),
    [
        ("whatsapp.config.created", {"phone_number_id", "project"}),
        (
            "workflow.execution.handoff",
            {"event", "occurred_at", "project_id", "workflow_id"},
        ),
        (
            "project.event",
            {"id", "event", "name", "occurred_at", "project_id", "properties"},
        ),
        ("kapso_agent.run.completed", {"id", "event", "created_at", "data"}),
    ],
)
def test_other_events_of_the_project_have_their_own_shapes(
    box: Sandbox, box_receiver: Receiver, event: str, keys: set[str]
) -> None:
    box.send_event(event, phone_number_id=box.add_number()["phone_number_id"])
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    assert set(body) == keys
    assert body.get("event", event) == event


def test_the_older_field_names_can_be_sent(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    customer = box_api.customer(external_customer_id="c")
    number = box.add_number(customer_id=customer["id"])["phone_number_id"]
    box.send_event(CREATED, phone_number_id=number, legacy=True)
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    assert body["customer_id"] == customer["id"]
    assert body["customer"] == {"id": customer["id"], "external_customer_id": "c"}


def test_any_payload_and_any_event_can_be_sent(box: Sandbox, box_receiver: Receiver) -> None:
    payload = {"anything": [1, None, {"ü": "é"}]}
    box.send_event("brand.new.event", payload=payload, idempotency_key="my-key")
    box.wait_for_deliveries(1)
    (received,) = box_receiver.received
    assert received.json == payload
    assert events(box_receiver) == ["brand.new.event"]
    assert received.headers["X-Idempotency-Key"] == "my-key"


# To whom


def add_webhook(api: Api, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    fields = {"url": receiver.url, "secret_key": "other", "events": [DELETED], **fields}
    answer = api("POST", "/whatsapp/webhooks", {"whatsapp_webhook": fields})
    webhook: dict[str, Any] = answer.json()["data"]
    return webhook


def test_a_webhook_gets_its_events_signed_with_its_own_secret(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box.set_webhook(None)
    add_webhook(box_api, box_receiver, headers={"X-Extra": "yes"})
    add_webhook(box_api, box_receiver, active=False)
    number = box.add_number(webhook=True)
    add_webhook(
        box_api,
        box_receiver,
        events=["whatsapp.message.received"],
        phone_number_id=number["phone_number_id"],
    )
    box_api("DELETE", f"/whatsapp/phone_numbers/{number['phone_number_id']}")
    box.wait_for_deliveries(1)
    (received,) = box_receiver.received
    assert events(box_receiver) == [DELETED]
    assert received.headers["X-Webhook-Signature"] == signature(received.body, b"other")
    assert received.headers["X-Extra"] == "yes"


def test_an_old_payload_version_lacks_the_new_events(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box.set_webhook(None)
    wanted = [CREATED, DISCONNECTED]
    add_webhook(box_api, box_receiver, payload_version="v1", events=wanted, secret_key=None)
    number = box.add_number(webhook=True)["phone_number_id"]
    box.send_event(DISCONNECTED, phone_number_id=number)
    box.wait_for_deliveries(1)
    assert events(box_receiver) == [CREATED]
    assert box_receiver.received[0].headers["X-Webhook-Payload-Version"] == "v1"
    assert "X-Webhook-Signature" not in box_receiver.received[0].headers


def test_a_test_delivery_goes_to_one_webhook_even_when_it_is_paused(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    webhook = add_webhook(box_api, box_receiver, active=False, events=[DELETED, DISCONNECTED])
    path = f"/whatsapp/webhooks/{webhook['id']}/test"
    answer = box_api("POST", path, {"event_type": DISCONNECTED})
    assert answer.json() == {"data": {"success": True}}
    box.wait_for_deliveries(1)
    (received,) = box_receiver.received
    assert received.headers["X-Webhook-Signature"] == signature(received.body, b"other")
    assert events(box_receiver) == [DISCONNECTED]


# Again, and no more


def test_a_delivery_that_is_not_answered_200_is_retried_three_times(
    box: Sandbox, box_receiver: Receiver
) -> None:
    box_receiver.answers = [500, 204, 404]
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 204, 404, 200]
    assert delivery["state"] == "delivered"
    keys = {received.headers["X-Idempotency-Key"] for received in box_receiver.received}
    assert keys == {delivery["idempotency_key"]}
    assert len({received.body for received in box_receiver.received}) == 1


def test_a_delivery_fails_after_four_attempts(box: Sandbox, box_receiver: Receiver) -> None:
    box_receiver.answer = 500
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    assert delivery["state"] == "failed"
    assert len(delivery["attempts"]) == len(box_receiver.received) == 4


def test_a_redirect_is_not_followed(box: Sandbox, box_receiver: Receiver) -> None:
    box_receiver.answers, box_receiver.location = [302], box_receiver.url + "/elsewhere"
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    assert [attempt["status"] for attempt in delivery["attempts"]] == [302, 200]


def test_an_endpoint_that_is_down_is_an_error_of_the_attempt(box: Sandbox) -> None:
    box.set_webhook("http://127.0.0.1:9/")
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    assert {attempt["status"] for attempt in delivery["attempts"]} == {None}
    assert "ConnectionError" in delivery["attempts"][0]["error"]
    box.reset()


def test_retries_are_delayed() -> None:
    with Sandbox(webhook_url="http://127.0.0.1:9/", retry_scale=1.0) as sandbox:
        sandbox.add_number(webhook=True)
        deadline = time.monotonic() + 5
        while not (delivery := sandbox.deliveries()[0])["attempts"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert delivery["state"] == "pending"
    first, following = delivery["attempts"][0]["at"], delivery["next_attempt_at"]
    wait = datetime.fromisoformat(following[:-1]) - datetime.fromisoformat(first[:-1])
    assert 9.9 < wait.total_seconds() < 11


def test_a_webhook_that_keeps_failing_is_paused(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box_receiver.answer = 503
    box.seed(8, 1, webhooks=True)
    box.wait_for_deliveries(8)
    (webhook,) = box_api("GET", "/whatsapp/webhooks").json()["data"]
    assert webhook["active"] is False
    assert 20 <= len(box_receiver.received) < 32
    box_receiver.answer = 200
    box.add_number(webhook=True)
    assert len(box.deliveries()) == 8
    path = f"/whatsapp/webhooks/{webhook['id']}"
    box_api("PATCH", path, {"whatsapp_webhook": {"active": True}})
    box.add_number(webhook=True)
    box.wait_for_deliveries(9)
    assert box_api("GET", path).json()["data"]["active"] is True


def test_a_webhook_that_mostly_works_is_not_paused(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box_receiver.answers = [200] * 4 + [500] * 20
    for _ in range(9):
        box.add_number(webhook=True)
    box.wait_for_deliveries(9)
    assert box_api("GET", "/whatsapp/webhooks").json()["data"][0]["active"] is True


# Again, by hand


def test_a_delivery_is_sent_again_under_its_key_or_a_new_one(
    box: Sandbox, box_receiver: Receiver
) -> None:
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    box.resend(delivery["id"])
    box.resend(delivery["id"], new_key=True)
    box.wait_for_deliveries(3)
    keys = [received.headers["X-Idempotency-Key"] for received in box_receiver.received]
    assert keys.count(delivery["idempotency_key"]) == 2
    assert len(set(keys)) == 2
    assert len({received.body for received in box_receiver.received}) == 1


def test_the_delivery_page_shows_details_and_resends(box: Sandbox, box_receiver: Receiver) -> None:
    box_receiver.answers = [500]
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    page = requests.get(f"{box.url}/deliveries", timeout=10).text
    for part in (CREATED, box_receiver.url, delivery["idempotency_key"], "answered 500"):
        assert part in page
    assert delivery["body"].replace('"', "&quot;") in page
    form = {"target": delivery["id"], "button": "again"}
    url = f"{box.url}/press/resend"
    answer = requests.post(url, data=form, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/deliveries")
    box.wait_for_deliveries(2)


def test_an_unknown_delivery_cannot_be_sent_again(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match="404"):
        box.resend("nothing")


# Faults on the way


def bodies(receiver: Receiver) -> list[bytes]:
    return [received.body for received in receiver.received]


def test_duplicates_are_identical(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(duplicate=2)
    box.add_number(webhook=True)
    box.wait_for_deliveries(3)
    assert len(set(bodies(box_receiver))) == 1
    assert len({received.headers["X-Idempotency-Key"] for received in box_receiver.received}) == 1


def test_order_can_be_reversed(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(reorder=3)
    numbers = [box.add_number(webhook=True)["phone_number_id"] for _ in range(3)]
    box.wait_for_deliveries(3)
    assert ids(box_receiver) == numbers[::-1]


def test_held_deliveries_are_sent_when_the_faults_end(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(reorder=5)
    box.add_number(webhook=True)
    assert box.deliveries()[0]["state"] == "held"
    box.clear_faults()
    box.wait_for_deliveries(1)
    box.faults(batch=5)
    box.add_number(webhook=True)
    assert len(box.deliveries()) == 1
    box.clear_faults()
    box.wait_for_deliveries(2)
    assert box_receiver.received[1].json["batch_info"]["size"] == 1


def ids_of(batch: Received) -> list[str]:
    return [item["phone_number_id"] for item in batch.json["data"]]


def check_batch(received: Received, numbers: list[str]) -> None:
    body = received.json
    assert (body["type"], body["batch"]) == (CREATED, True)
    assert ids_of(received) == numbers
    assert received.headers["X-Webhook-Batch"] == "true"
    assert received.headers["X-Batch-Size"] == "2"
    assert received.headers["X-Webhook-Signature"] == signature(received.body)


def test_events_can_be_sent_in_batches(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(batch=2)
    numbers = [box.add_number(webhook=True)["phone_number_id"] for _ in range(4)]
    box.wait_for_deliveries(2)
    first = [numbers[0] in ids_of(received) for received in box_receiver.received].index(True)
    check_batch(box_receiver.received[first], numbers[:2])
    check_batch(box_receiver.received[1 - first], numbers[2:])


@pytest.mark.parametrize(("envelope", "name"), [(True, "event"), ("type", "type")])
def test_events_can_be_sent_in_an_envelope(
    box: Sandbox, box_receiver: Receiver, envelope: bool | str, name: str
) -> None:
    box.faults(envelope=envelope)
    number = box.add_number(webhook=True)["phone_number_id"]
    box.wait_for_deliveries(1)
    body = box_receiver.received[0].json
    assert body[name] == CREATED
    assert body["data"]["phone_number_id"] == number
    assert set(body) == {name, "data"}


def test_a_dropped_event_is_recorded_and_never_sent(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(drop=True)
    box.add_number(webhook=True)
    (delivery,) = box.wait_for_deliveries(1)
    assert (delivery["state"], box_receiver.received) == ("dropped", [])


def test_delivery_can_be_delayed(box: Sandbox, box_receiver: Receiver) -> None:
    box.faults(delay=0.3)
    started = time.monotonic()
    box.add_number(webhook=True)
    box.wait_for_deliveries(1)
    assert time.monotonic() - started >= 0.3


def test_the_webhook_can_be_answered_before_the_redirect(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box.faults(webhook_first=True)
    answering = box_receiver.before_answer = threading.Event()
    timer = threading.Timer(0.3, answering.set)
    timer.start()
    link = box_api.link(box_api.customer(), success_redirect_url="https://site.example/")
    assert box.complete(link["url"])
    assert answering.is_set()
    timer.join()
    assert box.deliveries()[0]["state"] == "delivered"
