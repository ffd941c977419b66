"""The client's requests match Kapso's contract; an answer becomes a value or a KapsoError."""

from __future__ import annotations

import contextlib
import copy
import json
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.views.debug import ExceptionReporter
from hypothesis import given
from hypothesis import strategies as st
from openapi_core import OpenAPI
from openapi_core.testing import MockRequest

from kapso_connect.exceptions import (
    KapsoBlocked,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoUnexpectedResponse,
    KapsoValidationError,
)
from kapso_connect.kapso import http
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.setup_link_options import SetupLinkOptions
from kapso_connect.kapso.types import (
    KapsoCustomer,
    KapsoHealth,
    KapsoPhoneNumber,
    KapsoSentMessage,
    KapsoSetupLink,
    KapsoWebhook,
    KapsoWebhookDelivery,
)
from tests import ROOT
from tests.contract import CONTRACT, find_path
from tests.faulty_server import FaultyServer, Received, answer, raw

CUSTOMER = "0b0e1d6e-55a5-4b0a-9d5c-0a4f4f3a2b11"
LINK = "7b1f3d7e-7d1c-4b57-8d57-1f1f0a5b6c22"
WEBHOOK = "c5b0a1de-0d0e-4f5b-9a51-3a3b4c5d6e33"
NUMBER = "106540352242922"
BASE = "/platform/v1"
META_BASE = "/meta/whatsapp/v24.0"
MOMENT = "2026-01-02T03:04:05Z"

Make = Callable[..., KapsoClient]


def strict(contract: dict[str, Any]) -> dict[str, Any]:
    """Return the contract with request bodies that may hold nothing it does not name."""
    contract = copy.deepcopy(contract)
    for name, schema in contract["components"]["schemas"].items():
        if name.endswith(("Write", "Patch")):
            for inner in schema["properties"].values():
                inner["unevaluatedProperties"] = False
            schema["additionalProperties"] = False
    contract["components"]["schemas"]["MessageSend"]["unevaluatedProperties"] = False
    return contract


API = OpenAPI.from_dict(strict(CONTRACT))


def check_contract(request: Received) -> None:
    API.validate_request(
        MockRequest(
            "https://api.kapso.ai",
            request.method.lower(),
            request.path,
            args=request.query,
            headers=request.headers,
            data=request.body or None,
        )
    )
    template = find_path(request.path)
    assert template is not None
    operation = CONTRACT["paths"][template][request.method.lower()]
    parameters = [
        CONTRACT["components"]["parameters"][p["$ref"].rpartition("/")[2]] if "$ref" in p else p
        for p in operation.get("parameters", [])
    ]
    assert set(request.query) <= {p["name"] for p in parameters if p["in"] == "query"}


def example(schema: dict[str, Any] | str) -> Any:
    """Return a value that the contract's schema allows, with every property it knows."""
    if isinstance(schema, str):
        schema = CONTRACT["components"]["schemas"][schema]
    if "$ref" in schema:
        return example(schema["$ref"].rpartition("/")[2])
    if "allOf" in schema:
        return {k: v for part in schema["allOf"] for k, v in example(part).items()}
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    if kind == "object":
        return {name: example(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema["items"])]
    if kind == "string":
        formats = {"uuid": CUSTOMER, "date-time": MOMENT, "uri": "https://kapso.example/x"}
        return formats.get(schema.get("format", ""), "text")
    return {"integer": 1, "boolean": True}[kind]


def changed(schema: str, /, **members: Any) -> dict[str, Any]:
    """Return an example answer with one object, some members changed; None takes one away."""
    data = {**example(schema), **members}
    return {"data": {k: v for k, v in data.items() if v is not None}}


def listed(schema: str, *entries: dict[str, Any], pages: Any = 1) -> dict[str, Any]:
    meta = {"page": 1, "per_page": 100, "total_pages": pages, "total_count": 1}
    return {"data": [{**example(schema), **entry} for entry in entries], "meta": meta}


def deliveries(*ids: str, after: str | None = None) -> dict[str, Any]:
    """Return a page of webhook deliveries; ``after`` leads to the next one."""
    following = f"https://api.kapso.ai/platform/v1/webhook_deliveries?after={after}"
    paging = {"cursors": {"before": None, "after": after}, "next": following if after else None}
    return {"data": [{**example("WebhookDelivery"), "id": pk} for pk in ids], "paging": paging}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture
