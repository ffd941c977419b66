from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timezone

import pytest
from django.http.request import HttpHeaders
from django.utils import timezone as django_timezone
from hypothesis import given
from hypothesis import strategies as st

from kapso_connect.exceptions import MalformedBody, MalformedPayload
from kapso_connect.webhooks.payloads import (
    MAX_BATCH_SIZE,
    MAX_PAYLOAD_DEPTH,
    UNNAMED_EVENT,
    parse,
    parse_account_event,
    parse_phone_number_event,
    storable,
)

NAME = "whatsapp.phone_number.created"
NOW = "2026-01-02T03:04:05Z"
NAMES = ["phone_number_id", "customer", "occurred_at", "source", "disconnection", "phone_numbers"]
NUMBER = {"phone_number_id": "123456789012345", "customer": {"id": "c-1"}}


def headers(**given: str) -> HttpHeaders:
    named = {"x_idempotency_key": "k", **given}
    return HttpHeaders({f"HTTP_{name.upper()}": value for name, value in named.items()})


def read(body: object, **given: str):
    return parse(json.dumps(body).encode(), headers(**given))


def test_flat_form_takes_its_name_from_the_header() -> None:
    (message,) = read(NUMBER, x_webhook_event=NAME)
    assert (message.key, message.name, message.payload) == ("k", NAME, NUMBER)


@pytest.mark.parametrize("field", ["event", "type"])
def test_envelope_form(field: str) -> None:
    (message,) = read({field: NAME, "data": NUMBER})
    assert (message.name, message.payload) == (NAME, NUMBER)


def test_the_signed_body_wins_over_the_unsigned_header() -> None:
    (message,) = read({**NUMBER, "event": NAME}, x_webhook_event="whatsapp.phone_number.deleted")
    assert message.name == NAME


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ({"type": NAME, "batch": True, "data": [NUMBER, NUMBER]}, {}),
        ({"type": NAME, "data": [NUMBER, NUMBER]}, {"x_webhook_batch": "true"}),
        ({"data": [NUMBER, NUMBER]}, {"x_webhook_batch": "True", "x_webhook_event": NAME}),
        ({"batch": True, "data": [{"event": NAME, "data": NUMBER}] * 2}, {}),
    ],
)
def test_batch_form_is_one_message_for_each_item(body, given) -> None:
    messages = read(body, **given)
    assert [m.key for m in messages] == ["k:0", "k:1"]
    assert [m.name for m in messages] == [NAME, NAME]
    assert [m.payload for m in messages] == [NUMBER, NUMBER]


def test_batch_item_that_is_not_an_object_does_not_affect_the_others() -> None:
    good, bad = read({"type": NAME, "batch": True, "data": [NUMBER, "x"]})
    assert good.error == ""
    assert bad.error
    assert bad.payload == {"item": "x"}


def test_batch_beyond_the_limit_is_one_failed_message() -> None:
    (message,) = read({"type": NAME, "batch": True, "data": [{}] * (MAX_BATCH_SIZE + 1)})
    assert str(MAX_BATCH_SIZE + 1) in message.error


def test_a_flat_payload_with_a_type_of_its_own_is_no_envelope() -> None:
    body = {"type": "image", "data": {"url": "x"}}
    (message,) = read(body, x_webhook_event="whatsapp.message.received")
    assert (message.name, message.payload) == ("whatsapp.message.received", body)


@pytest.mark.parametrize("field", [{"event": "kapso_agent.run.completed"}, {}])
@pytest.mark.parametrize("data", [{"phone_number_id": "1"}, [{"phone_number_id": "1"}]])
def test_what_an_agent_run_calls_data_is_a_part_of_it(field, data) -> None:
    body = {**field, "id": "run_1", "created_at": NOW, "data": data}
    (message,) = read(body, x_webhook_event="kapso_agent.run.completed")
    assert (message.name, message.payload) == ("kapso_agent.run.completed", body)


@pytest.mark.parametrize("more", [{"note": "x"}, {"type": "image"}, {"data": [1]}])
def test_what_no_envelope_has_makes_a_payload_of_it(more) -> None:
    for body in ({"data": NUMBER, **more}, {"data": [NUMBER], **more}):
        (message,) = read(body, x_webhook_event="custom.event")
        assert message.payload == body


def test_a_name_is_missing() -> None:
    assert read({})[0].name == UNNAMED_EVENT


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"1", b"null", b'"a"', b"\xff", b"[" * 100_000, b"9" * 5000]
)
def test_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse(body, headers())


