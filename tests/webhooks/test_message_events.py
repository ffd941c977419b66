"""Events about messages that arrive at the webhook for connections: announced, and not stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kapso_connect.models import Connection, TimelineEvent, WebhookEvent
from kapso_connect.signals import webhook_received

from ..factories import (
    CREATED,
    DELETED,
    listening,
    make_connection,
    make_customer,
    payload_for,
    post,
)

pytestmark = pytest.mark.django_db(transaction=True)

RECEIVED = "whatsapp.message.received"
META = {"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": []}]}
NAMES = [
    RECEIVED,
    "whatsapp.message.failed",
    "whatsapp.message.comes_next",
    "whatsapp.conversation.created",
    "whatsapp.contact.identity_changed",
    "whatsapp.meta_business_agent.handover",
]


def message(number: int = 1) -> dict[str, Any]:
    return {
        "message": {"id": f"wamid.{number}", "type": "text", "text": {"body": "Hello"}},
        "phone_number_id": "123",
    }


@contextmanager
def receiver(function: Callable[..., object], name: str = "a receiver") -> Iterator[None]:
    webhook_received.connect(function, dispatch_uid=name)
    try:
        yield
    finally:
        webhook_received.disconnect(dispatch_uid=name)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_announced_and_not_stored(name: str, django_assert_num_queries: Any) -> None:
    with listening("webhook_received") as heard, django_assert_num_queries(0):
        response = post(message(), event=name)
    assert (response.status_code, response.json()) == (200, {"received": 1, "duplicates": 0})
    arguments = heard.only("webhook_received")
    assert arguments["event_name"] == name
    assert arguments["payload"] == message()
    assert arguments["source"] == "webhook"
    assert (arguments["webhook_event"], arguments["event"]) == (None, None)
    assert arguments["sender"] is WebhookEvent
    assert not WebhookEvent.objects.exists()
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize("header", ["", RECEIVED, DELETED])
def test_metas_own_body_is_announced_and_not_stored(header: str) -> None:
    with listening("webhook_received") as heard:
        assert post(META, event=header).status_code == (200)
    if header != DELETED:
        assert heard.only("webhook_received")["payload"] == META
        assert not WebhookEvent.objects.exists()
    assert len(heard) == 1


def test_without_a_receiver_it_is_acknowledged() -> None:
    assert post(message(), event=RECEIVED).json() == {"received": 1, "duplicates": 0}


def test_batch_is_announced_message_by_message() -> None:
    batch = {"type": RECEIVED, "batch": True, "data": [message(1), message(2)]}
    with listening("webhook_received") as heard:
        assert post(batch).json() == {"received": 2, "duplicates": 0}
    ids = [arguments["payload"]["message"]["id"] for _, arguments in heard]
    assert ids == ["wamid.1", "wamid.2"]


def test_thousand_messages_leave_no_rows() -> None:
    for number in range(1000):
        assert post(message(number), event=RECEIVED).status_code == 200
    assert not WebhookEvent.objects.exists()
    assert not TimelineEvent.objects.exists()


def test_batch_of_messages_and_connections(caplog: Any) -> None:
    customer = make_customer()
    created = {"event": CREATED, "data": payload_for(customer, "4711")}
    batch = {"batch": True, "data": [{"event": RECEIVED, "data": message()}, created]}
    for received, duplicates in ((2, 0), (1, 1)):
        with listening("webhook_received") as heard:
            answer = post(batch, key="k").json()
        assert answer == {"received": received, "duplicates": duplicates}
        names = [arguments["event_name"] for _, arguments in heard]
        assert names == [CREATED, RECEIVED][duplicates:]
    assert Connection.objects.get().phone_number_id == "4711"
    assert WebhookEvent.objects.get().event == CREATED


def test_all_receivers_are_called_and_an_error_lets_kapso_send_it_again(caplog: Any) -> None:
    heard: list[str] = []

    def fail(**kwargs: Any) -> None:
        raise ValueError("full")

    with receiver(fail, "broken"), receiver(lambda **kwargs: heard.append("ok"), "working"):
        batch = {"type": RECEIVED, "batch": True, "data": [message(1), message(2)]}
        response = post(batch)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "10"
    assert heard == ["ok", "ok"]
    raised = [row for row in caplog.records if "kapso_event" in vars(row)]
    events = [vars(row)["kapso_event"] for row in raised]
    assert events == ["signal.receiver_raised"], "one traceback, not one for each message"
    assert {vars(row)["receiver"] for row in raised} == {"broken"}


def test_error_of_a_receiver_of_messages_costs_no_connection() -> None:
    customer = make_customer()
    created = {"event": CREATED, "data": payload_for(customer, "4711")}
    batch = {"batch": True, "data": [{"event": RECEIVED, "data": message()}, created]}

    def fail(event_name: str, **kwargs: Any) -> None:
        if event_name == RECEIVED:
            raise ValueError

    with receiver(fail):
        assert post(batch).status_code == 503
    assert Connection.objects.get().is_connected


def test_log_has_no_content(caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "kapso_connect.webhook")
    with listening("webhook_received"):
        post(message(), event=RECEIVED)
    (record,) = [r for r in caplog.records if vars(r).get("kapso_event") == "webhook.message"]
    fields = vars(record)
    assert (fields["event_name"], fields["count"]) == (RECEIVED, 1)
    assert (fields["receivers"], fields["raised"]) == (1, [])
    assert "Hello" not in caplog.text


# What the name, which is not signed, can do


def test_connection_under_the_name_of_a_message_suppresses_nothing() -> None:
    connection = make_connection()
    body = payload_for(connection.customer, "4711")
    for key in ("k", "k", "other"):
        assert post(body, event=RECEIVED, key=key).json() == {"received": 1, "duplicates": 0}
    assert post(body, event=CREATED, key="k").json() == {"received": 1, "duplicates": 0}
    assert Connection.objects.get(phone_number_id="4711").is_connected


def test_name_in_the_body_counts() -> None:
    customer = make_customer()
    body = {"event": CREATED, "data": payload_for(customer, "4711")}
    assert post(body, event=RECEIVED).json() == {"received": 1, "duplicates": 0}
    assert Connection.objects.get().is_connected
    with listening("webhook_received") as heard:
        post({"event": RECEIVED, "data": message()}, event=CREATED)
    assert heard.only("webhook_received")["event_name"] == RECEIVED
    assert WebhookEvent.objects.count() == 1


def test_message_with_a_wrong_signature_is_refused() -> None:
    with listening("webhook_received") as heard:
        assert post(message(), event=RECEIVED, secret="wrong").status_code == 401
    assert heard == []


def test_malformed_event_of_a_message_is_stored_as_ignored() -> None:
    deep: Any = "x"
    for _level in range(30):
        deep = [deep]
    assert post({**message(), "x": deep}, event=RECEIVED).status_code == 200
    assert WebhookEvent.objects.get().status == "ignored"
    assert json.dumps(WebhookEvent.objects.get().payload)