def make(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(http, "BACKOFF_FACTOR", 0.001)

    def make(key: str = "test-key", **kwargs: Any) -> KapsoClient:
        return KapsoClient(key, **{"base_url": server.url, "budget": 5, **kwargs})

    return make


@pytest.fixture
def client(make: Make) -> KapsoClient:
    return make()


AWARE = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
FULL_OPTIONS = SetupLinkOptions.build(
    {
        "success_redirect_url": "https://site.example/ok",
        "failure_redirect_url": "https://site.example/no",
        "allowed_origins": ["https://site.example"],
        "allowed_connection_types": ["coexistence"],
        "language": "pt",
        "theme_config": {"primary_color": "#00FF00"},
        "provision_phone_number": True,
        "phone_number_country_isos": ["US"],
        "phone_number_area_code": "415",
        "meta_billing_mode": "partner_managed",
    }
)
OPERATIONS = [
    pytest.param(
        lambda c: c.find_customer("crm/7 ü&x"), "CustomerList", f"GET {BASE}/customers", id="find"
    ),
    pytest.param(
        lambda c: list(c.list_customers()),
        "CustomerList",
        f"GET {BASE}/customers",
        id="list-customers",
    ),
    pytest.param(
        lambda c: c.create_customer(name="Ada", external_customer_id="7"),
        "CustomerOne",
        f"POST {BASE}/customers",
        id="create-customer",
    ),
    pytest.param(
        lambda c: c.get_customer(CUSTOMER),
        "CustomerOne",
        f"GET {BASE}/customers/{CUSTOMER}",
        id="get-customer",
    ),
    pytest.param(
        lambda c: c.delete_customer(CUSTOMER),
        None,
        f"DELETE {BASE}/customers/{CUSTOMER}",
        id="delete-customer",
    ),
    pytest.param(
        lambda c: c.create_setup_link(CUSTOMER, FULL_OPTIONS.payload()),
        "SetupLinkCreated",
        f"POST {BASE}/customers/{CUSTOMER}/setup_links",
        id="create-link",
    ),
    pytest.param(
        lambda c: list(c.list_setup_links(CUSTOMER, status="active", created_after=AWARE)),
        "SetupLinkList",
        f"GET {BASE}/customers/{CUSTOMER}/setup_links",
        id="list-links",
    ),
    pytest.param(
        lambda c: c.update_setup_link(CUSTOMER, LINK, {"expires_at": AWARE}),
        "SetupLinkOne",
        f"PATCH {BASE}/customers/{CUSTOMER}/setup_links/{LINK}",
        id="update-link",
    ),
    pytest.param(
        lambda c: c.revoke_setup_link(CUSTOMER, LINK),
        "SetupLinkOne",
        f"PATCH {BASE}/customers/{CUSTOMER}/setup_links/{LINK}",
        id="revoke-link",
    ),
    pytest.param(
        lambda c: list(
            c.list_phone_numbers(
                customer_id=CUSTOMER, business_account_id="9", created_after=AWARE, per_page=20
            )
        ),
        "PhoneNumberList",
        f"GET {BASE}/whatsapp/phone_numbers",
        id="list-numbers",
    ),
    pytest.param(
        lambda c: c.get_phone_number(NUMBER),
        "PhoneNumberOne",
        f"GET {BASE}/whatsapp/phone_numbers/{NUMBER}",
        id="get-number",
    ),
    pytest.param(
        lambda c: c.delete_phone_number(NUMBER),
        None,
        f"DELETE {BASE}/whatsapp/phone_numbers/{NUMBER}",
        id="delete-number",
    ),
    pytest.param(
        lambda c: c.get_phone_number_health(NUMBER),
        "Health",
        f"GET {BASE}/whatsapp/phone_numbers/{NUMBER}/health",
        id="health",
    ),
    pytest.param(
        lambda c: c.get_funding("123456789012345"),
        {"data": {"status": "funded"}},
        f"GET {BASE}/whatsapp/accounts/123456789012345/funding",
        id="funding",
    ),
    pytest.param(
        lambda c: list(c.list_webhooks()),
        "WebhookList",
        f"GET {BASE}/whatsapp/webhooks",
        id="list-webhooks",
    ),
    pytest.param(
        lambda c: c.create_webhook(
            url="https://site.example/hook",
            secret_key="s",
            events=["whatsapp.phone_number.created"],
        ),
        "WebhookOne",
        f"POST {BASE}/whatsapp/webhooks",
        id="create-webhook",
    ),
    pytest.param(
        lambda c: c.update_webhook(WEBHOOK, {"active": True}),
        "WebhookOne",
        f"PATCH {BASE}/whatsapp/webhooks/{WEBHOOK}",
        id="update-webhook",
    ),
    pytest.param(
        lambda c: c.delete_webhook(WEBHOOK),
        None,
        f"DELETE {BASE}/whatsapp/webhooks/{WEBHOOK}",
        id="delete-webhook",
    ),
    pytest.param(
        lambda c: c.create_phone_number(
            CUSTOMER,
            name="Main",
            phone_number_id=NUMBER,
            business_account_id="9",
            access_token="EAAG",
        ),
        "PhoneNumberOne",
        f"POST {BASE}/customers/{CUSTOMER}/whatsapp/phone_numbers",
        id="create-number",
    ),
    pytest.param(
        lambda c: c.update_phone_number(NUMBER, {"name": "Main", "calls_enabled": True}),
        "PhoneNumberOne",
        f"PATCH {BASE}/whatsapp/phone_numbers/{NUMBER}",
        id="update-number",
    ),
    pytest.param(
        lambda c: list(c.list_number_webhooks(NUMBER)),
        "WebhookList",
        f"GET {BASE}/whatsapp/phone_numbers/{NUMBER}/webhooks",
        id="list-number-webhooks",
    ),
    pytest.param(
        lambda c: c.create_number_webhook(
            NUMBER,
            url="https://site.example/hook",
            secret_key="s",
            events=["whatsapp.message.received"],
            options={"buffer_enabled": True, "headers": {"X-A": "b"}},
        ),
        "WebhookOne",
        f"POST {BASE}/whatsapp/phone_numbers/{NUMBER}/webhooks",
        id="create-number-webhook",
    ),
    pytest.param(
        lambda c: c.create_number_webhook(
            NUMBER, url="https://site.example/hook", secret_key="s", kind="meta"
        ),
        "WebhookOne",
        f"POST {BASE}/whatsapp/phone_numbers/{NUMBER}/webhooks",
        id="create-meta-webhook",
    ),
    pytest.param(
        lambda c: c.update_number_webhook(NUMBER, WEBHOOK, {"active": False}),
        "WebhookOne",
        f"PATCH {BASE}/whatsapp/phone_numbers/{NUMBER}/webhooks/{WEBHOOK}",
        id="update-number-webhook",
    ),
    pytest.param(
        lambda c: c.delete_number_webhook(NUMBER, WEBHOOK),
        None,
        f"DELETE {BASE}/whatsapp/phone_numbers/{NUMBER}/webhooks/{WEBHOOK}",
        id="delete-number-webhook",
    ),
    pytest.param(
        lambda c: list(
            c.list_webhook_deliveries(
                status="failed",
                event="whatsapp.phone_number.created",
                webhook_id=WEBHOOK,
                errors_only=True,
                period="7d",
            )
        ),
        deliveries("1"),
        f"GET {BASE}/webhook_deliveries",
        id="list-deliveries",
    ),
    pytest.param(
        lambda c: c.send_text(
            NUMBER, to="+15551234567", body="Hi", preview_url=True, reply_to="wamid.1"
        ),
        "MessageSent",
        f"POST {META_BASE}/{NUMBER}/messages",
        id="send-text",
    ),
    pytest.param(
        lambda c: c.send_template(
            NUMBER,
            to="US.13491208655302741918",
            name="order_ready",
            language="en_US",
            components=[{"type": "body", "parameters": [{"type": "text", "text": "7"}]}],
            callback_data="order-7",
        ),
        "MessageSent",
        f"POST {META_BASE}/{NUMBER}/messages",
        id="send-template",
    ),
    pytest.param(
        lambda c: c.send_message(
            NUMBER,
            to="15551234567",
            message={"type": "text", "text": {"body": "Hi"}},
            reply_to="wamid.1",
        ),
        "MessageSent",
        f"POST {META_BASE}/{NUMBER}/messages",
        id="send-message",
    ),
    pytest.param(
        lambda c: c.test_webhook(WEBHOOK, event_type="whatsapp.phone_number.created"),
        {"data": {"success": True}},
        f"POST {BASE}/whatsapp/webhooks/{WEBHOOK}/test",
        id="test-webhook",
    ),
    pytest.param(
        lambda c: c.test_webhook(WEBHOOK),
        {"data": {"success": True}},
        f"POST {BASE}/whatsapp/webhooks/{WEBHOOK}/test",
        id="test-webhook-bare",
    ),
]


IMPORTS = """
import sys
import kapso_connect.kapso
from kapso_connect.kapso.client import KapsoClient
assert kapso_connect.kapso.KapsoClient is KapsoClient
assert not {"requests", "urllib3"} & set(sys.modules)
KapsoClient("key")
assert {"requests", "urllib3"} <= set(sys.modules)
"""


@pytest.mark.slow
def test_requests_is_imported_when_a_client_is_made() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("call", "schema", "expected"), OPERATIONS)
def test_every_request_keeps_to_the_contract(
    server: FaultyServer, client: KapsoClient, call: Any, schema: Any, expected: str
) -> None:
    body = example(schema) if isinstance(schema, str) else schema
    server.will(answer(204) if body is None else answer(200, body))
    call(client)
    [request] = server.requests
    assert f"{request.method} {request.path}" == expected
    assert request.headers["x-api-key"] == "test-key"
    assert request.headers["user-agent"].startswith("django-kapso-connect/")
    check_contract(request)