@pytest.mark.parametrize("key", ["", "UPPER", "x" * 200, "ключ", "a b"])
def test_keys_that_databases_compare_differently_are_hashed(key: str) -> None:
    (message,) = read({}, x_idempotency_key=key)
    assert message.key.startswith("sha256-")
    assert len(message.key) <= 80


def test_without_a_key_the_name_distinguishes_equal_bodies() -> None:
    keys = {
        read({"a": 1}, x_idempotency_key="", x_webhook_event=name)[0].key
        for name in ("whatsapp.phone_number.created", "whatsapp.phone_number.deleted")
    }
    assert len(keys) == 2


def test_without_a_key_the_body_is_the_key() -> None:
    one, two = read({"a": 1}, x_idempotency_key=""), read({"a": 2}, x_idempotency_key="")
    assert one[0].key != two[0].key


def test_credentials_are_not_kept() -> None:
    (message,) = read({"token": "t", "a": [{"Secret_Key": "s"}], "phone_number_id": "1"})
    assert message.payload == {"token": "***", "a": [{"Secret_Key": "***"}], "phone_number_id": "1"}


@pytest.mark.parametrize(
    "name",
    [
        *("apiKey", "X-API-Key", "client_secret", "clientSecret", "app secret", "secrets"),
        *("refresh_token", "pageAccessToken", "verify-token", "access_tokens", "TOKEN"),
        *("Authorization", "proxy-authorization", "dbPassword", "password_hash", "passwd"),
        *("privateKey", "credentials", "Set-Cookie", "pin", "setup_link_url", "setupUrl"),
    ],
)
def test_credentials_are_hidden_under_any_spelling(name: str) -> None:
    inner = {"deep": [[{name: "s3cret"}], {name: ["s3cret"]}, {name: {"value": "s3cret"}}]}
    for body in (inner, {"event": NAME, "data": inner}, {"batch": True, "data": [inner, inner]}):
        for message in read(body):
            assert "s3cret" not in json.dumps(message.payload)


def test_credentials_in_lists_of_headers_are_hidden() -> None:
    given = [{"name": "Authorization", "value": "Bearer s"}, {"key": "x-api-key", "value": "s"}]
    (message,) = read({"headers": given, "rows": [{"name": "Ada", "value": "7"}]})
    assert [row["value"] for row in message.payload["headers"]] == ["***", "***"]
    assert message.payload["rows"] == [{"name": "Ada", "value": "7"}]


@pytest.mark.parametrize(
    "payload",
    [
        {"setup_link": {"id": "l", "url": "https://any.example/s/tok"}},
        {"setupLinks": [{"id": "l", "url": "https://any.example/s/tok"}]},
        {"id": "l", "whatsapp_setup_status": "pending", "url": "https://any.example/s/tok"},
        {"text": "Open https://setup.kapso.ai/s/tok."},
        {"page": "https://app.kapso.ai/whatsapp/setup/tok"},
    ],
)
def test_urls_of_setup_links_are_hidden(payload: dict[str, object]) -> None:
    (message,) = read(payload)
    assert "tok" not in json.dumps(message.payload)


def test_what_receivers_need_is_kept() -> None:
    payload = {
        "phone_number_id": "1",
        "checks": {"token_validity": {"passed": True}},
        "has_password": True,
        "token": None,
        "usage": {"input_tokens": 5, "total_tokens": 7.5},
        "shipping": "paid",
        "media": {"url": "https://cdn.example/a.jpg"},
        "idempotency_key": "k",
        "success_url": "https://site.example/welcome/",
    }
    (message,) = read(payload)
    assert message.payload == payload


def test_a_time_in_the_future_is_now() -> None:
    event = parse_phone_number_event({"phone_number_id": "1", "occurred_at": "2031-01-01"})
    assert event.occurred_at is not None
    assert event.occurred_at <= django_timezone.now()


def test_a_time_without_a_zone_is_in_utc() -> None:
    event = parse_phone_number_event({"phone_number_id": "1", "occurred_at": "2026-01-02T03:04:05"})
    assert event.occurred_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("body", "is_signed"),
    [
        (NUMBER, False),
        ({**NUMBER, "event": NAME}, True),
        ({"type": NAME, "data": NUMBER}, True),
        ({"type": NAME, "batch": True, "data": [NUMBER]}, True),
        ({"batch": True, "data": [NUMBER]}, False),
        ({"batch": True, "data": [{**NUMBER, "event": NAME}]}, True),
        ({"data": NUMBER}, False),
        ({"data": [NUMBER]}, False),
        ({"type": NAME, "data": [NUMBER]}, True),
        ({"type": "image", **NUMBER}, False),
    ],
)
def test_a_name_counts_as_signed_if_it_is_in_the_body(body, is_signed: bool) -> None:
    (message,) = read(body, x_webhook_event=NAME)
    assert (message.name, message.is_name_signed) == (NAME, is_signed)


