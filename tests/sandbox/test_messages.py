"""Messages to and from a number, and the events that its webhooks get."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

PERSON = "15551234567"
RECEIVED = "whatsapp.message.received"
STATUS_EVENTS = [f"whatsapp.message.{name}" for name in ("sent", "delivered", "read", "failed")]
TEMPLATE = {"name": "order_ready", "language": {"code": "en_US"}}


@pytest.fixture
def number(box: Sandbox) -> dict[str, Any]:
    return box.add_number(phone_number="+14155550100", business_account_id="42")


def bodies(box: Sandbox, receiver: Receiver, count: int) -> list[Any]:
    box.wait_for_deliveries(count)
    return [received.json for received in receiver.received]


def events(receiver: Receiver) -> list[str]:
    return [received.headers["X-Webhook-Event"] for received in receiver.received]


def test_a_received_message_goes_to_the_webhooks_of_its_number(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box_api.number_webhook(pk, url=box_receiver.url, events=[RECEIVED])
    box_api.number_webhook(pk, url=box_receiver.url, events=[RECEIVED], active=False)
    box_api.number_webhook(pk, url=box_receiver.url, events=["whatsapp.message.sent"])
    other = box.add_number()["phone_number_id"]
    box_api.number_webhook(other, url=box_receiver.url, events=[RECEIVED])
    deliveries = box.receive_message(pk, sender="+1 555 123-4567", body="Hi ü")
    [body] = bodies(box, box_receiver, 1)
    assert len(deliveries) == 1
    message, conversation = body["message"], body["conversation"]
    assert (message["type"], message["text"], message["from"]) == ("text", {"body": "Hi ü"}, PERSON)
    assert message["id"].startswith("wamid.")
    assert message["timestamp"].isdecimal()
    assert message["kapso"]["direction"] == "inbound"
    assert message["kapso"]["content"] == "Hi ü"
    assert conversation["phone_number"] == f"+{PERSON}"
    assert conversation["status"] == "active"
    assert conversation["kapso"]["last_message_text"] == "Hi ü"
    assert (body["is_new_conversation"], body["phone_number_id"]) == (True, pk)
    [received] = box_receiver.received
    signature = hmac.new(b"number-secret", received.body, hashlib.sha256).hexdigest()
    assert received.headers["X-Webhook-Signature"] == signature
    assert received.headers["X-Webhook-Event"] == RECEIVED


def test_a_conversation_begins_once_for_each_person_and_number(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk, other = number["phone_number_id"], box.add_number()["phone_number_id"]
    created = "whatsapp.conversation.created"
    for each in (pk, other):
        box_api.number_webhook(each, url=box_receiver.url, events=[RECEIVED, created])
    for target, person in ((pk, PERSON), (pk, PERSON), (pk, "15557654321"), (other, PERSON)):
        box.receive_message(target, sender=person)
    received = bodies(box, box_receiver, 7)
    assert sorted(events(box_receiver)) == sorted([RECEIVED] * 4 + [created] * 3)
    new = [body["is_new_conversation"] for body in received if "message" in body]
    assert sorted(new) == [False, True, True, True]
    assert len({body["conversation"]["id"] for body in received}) == 3
    counts = [body["conversation"]["kapso"]["messages_count"] for body in received]
    assert max(counts) == 2


@pytest.mark.parametrize(("sender", "body"), [("nobody", "Hello"), (PERSON, "")])
def test_a_message_needs_a_sender_and_a_text(
    box: Sandbox, number: dict[str, Any], sender: str, body: str
) -> None:
    with pytest.raises(SandboxError, match="422"):
        box.receive_message(number["phone_number_id"], sender=sender, body=body)


def test_buffered_messages_come_as_a_batch_of_one_conversation(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    buffer = {"buffer_enabled": True, "max_buffer_size": 2, "buffer_window_seconds": 60}
    box_api.number_webhook(
        pk, url=box_receiver.url, events=[RECEIVED, "whatsapp.message.sent"], **buffer
    )
    assert box.receive_message(pk, sender=PERSON, body="one") == []
    assert box.receive_message(pk, sender="15557654321", body="other") == []
    assert len(box.receive_message(pk, sender=PERSON, body="two")) == 1
    [batch] = bodies(box, box_receiver, 1)
    assert (batch["type"], batch["batch"]) == (RECEIVED, True)
    assert [row["message"]["text"]["body"] for row in batch["data"]] == ["one", "two"]
    assert batch["batch_info"] == {
        "size": 2,
        "window_ms": 60_000,
        "conversation_id": batch["data"][0]["conversation"]["id"],
    }
    headers = box_receiver.received[0].headers
    assert (headers["X-Webhook-Batch"], headers["X-Batch-Size"]) == ("true", "2")
    box_api.send(pk)  # only received messages are collected
    bodies(box, box_receiver, 2)
    assert "X-Webhook-Batch" not in box_receiver.received[1].headers


@pytest.mark.slow
def test_a_single_message_comes_as_a_batch_when_the_window_is_over(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    buffer = {"buffer_enabled": True, "buffer_window_seconds": 1}
    box_api.number_webhook(pk, url=box_receiver.url, events=[RECEIVED], **buffer)
    box.receive_message(pk, sender=PERSON, body="alone")
    [batch] = bodies(box, box_receiver, 1)
    assert [row["message"]["text"]["body"] for row in batch["data"]] == ["alone"]
    assert box_receiver.received[0].headers["X-Batch-Size"] == "1"


@pytest.mark.parametrize("event", [RECEIVED, "whatsapp.message.failed"])
def test_a_test_delivery_is_a_message_of_the_number(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any], event: str
) -> None:
    pk = number["phone_number_id"]
    other = "whatsapp.conversation.ended"
    buffer = {"buffer_enabled": True, "max_buffer_size": 1}
    webhook = box_api.number_webhook(pk, url=box_receiver.url, events=[event, other], **buffer)
    path = f"/whatsapp/webhooks/{webhook['id']}/test"
    box_api("POST", path, {"event_type": event})
    [body] = bodies(box, box_receiver, 1)
    [body] = body["data"] if "batch" in body else [body]
    status = body["message"]["kapso"]["status"]
    assert (body["phone_number_id"], status) == (pk, event.rpartition(".")[2])
    assert ("from" in body["message"]) is (event == RECEIVED)
    box_api("POST", path, {"event_type": other})
    assert set(bodies(box, box_receiver, 2)[1]) == {"conversation", "phone_number_id"}


def test_any_payload_of_a_message_can_be_sent(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    buffer = {"buffer_enabled": True, "max_buffer_size": 1}
    box_api.number_webhook(pk, url=box_receiver.url, events=[RECEIVED], **buffer)
    for count, conversation in enumerate(({}, None, "x"), start=1):
        payload = {"phone_number_id": pk, "conversation": conversation}
        box.send_event(RECEIVED, payload=payload)
        assert bodies(box, box_receiver, count)[-1]["data"] == [payload]
        assert box_api("GET", "/webhook_deliveries").ok


# Sending


def test_a_text_is_sent_delivered_and_read(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box_api.number_webhook(pk, url=box_receiver.url, events=STATUS_EVENTS)
    box.receive_message(pk, sender=PERSON)
    answer = box_api.send(pk, to=f"+{PERSON}", biz_opaque_callback_data="order-7").json()
    assert answer["contacts"] == [{"input": f"+{PERSON}", "wa_id": PERSON}]
    received = bodies(box, box_receiver, 3)
    assert events(box_receiver) == STATUS_EVENTS[:3]
    for body, status in zip(received, ("sent", "delivered", "read"), strict=True):
        message = body["message"]
        assert message["id"] == answer["messages"][0]["id"]
        assert (message["to"], message["text"]) == (PERSON, {"body": "Hello"})
        assert (message["kapso"]["direction"], message["kapso"]["status"]) == ("outbound", status)
        assert message["kapso"]["statuses"][-1]["status"] == status
        assert message["kapso"]["statuses"][0]["biz_opaque_callback_data"] == "order-7"
        assert body["is_new_conversation"] is False
    assert len(received[2]["message"]["kapso"]["statuses"]) == 3


def test_a_template_needs_no_message_before(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box_api.number_webhook(pk, url=box_receiver.url, events=["whatsapp.message.sent"])
    assert box_api.send(pk, type="template", template=TEMPLATE).status_code == 200
    assert box_api.send(pk, to=None, recipient="US.1", type="template", template=TEMPLATE).ok
    first, second = sorted(bodies(box, box_receiver, 2), key=lambda body: "to" in body["message"])
    assert second["message"]["template"] == TEMPLATE
    assert first["conversation"]["business_scoped_user_id"] == "US.1"
    assert "phone_number" not in first["conversation"]


def test_what_is_no_phone_number_fails_afterwards(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box_api.number_webhook(pk, url=box_receiver.url, events=STATUS_EVENTS)
    assert box_api.send(pk, to="100", type="template", template=TEMPLATE).ok
    [body] = bodies(box, box_receiver, 1)
    assert events(box_receiver) == ["whatsapp.message.failed"]
    assert body["message"]["kapso"]["statuses"][-1]["errors"][0]["code"] == 131026


REFUSED = [
    ({"text": {"body": ""}}, 400, 100, "text.body is required"),
    ({"text": {"body": "x" * 4097}}, 400, 100, "4096"),
    ({"text": "Hello"}, 400, 100, "text is required"),
    ({"to": ""}, 400, 100, "to or recipient"),
    ({"to": None}, 400, 100, "to or recipient"),
    ({"type": "image"}, 400, 100, "type must be"),
    ({"messaging_product": "sms"}, 400, 100, "messaging_product"),
    ({"type": "template", "template": {"name": "x"}}, 400, 100, "language.code"),
    ({"type": "template", "template": {**TEMPLATE, "name": ""}}, 400, 100, "template.name"),
    ({"to": "15557654321"}, 422, 131047, "24 hours"),
]


@pytest.mark.parametrize(("message", "status", "code", "text"), REFUSED)
def test_what_meta_refuses(
    box: Sandbox,
    box_api: Api,
    number: dict[str, Any],
    message: dict[str, Any],
    status: int,
    code: int,
    text: str,
) -> None:
    pk = number["phone_number_id"]
    box.receive_message(pk, sender=PERSON)
    answer = box_api.send(pk, **message)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert text in error["error_data"]["details"]


@pytest.mark.parametrize(("hours", "refused"), [(23, False), (25, True)])
def test_free_text_is_refused_a_day_after_the_persons_last_message(
    monkeypatch: pytest.MonkeyPatch, hours: int, refused: bool
) -> None:
    from kapso_connect.sandbox import messages
    from kapso_connect.sandbox.state import Conversation, PhoneNumber, store

    heard_at = datetime.now(timezone.utc) - timedelta(hours=hours)
    conversation = Conversation("1", PERSON, last_inbound_at=heard_at)
    monkeypatch.setitem(store.conversations, conversation.id, conversation)
    number = PhoneNumber("1", "+1 415-555-0100")
    expected = pytest.raises(messages.MetaRefusal, match="24 hours") if refused else nullcontext()
    with expected:
        messages._check_text(number, PERSON, {"body": "Hello"})


def test_numbers_that_cannot_send(box: Sandbox, box_api: Api, number: dict[str, Any]) -> None:
    assert box_api.send("123").status_code == 404
    pk = number["phone_number_id"]
    box.patch_number(pk, status="DISCONNECTED")
    assert box_api.send(pk).json()["error"]["code"] == 133010
    fields = {"name": "Try", "kind": "sandbox", "access_token": "sandbox"}
    fields |= {"phone_number_id": "sandbox", "business_account_id": "sandbox"}
    path = f"/customers/{box_api.customer()['id']}/whatsapp/phone_numbers"
    box_api("POST", path, {"whatsapp_phone_number": fields})
    refused = box_api.send("sandbox", type="template", template=TEMPLATE)
    assert refused.status_code == 422
    assert "sandbox numbers" in refused.json()["error"]
    box.receive_message("sandbox", sender=PERSON)
    assert box_api.send("sandbox").ok


def test_sending_needs_the_key_and_can_be_made_to_fail(
    box: Sandbox, box_api: Api, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box.faults(api=[{"kind": "status", "status": 402, "match": "POST /meta/"}])
    assert box_api.send(pk).status_code == 402
    assert box.requests()[-1]["path"].endswith(f"/{pk}/messages")
    box_api.http.headers["X-API-Key"] = "wrong"
    box.clear_faults()
    assert box_api.send(pk).status_code == 401


def test_metas_form_is_metas_body(
    box: Sandbox, box_api: Api, box_receiver: Receiver, number: dict[str, Any]
) -> None:
    pk = number["phone_number_id"]
    box_api.number_webhook(pk, url=box_receiver.url, kind="meta")
    box.receive_message(pk, sender=PERSON, body="Hi")
    box.wait_for_deliveries(1)
    box_api.send(pk, to="100", type="template", template=TEMPLATE)
    received, failed = bodies(box, box_receiver, 2)
    assert received["object"] == "whatsapp_business_account"
    assert received["entry"][0]["id"] == "42"
    value = received["entry"][0]["changes"][0]["value"]
    assert value["metadata"]["phone_number_id"] == pk
    assert value["messages"][0]["text"] == {"body": "Hi"}
    assert "kapso" not in json.dumps(received)
    [status] = failed["entry"][0]["changes"][0]["value"]["statuses"]
    assert (status["status"], status["recipient_id"]) == ("failed", "100")
    first = box_receiver.received[0]
    assert first.headers["X-Idempotency-Key"] == hashlib.sha256(first.body).hexdigest()