class CalledNames:
    """Remembers which methods are called, and returns a list without entries."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return lambda *args, **kwargs: []


def test_no_method_is_left_out_of_the_contract_check() -> None:
    called = CalledNames()
    for parameter in OPERATIONS:
        call: Any = parameter.values[0]
        call(called)
    methods = {
        name
        for name, member in vars(KapsoClient).items()
        if not name.startswith("_") and callable(member)
    }
    assert called.names == methods - {"close"}


def test_requests_say_what_was_asked(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, example("SetupLinkCreated")))
    client.create_setup_link(CUSTOMER, FULL_OPTIONS.payload())
    server.will(answer(200, example("WebhookOne")))
    client.create_webhook(url="https://site.example/h", secret_key="s", events=("a",), active=False)
    server.will(answer(200, listed("PhoneNumber")))
    list(client.list_phone_numbers(business_account_id="9", created_after=AWARE, per_page=20))
    link, webhook, numbers = server.requests
    assert link.json == {"setup_link": FULL_OPTIONS.payload()}
    assert webhook.json["whatsapp_webhook"] == {
        "url": "https://site.example/h",
        "kind": "kapso",
        "secret_key": "s",
        "events": ["a"],
        "active": False,
        "payload_version": "v2",
    }
    assert numbers.query == {
        "business_account_id": "9",
        "created_after": "2025-12-31T22:00:00+00:00",
        "page": "1",
        "per_page": "20",
    }


HEALTH: dict[str, Any] = {"error": "text", "checks": {"token": {"passed": True}}}


def test_answers_become_typed_values(server: FaultyServer, client: KapsoClient) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    server.will(
        answer(200, example("CustomerOne")),
        answer(200, example("SetupLinkCreated")),
        answer(200, example("PhoneNumberOne")),
        answer(200, changed("Health", **HEALTH)["data"]),
        answer(200, changed("Health", **HEALTH)),  # as two projects' mocks wrap it
        answer(200, example("WebhookOne")),
    )
    assert client.get_customer(CUSTOMER) == KapsoCustomer(
        id=CUSTOMER, name="text", external_customer_id="text", created_at=moment
    )
    link = client.create_setup_link(CUSTOMER, {})
    assert isinstance(link, KapsoSetupLink)
    assert (link.status, link.expires_at, link.token) == ("active", moment, "text")
    assert link.allowed_connection_types == ("coexistence",)
    number = client.get_phone_number(NUMBER)
    assert isinstance(number, KapsoPhoneNumber)
    assert (number.customer_id, number.is_coexistence) == (CUSTOMER, True)
    for _ in ("bare", "wrapped"):
        assert client.get_phone_number_health(NUMBER) == KapsoHealth(
            status="healthy", timestamp=moment, retry_after=moment, **HEALTH
        )
    webhook = client.update_webhook(WEBHOOK, {})
    assert isinstance(webhook, KapsoWebhook)
    assert webhook.events == ("text",)
    assert webhook.secret_key is not None
    assert webhook.secret_key.is_same("text")


def test_null_and_absence_are_the_same_and_the_unknown_is_ignored(
    server: FaultyServer, client: KapsoClient
) -> None:
    bare = {
        "phone_number_id": "1",
        "internal_id": "2",
        "created_at": "2026-01-02T03:04:05.678",
        "updated_at": "2026-01-02T05:04:05+02:00",
    }
    server.will(
        answer(200, {"data": bare}),
        answer(200, {"data": {**bare, "customer_id": None, "new": [{}]}}),
    )
    number = client.get_phone_number(NUMBER)
    assert number == client.get_phone_number(NUMBER)
    assert number.customer_id is None
    assert number.created_at.tzinfo is timezone.utc
    assert number.updated_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def test_text_that_no_database_stores_is_made_storable(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(answer(200, changed("Customer", name="A\0da\ud800")))
    assert client.get_customer(CUSTOMER).name == "Ada?"


def test_links_do_not_show_their_url_or_token(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, changed("SetupLink", url="https://k.example/abc", token="def")))
    shown = repr(client.create_setup_link(CUSTOMER, {}))
    assert "abc" not in shown
    assert "def" not in shown


BAD_ANSWERS = [
    pytest.param(answer(200, b"<html>hello</html>", content_type="text/html"), "HTML", id="html"),
    pytest.param(answer(200, b"{"), "not JSON", id="half"),
    pytest.param(answer(200, b"[" * 100_000), "not JSON", id="deep"),
    pytest.param(answer(200, b'{"data": ' + b"9" * 5000 + b"}"), "", id="endless-number"),
    pytest.param(answer(200, b""), "'data'", id="empty"),
    pytest.param(answer(200, [1]), "'data'", id="list"),
    pytest.param(answer(200, {"customer": {}}), "'data'", id="unwrapped"),
    pytest.param(answer(200, {"data": []}), "not an object", id="list-inside"),
    pytest.param(answer(200, changed("Customer", name=None)), "'name'", id="missing"),
    pytest.param(answer(200, changed("Customer", name=7)), "'name'", id="not-text"),
    pytest.param(answer(200, changed("Customer", created_at="soon")), "'created_at'", id="no-date"),
    pytest.param(
        answer(200, changed("Customer", created_at="2026-13-01T00:00:00Z")), "'created_at'", id="13"
    ),
]


@pytest.mark.parametrize(
    ("time", "year"),
    [
        ("0001-01-01T00:00:00+14:00", 1970),
        ("0001-01-01T00:00:00Z", 1970),
        ("9999-12-31T23:59:59-14:00", 9998),
        ("9999-12-31", 9998),
    ],
)
def test_times_that_no_time_zone_can_show_are_moved_to_where_they_can(
    server: FaultyServer, client: KapsoClient, time: str, year: int
) -> None:
    server.will(answer(200, changed("Customer", created_at=time)))
    moment = client.create_customer(name="Ada").created_at
    assert moment.year == year
    for hours in (-23, 23):
        assert moment.astimezone(timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(("reply", "named"), BAD_ANSWERS)
def test_an_unusable_answer_to_a_post_leaves_the_outcome_open(
    server: FaultyServer, client: KapsoClient, reply: Any, named: str
) -> None:
    server.will(reply)
    with pytest.raises(KapsoUnexpectedResponse, match="create customer") as caught:
        client.create_customer(name="Ada")
    assert named in str(caught.value)
    assert caught.value.outcome_unknown
    assert "check before" in str(caught.value)
    assert len(server.requests) == 1
    with pytest.raises(KapsoUnexpectedResponse) as caught:
        client.get_customer(CUSTOMER)
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize(
    "members",
    [{"active": "yes"}, {"events": "all"}, {"events": [1]}],
)
def test_wrong_types_are_named(
    server: FaultyServer, client: KapsoClient, members: dict[str, Any]
) -> None:
    server.will(answer(200, changed("Webhook", **members)))
    with pytest.raises(KapsoUnexpectedResponse, match=next(iter(members))):
        client.update_webhook(WEBHOOK, {})
    server.will(answer(200, changed("Health", checks=["no"])["data"]))
    with pytest.raises(KapsoUnexpectedResponse, match="checks"):
        client.get_phone_number_health(NUMBER)


def test_a_test_delivery_that_is_not_confirmed_is_an_error(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(answer(200, {"data": {"success": False}}), answer(204))
    for _ in range(2):
        with pytest.raises(KapsoUnexpectedResponse, match="test webhook"):
            client.test_webhook(WEBHOOK)


def test_refused_health_check_says_why(server: FaultyServer, client: KapsoClient) -> None:
    body = {"error": "Rate limit exceeded", "message": "60 health checks a minute"}
    server.will(answer(429, body, {"Retry-After": "60"}))
    words = "Rate limit exceeded: 60 health checks a minute"
    with pytest.raises(KapsoRateLimited, match=words) as caught:
        client.get_phone_number_health(NUMBER)
    assert caught.value.retry_after == 60
    server.will(
        answer(200, {"status": "error", "timestamp": "2026-01-02T03:04:05Z", "checks": None})
    )
    assert client.get_phone_number_health(NUMBER).checks == {}


ERRORS = [
    (400, KapsoValidationError),
    (401, KapsoCredentialsError),
    (402, KapsoPlanError),
    (403, KapsoCredentialsError),
    (404, KapsoNotFound),
    (408, KapsoUnavailable),
    (409, KapsoConflict),
    (418, KapsoUnexpectedResponse),
    (422, KapsoValidationError),
    (500, KapsoUnavailable),
    (503, KapsoUnavailable),
]
BODIES = [
    pytest.param(b'{"error": "Kapso\'s words"}', "Kapso's words", id="json"),
    pytest.param(b'{"error": {"message": "Meta\'s words"}}', "Meta's words", id="meta"),
    pytest.param(b"<html><p>Proxy's\n words</html>", "Proxy's words", id="html"),
    pytest.param(b'{"error": {"code": 7}}', '"code": 7', id="other"),
    pytest.param(b"", "", id="empty"),
]


@pytest.mark.parametrize(("status", "error"), ERRORS)
@pytest.mark.parametrize(("body", "words"), BODIES)
def test_each_refusal_is_one_class_with_kapsos_words(
    server: FaultyServer, client: KapsoClient, status: int, error: type, body: bytes, words: str
) -> None:
    server.will(answer(status, body))
    if status == 403 and not body.startswith(b'{"error"'):
        error = KapsoBlocked  # Cloudflare's, which does not look at the key
    with pytest.raises(error) as caught:
        client.create_customer(name="Ada")
    assert type(caught.value) is error
    assert caught.value.operation == "create customer"
    assert caught.value.status == status
    assert caught.value.outcome_unknown is (status >= 500)
    message = str(caught.value)
    assert message.startswith("Could not create customer: ")
    assert str(status) in message
    assert words in message
    assert message.endswith(".")


def test_kapsos_words_are_bounded_and_printable(server: FaultyServer, client: KapsoClient) -> None:
    text = "line\r\nline \x1b[31m \u202e test-key " + "x" * 10_000
    server.will(answer(422, {"error": text}))
    with pytest.raises(KapsoValidationError) as caught:
        client.get_customer(CUSTOMER)
    message = str(caught.value)
    assert "line line [31m *** xxx" in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("key", ["", "schlüssel", "中", "a b", "a\r\nX-Evil: 1", "\x7f"])
def test_without_a_usable_key_nothing_is_asked(server: FaultyServer, make: Make, key: str) -> None:
    with pytest.raises(KapsoCredentialsError, match=r'KAPSO_CONNECT\["API_KEY"\]') as caught:
        make(key).get_customer(CUSTOMER)
    assert caught.value.operation == "get customer"
    assert server.connections == 0


def test_settings_make_a_client(server: FaultyServer, settings: Any) -> None:
    settings.KAPSO_CONNECT = {"API_KEY": "from-settings", "API_BASE_URL": server.url + "/"}
    server.will(answer(200, example("CustomerOne")))
    with KapsoClient.from_settings(budget=2) as client:
        client.get_customer(CUSTOMER)
    KapsoClient.from_settings().get_customer(CUSTOMER)
    assert {r.headers["x-api-key"] for r in server.requests} == {"from-settings"}
    assert server.requests[0].path == f"{BASE}/customers/{CUSTOMER}"
    assert "from-settings" not in repr(client)


@pytest.mark.parametrize(
    ("hostile", "sent"),
    [
        ("../webhooks", "..%2Fwebhooks"),
        ("a/b", "a%2Fb"),
        ("a?x=1#y", "a%3Fx%3D1%23y"),
        ("%2e%2e", "%252e%252e"),
        ("a\r\nX: 1", "a%0D%0AX%3A%201"),
        ("ü\ud800\0", "%C3%BC%3F%00"),
    ],
)
def test_an_id_stays_one_part_of_the_path(
    server: FaultyServer, client: KapsoClient, hostile: str, sent: str
) -> None:
    server.will(answer(404, {"error": "no"}))
    with pytest.raises(KapsoNotFound):
        client.get_phone_number(hostile)
    assert server.requests[0].target == f"{BASE}/whatsapp/phone_numbers/{sent}"


@pytest.mark.parametrize("hostile", ["", ".", ".."])
def test_an_id_that_means_another_path_is_not_sent(
    server: FaultyServer, client: KapsoClient, hostile: str
) -> None:
    with pytest.raises(KapsoNotFound, match="delete phone number"):
        client.delete_phone_number(hostile)
    with pytest.raises(KapsoNotFound):
        client.revoke_setup_link(hostile, LINK)
    assert server.connections == 0


def test_lists_come_page_by_page_as_they_are_read(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(
        answer(
            200, listed("PhoneNumber", {"phone_number_id": "1"}, {"phone_number_id": "2"}, pages=2)
        ),
        answer(
            200, listed("PhoneNumber", {"phone_number_id": "2"}, {"phone_number_id": "3"}, pages=2)
        ),
    )
    numbers = client.list_phone_numbers()
    assert next(numbers).phone_number_id == "1"
    assert len(server.requests) == 1
    # The second page starts with what was pushed on to it meanwhile.
    assert [number.phone_number_id for number in numbers] == ["2", "3"]
    assert [request.query["page"] for request in server.requests] == ["1", "2"]
    for request in server.requests:
        check_contract(request)


def test_an_empty_list_is_one_request(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, listed("Webhook", pages=0)))
    assert list(client.list_webhooks()) == []
    server.will(answer(200, listed("Webhook", pages=1)))
    assert list(client.list_webhooks()) == []
    assert len(server.requests) == 2


def test_an_empty_page_is_only_the_last_one(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, listed("Webhook", pages=1_000_000)))
    with pytest.raises(KapsoUnexpectedResponse, match="is empty"):
        list(client.list_webhooks())
    assert len(server.requests) == 1


def test_a_page_that_repeats_ends_the_list_with_an_error(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(answer(200, listed("Webhook", {"id": "1"}, pages=1_000_000)))
    webhooks = client.list_webhooks()
    assert next(webhooks).id == "1"
    with pytest.raises(KapsoUnexpectedResponse, match="came twice"):
        next(webhooks)
    assert len(server.requests) == 2


@pytest.mark.parametrize("pages", [None, "2", True, -1, 1.5, [], {}])
def test_list_without_a_valid_page_count_is_an_error(
    server: FaultyServer, client: KapsoClient, pages: Any
) -> None:
    server.will(answer(200, listed("Webhook", {}, pages=pages)))
    with pytest.raises(KapsoUnexpectedResponse, match="total_pages"):
        list(client.list_webhooks())
    server.will(answer(200, {"data": {}, "meta": {"total_pages": 1}}))
    with pytest.raises(KapsoUnexpectedResponse, match="not a list"):
        list(client.list_webhooks())


def test_only_the_customer_asked_for_is_found(server: FaultyServer, client: KapsoClient) -> None:
    others = listed("Customer", {"id": "1", "external_customer_id": "70"}, {"id": "2"})
    server.will(answer(200, others))
    assert client.find_customer("7") is None
    found = listed("Customer", {"id": "1"}, {"id": "2", "external_customer_id": "7"})
    server.will(answer(200, found))
    customer = client.find_customer("7")
    assert customer is not None
    assert customer.id == "2"


# Webhook deliveries and messages


def test_deliveries_come_page_by_page_by_their_cursors(
    server: FaultyServer, client: KapsoClient
) -> None:
    server.will(
        answer(200, deliveries("1", "2", after="c2")), answer(200, deliveries("3", after=None))
    )
    found = client.list_webhook_deliveries(errors_only=True)
    first = next(found)
    assert isinstance(first, KapsoWebhookDelivery)
    assert (first.status, first.attempt_count, first.response_status) == ("pending", 1, 1)
    assert len(server.requests) == 1
    assert [delivery.id for delivery in found] == ["2", "3"]
    assert [request.query for request in server.requests] == [
        {"errors_only": "true", "limit": "100"},
        {"errors_only": "true", "limit": "100", "after": "c2"},
    ]
    for request in server.requests:
        check_contract(request)


def test_a_full_page_without_next_is_not_taken_for_the_last(
    server: FaultyServer, client: KapsoClient
) -> None:
    full = deliveries(*map(str, range(100)), after="c100")
    full["paging"]["next"] = None
    server.will(answer(200, full), answer(200, deliveries("last")))
    assert len(list(client.list_webhook_deliveries())) == 101
    server.will(answer(200, full), answer(200, deliveries(after="c100")))
    assert len(list(client.list_webhook_deliveries())) == 100


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"data": [], "paging": {}}, "'cursors'"),
        ({"data": []}, "'paging'"),
        ({"data": {}, "paging": {"cursors": {}}}, "not a list"),
        ({"data": [], "paging": {"cursors": {"after": 7}}}, "'after' is not a text"),
        (deliveries("1", after="c1"), "came twice"),
    ],
)
def test_deliveries_without_an_end_or_a_cursor_are_an_error(
    server: FaultyServer, client: KapsoClient, body: Any, reason: str
) -> None:
    server.will(answer(200, body))
    with pytest.raises(KapsoUnexpectedResponse, match=reason):
        list(client.list_webhook_deliveries())


def test_messages_say_what_was_asked(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(200, {"messages": [{"id": "wamid.9"}]}))
    sent = client.send_text(NUMBER, to="15551234567", body="Hi")
    assert sent == KapsoSentMessage(id="wamid.9")
    client.send_template(NUMBER, to="US.1", name="ready", language="en_US")
    client.send_text(NUMBER, to="1", body="Hi", reply_to="wamid.1", callback_data="7")
    text, template, reply = (request.json for request in server.requests)
    assert text == {
        "messaging_product": "whatsapp",
        "to": "15551234567",
        "type": "text",
        "text": {"body": "Hi"},
    }
    assert template == {
        "messaging_product": "whatsapp",
        "recipient": "US.1",
        "type": "template",
        "template": {"name": "ready", "language": {"code": "en_US"}},
    }
    assert reply["context"] == {"message_id": "wamid.1"}
    assert reply["biz_opaque_callback_data"] == "7"


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": [{}]}, {"messages": {}}])
def test_a_message_without_an_id_may_have_been_sent(
    server: FaultyServer, client: KapsoClient, body: Any
) -> None:
    server.will(answer(200, body))
    with pytest.raises(KapsoUnexpectedResponse, match="send message") as caught:
        client.send_text(NUMBER, to="15551234567", body="Hi")
    assert caught.value.outcome_unknown
    server.will(answer(503))
    with pytest.raises(KapsoUnavailable) as unavailable:
        client.send_text(NUMBER, to="15551234567", body="Hi")
    assert unavailable.value.outcome_unknown
    assert len(server.requests) == 2


META_ERRORS = [
    (400, 100, KapsoValidationError, "Correct the values"),
    (422, 131047, KapsoValidationError, "Send an approved template"),
    (400, 131042, KapsoValidationError, "payment problem"),
    (400, 133010, KapsoValidationError, "connect the number again"),
    (401, 190, KapsoValidationError, "connect the number again"),
    (403, 10, KapsoValidationError, "connect the number again"),
    (402, 131042, KapsoPlanError, "payment problem"),
    (429, 130429, KapsoRateLimited, "Try again"),
    (500, 131000, KapsoUnavailable, "check before you repeat"),
]


@pytest.mark.parametrize(("status", "code", "error", "next_step"), META_ERRORS)
def test_metas_errors_have_its_code_and_its_words(
    server: FaultyServer, make: Make, status: int, code: int, error: type, next_step: str
) -> None:
    body = {
        "message": f"(#{code}) Title",
        "type": "OAuthException",
        "code": code,
        "error_data": {"messaging_product": "whatsapp", "details": "Why it failed"},
    }
    server.will(answer(status, {"error": body}))
    with pytest.raises(error) as caught:
        make(attempts=1).send_text(NUMBER, to="15551234567", body="Hi")
    assert type(caught.value) is error
    assert caught.value.meta_code == code
    message = str(caught.value)
    assert f'"(#{code}) Title: Why it failed"' in message
    assert next_step in message
    assert ("Meta refused it" in message) is (status < 429)
    server.will(answer(status, {"error": {"message": "Title", "code": code}}))
    with pytest.raises(error, match=rf"Title \(code {code}\)"):
        make(attempts=1).get_customer(CUSTOMER)


def test_an_error_of_kapsos_has_no_code_of_metas(server: FaultyServer, client: KapsoClient) -> None:
    for error in ("no", {"message": "no"}, {"message": "no", "code": True}):
        server.will(answer(422, {"error": error}))
        with pytest.raises(KapsoValidationError, match="Kapso rejected") as caught:
            client.get_customer(CUSTOMER)
        assert caught.value.meta_code is None


SECRET = "Zq7pLx-vT2mWqYb9"
SECRET_CALLS: list[Any] = [
    lambda c: c.create_phone_number(
        CUSTOMER, name="x", phone_number_id="1", business_account_id="2", access_token=SECRET
    ),
    lambda c: c.update_phone_number(NUMBER, {"access_token": SECRET}),
    lambda c: c.update_phone_number(NUMBER, {"webhook_verify_token": SECRET}),
    lambda c: c.create_webhook(url="https://x.example", secret_key=SECRET, events=[]),
    lambda c: c.create_number_webhook(NUMBER, url="https://x.example", secret_key=SECRET),
    lambda c: c.update_number_webhook(NUMBER, WEBHOOK, {"secret_key": SECRET}),
]


@pytest.mark.parametrize("call", SECRET_CALLS)
def test_secrets_that_are_sent_are_not_quoted(
    server: FaultyServer, client: KapsoClient, call: Any
) -> None:
    server.will(answer(422, {"error": f"{SECRET} is not valid"}))
    with pytest.raises(KapsoValidationError, match=r"\*\*\* is not valid") as caught:
        call(client)
    assert SECRET in server.requests[0].body.decode()
    traceback = caught.value.__traceback__
    report = ExceptionReporter(None, type(caught.value), caught.value, traceback)
    ours = [f for f in report.get_traceback_frames() if "kapso_connect" in f["filename"]]
    assert len(ours) >= 3
    assert SECRET not in report.get_traceback_text().replace("SECRET", "")
    for frame in ours:
        assert SECRET not in str(frame["vars"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
CALLS = [parameter.values[0] for parameter in OPERATIONS]


def value_or_kapso_error(call: Any, client: KapsoClient) -> None:
    with contextlib.suppress(KapsoError):
        call(client)


@given(content=st.binary(max_size=200), call=st.sampled_from(CALLS))
def test_any_bytes_are_a_value_or_a_kapso_error(
    server: FaultyServer, make: Make, content: bytes, call: Any
) -> None:
    server.will(raw(content))
    value_or_kapso_error(call, make())


@given(
    status=st.integers(100, 999).filter(lambda status: status != 429),
    headers=st.dictionaries(
        st.sampled_from(
            ["Location", "Retry-After", "Content-Type", "Set-Cookie", "Content-Encoding", "X"]
        ),
        st.text(string.printable.replace("\r", "").replace("\n", ""), max_size=30),
    ),
    content=st.binary(max_size=100) | JSON.map(lambda v: json.dumps(v).encode()),
    call=st.sampled_from(CALLS),
)
def test_any_http_answer_is_a_value_or_a_kapso_error(
    server: FaultyServer, make: Make, status: int, headers: Any, content: bytes, call: Any
) -> None:
    server.will(answer(status, content, headers, keep_alive=False))
    value_or_kapso_error(call, make(budget=0.5))


@given(data=st.data(), schema_and_call=st.sampled_from([p.values for p in OPERATIONS]))
def test_any_member_of_an_answer_may_be_anything(
    server: FaultyServer, make: Make, data: st.DataObject, schema_and_call: Any
) -> None:
    call, schema, _ = schema_and_call
    body = example(schema) if isinstance(schema, str) else schema or {}
    target = body.get("data", body)
    target = target[0] if isinstance(target, list) else target
    if target:
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    if "paging" in body:
        body["paging"] = data.draw(st.fixed_dictionaries({"cursors": JSON, "next": JSON}) | JSON)
    if "meta" in body:
        body["meta"]["total_pages"] = data.draw(st.integers(-1, 3) | JSON)
    server.will(answer(200, body))
    value_or_kapso_error(call, make())


def test_rate_limit_error_contains_the_wait(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(429, {"error": "slow down"}, {"Retry-After": "60"}))
    with pytest.raises(KapsoRateLimited, match=r'"slow down"\. Try again in 60 seconds') as caught:
        client.get_phone_number_health(NUMBER)
    assert caught.value.retry_after == 60