def digests(body: object, key: str = "k", name: str = NAME, **more: str) -> list[str]:
    found = read(body, x_idempotency_key=key, x_webhook_event=name, **more)
    return [message.digest for message in found]


@pytest.mark.parametrize(
    "identity",
    [
        {"id": "evt_1"},
        {"occurred_at": NOW},
        {"created_at": NOW},
        {"message": {"id": "wamid.1"}},
    ],
)
def test_a_body_that_says_which_event_it_is_is_the_same_under_any_key(identity) -> None:
    for body in ({**NUMBER, **identity}, {"event": NAME, "data": {**NUMBER, **identity}}):
        assert digests(body, "k-1") == digests(body, "k-2")
        assert digests(body) != digests({**body, "other": 1})
    batch = {"batch": True, "data": [{**NUMBER, **identity}] * 2}
    assert digests(batch, "k-1") == digests(batch, "k-2")
    assert len(set(digests(batch))) == 2


@pytest.mark.parametrize(
    "more", [{}, {"id": NUMBER["phone_number_id"]}, {"occurred_at": NOW, "test": True}]
)
def test_other_bodies_are_the_same_delivery_under_the_same_key_and_name_only(more) -> None:
    body = {**NUMBER, **more}
    assert digests(body) == digests(body)
    assert digests(body, "k-1") != digests(body, "k-2")
    assert digests(body, name=NAME) != digests(body, name="whatsapp.phone_number.deleted")
    assert digests(body) != digests({**body, "project": {"id": "p"}})


def test_no_key_makes_another_delivery_look_stored() -> None:
    body = json.dumps(NUMBER).encode()
    derived = parse(body, headers(x_idempotency_key="", x_webhook_event=NAME))[0].key
    batch = {"data": [NUMBER]}
    found = [
        *digests(NUMBER, ""),
        *digests(NUMBER, derived),
        *digests(batch, "k"),
        *digests(batch, "k:0"),
        *digests({**batch, "more": 1}, "k"),
        *digests(NUMBER, "K"),
        *digests(NUMBER, "k"),
    ]
    assert len(set(found)) == len(found)


def test_a_mark_beside_the_data_makes_it_a_test() -> None:
    for body in (
        {"event": NAME, "test": True, "data": NUMBER},
        {"type": NAME, "batch": True, "test": True, "data": [NUMBER]},
        {"event": NAME, "data": {**NUMBER, "test": True}},
    ):
        (message,) = read(body)
        assert message.payload == {**NUMBER, "test": True}
        assert message.event is None


def test_what_a_database_cannot_hold_is_replaced() -> None:
    body = rb'{"a": "x\u0000y", "b\ud800": 1e999, "c": 123456789012345678901234567890, "d": NaN}'
    (message,) = parse(body, headers())
    assert message.payload == {
        "a": "x\ufffdy",
        "b\ufffd": "inf",
        "c": "123456789012345678901234567890",
        "d": "nan",
    }


def test_nesting_beyond_the_limit_is_an_error() -> None:
    nested: object = 1
    for _ in range(MAX_PAYLOAD_DEPTH + 1):
        nested = [nested]
    (message,) = read({"event": NAME, "a": nested})
    assert "nested" in message.error
    assert message.name == NAME


def test_deeply_nested_batch_item_is_an_error() -> None:
    nested: object = 1
    for _ in range(MAX_PAYLOAD_DEPTH + 1):
        nested = [nested]
    (message,) = read({"type": NAME, "batch": True, "data": [nested]})
    assert "nested" in message.error
    assert message.payload == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=json_values)
def test_storable_is_stable_and_strict_json(value: object) -> None:
    once = storable(value)
    assert storable(once) == once
    json.dumps(once, allow_nan=False).encode()


@given(
    body=st.dictionaries(
        st.sampled_from(["event", "type", "data", "batch", "phone_number_id", "x"]), json_values
    ),
    event=st.text(),
    batch=st.sampled_from(["", "true"]),
)
def test_any_object_becomes_messages_that_fit_the_inbox(body, event, batch) -> None:
    for message in read(body, x_webhook_event=event, x_webhook_batch=batch):
        assert 0 < len(message.name) <= 100
        assert 0 < len(message.key) <= 100
        assert isinstance(message.payload, dict)


