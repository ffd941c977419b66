"""``read_messages``: what Kapso delivers to the site's own webhook."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import HttpRequest
from django.test import RequestFactory

from kapso_connect.exceptions import DeliveryRefused
from kapso_connect.testing import webhook_headers
from kapso_connect.webhooks.messages import NumberEvent, read_messages
from kapso_connect.webhooks.signature import sign

RECEIVED = "whatsapp.message.received"
SECRET = "the secret of messages"
MESSAGE = {"message": {"id": "wamid.1"}, "phone_number_id": "123"}
TEST = {**MESSAGE, "test": True}
META = {"object": "whatsapp_business_account", "entry": []}


def request(
    payload: Any, *, event: str = RECEIVED, secret: str = SECRET, **headers: str
) -> HttpRequest:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = webhook_headers(body, secret, event=event)
    return RequestFactory().post(
        "/messages/", body, content_type="application/json", headers={**signed, **headers}
    )


@pytest.mark.parametrize(
    ("payload", "event", "expected"),
    [
        (MESSAGE, RECEIVED, [NumberEvent(RECEIVED, MESSAGE)]),
        ({"event": RECEIVED, "data": MESSAGE}, "", [NumberEvent(RECEIVED, MESSAGE)]),
        ({"type": RECEIVED, "data": MESSAGE}, "other", [NumberEvent(RECEIVED, MESSAGE)]),
        (
            {"type": RECEIVED, "batch": True, "data": [MESSAGE, MESSAGE], "batch_info": {}},
            RECEIVED,
            [NumberEvent(RECEIVED, MESSAGE)] * 2,
        ),
        (
            {"type": RECEIVED, "batch": True, "data": [{"event": RECEIVED, "data": MESSAGE}]},
            "",
            [NumberEvent(RECEIVED, MESSAGE)],
        ),
        (META, "", [NumberEvent("", META)]),
        (
            {**MESSAGE, "test": True},
            RECEIVED,
            [NumberEvent(RECEIVED, {**MESSAGE, "test": True}, True)],
        ),
    ],
)
def test_forms(payload: Any, event: str, expected: list[NumberEvent]) -> None:
    assert read_messages(request(payload, event=event), secrets=[SECRET]) == expected


def test_secrets_are_those_of_the_setting(configure: Any) -> None:
    configure(NUMBER_WEBHOOK={"url": "/messages/", "secret": ["new", SECRET]})
    for secret in ("new", SECRET):
        assert read_messages(request(MESSAGE, secret=secret)) == [NumberEvent(RECEIVED, MESSAGE)]
    assert_refused(request(MESSAGE, secret="older"), 401)


def test_one_secret_may_be_a_string() -> None:
    assert read_messages(request(MESSAGE), secrets=SECRET)
    assert_refused(request(MESSAGE, secret=SECRET[0]), 401, secrets=SECRET)


@pytest.mark.parametrize("secrets", [None, [], [""], ""])
def test_without_a_secret_everything_is_refused(secrets: Any) -> None:
    assert_refused(request(MESSAGE, secret=""), 401, secrets=secrets)


@pytest.mark.parametrize("secrets", [[""], "", [SECRET, ""]])
def test_signature_made_with_an_empty_secret_is_refused(secrets: Any) -> None:
    forged = request(MESSAGE)
    forged.META["HTTP_X_WEBHOOK_SIGNATURE"] = sign(forged.body, "")
    assert_refused(forged, 401, secrets=secrets)


def assert_refused(request: HttpRequest, status: int, **options: Any) -> None:
    with pytest.raises(DeliveryRefused) as refused:
        read_messages(request, **options)
    assert refused.value.status == status
    assert str(refused.value)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"no JSON", 400),
        ([MESSAGE], 400),
        ({"type": RECEIVED, "batch": True, "data": [5]}, 400),
        (b"x" * 5000, 413),
    ],
)
def test_what_is_no_delivery_is_refused(payload: Any, status: int) -> None:
    assert_refused(request(payload), status, secrets=[SECRET], max_bytes=4000)


def test_signature_is_checked_before_the_body_is_read() -> None:
    assert_refused(request(b"no JSON", secret="wrong"), 401, secrets=[SECRET])


def test_only_post_is_a_delivery() -> None:
    assert_refused(RequestFactory().get("/messages/"), 405)


def test_content_of_a_message_is_kept() -> None:
    text = "My password: https://setup.kapso.ai/s/abc"
    message = {**MESSAGE, "token": "t", "message": {"id": "1", "text": {"body": text}}}
    assert read_messages(request(message), secrets=[SECRET])[0].payload == message


def test_what_no_database_can_store_is_replaced() -> None:
    message = {"message": {"text": {"body": "a\0b\ud800c"}}}
    (event,) = read_messages(request(message), secrets=[SECRET])
    assert event.payload == {"message": {"text": {"body": "a\ufffdb\ufffdc"}}}


def test_representation_has_no_content() -> None:
    assert "wamid" not in repr(NumberEvent(RECEIVED, MESSAGE))