@pytest.mark.parametrize(
    ("payload", "customer_id", "external_id"),
    [
        ({"customer": {"id": "c", "external_id": "e"}}, "c", "e"),
        ({"customer": {"id": "c", "external_customer_id": "e"}}, "c", "e"),
        ({"customer_id": "c", "external_customer_id": "e"}, "c", "e"),
        ({"customer": {"id": "c", "external_id": None}}, "c", ""),
        ({"customer": None}, "", ""),
        ({}, "", ""),
    ],
)
def test_newer_and_older_forms_of_the_customer(payload, customer_id, external_id) -> None:
    event = parse_phone_number_event({"phone_number_id": "1", **payload})
    assert (event.customer_id, event.external_customer_id) == (customer_id, external_id)


def test_fields_of_a_disconnection() -> None:
    event = parse_phone_number_event(
        {
            "id": "evt_1",
            "phone_number_id": "1",
            "occurred_at": "2026-11-01T10:00:00.5Z",
            "connection_type": "coexistence",
            "source": {"provider": "meta", "business_account_id": "77"},
            "disconnection": {"reason": "ACCOUNT_REMOVED", "initiated_by": None},
        }
    )
    assert event.event_id == "evt_1"
    assert event.occurred_at == datetime(2026, 11, 1, 10, 0, 0, 500_000, tzinfo=timezone.utc)
    assert event.connection_type == "coexistence"
    assert event.business_account_id == "77"
    assert (event.reason, event.initiated_by) == ("ACCOUNT_REMOVED", "")


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        ({}, "missing"),
        ({"phone_number_id": ""}, "missing"),
        ({"phone_number_id": None}, "missing"),
        ({"phone_number_id": 123}, "a number"),
        ({"phone_number_id": True}, "true or false"),
        ({"phone_number_id": ["1"]}, "a list"),
        ({"phone_number_id": "12a"}, "digits"),
        ({"phone_number_id": "٣"}, "digits"),
        ({"phone_number_id": "1" * 10_000}, "64"),
        ({"phone_number_id": "1", "customer": []}, "customer"),
        ({"phone_number_id": "1", "customer": "c"}, "customer"),
        ({"phone_number_id": "1", "customer": {"id": 5}}, "id must be"),
        ({"phone_number_id": "1", "customer": {"id": "c" * 65}}, "64"),
        ({"phone_number_id": "1", "customer": {"id": "c", "external_id": "e" * 256}}, "256"),
        ({"phone_number_id": "1", "customer": {"id": "c", "external_id": 5}}, "external_id"),
        ({"phone_number_id": "1", "occurred_at": "yesterday"}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": "2026-13-01T00:00:00Z"}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": 5}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": "0001-01-01T00:00:00+14:00"}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": "0001-01-01T00:00:00Z"}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": "9999-12-31T23:59:59Z"}, "occurred_at"),
        ({"phone_number_id": "1", "occurred_at": "9999-12-31T23:59:59-14:00"}, "occurred_at"),
        ({"phone_number_id": "1", "source": 5}, "source"),
    ],
)
def test_wrong_payloads_say_what_is_wrong(payload: dict[str, object], word: str) -> None:
    with pytest.raises(MalformedPayload, match=word):
        parse_phone_number_event(payload)


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        ({}, "business_account_id is missing"),
        ({"business_account_id": "1", "phone_numbers": {}}, "phone_numbers"),
        ({"business_account_id": "1", "phone_numbers": ["1"]}, "phone_numbers"),
        ({"business_account_id": "1", "phone_numbers": [{"id": 1}]}, "id must be"),
        ({"business_account_id": "1"}, "occurred_at is missing"),
        ({"business_account_id": "1", "occurred_at": NOW, "restrictions": "all"}, "restrictions"),
        ({"business_account_id": "1", "violation": "spam"}, "violation"),
    ],
)
def test_wrong_account_payloads_say_what_is_wrong(payload: dict[str, object], word: str) -> None:
    with pytest.raises(MalformedPayload, match=word):
        parse_account_event(payload)


@pytest.mark.parametrize("read_event", [parse_phone_number_event, parse_account_event])
@given(
    payload=st.dictionaries(st.text(), json_values), inner=json_values, name=st.sampled_from(NAMES)
)
def test_any_payload_is_read_or_refused(read_event, payload, inner, name) -> None:
    ids = {"phone_number_id": "1", "business_account_id": "1"}
    with suppress(MalformedPayload):
        read_event({**ids, **payload, name: inner})
