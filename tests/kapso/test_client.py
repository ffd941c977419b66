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
    KapsoSetupLink,
    KapsoWebhook,
)
from tests import ROOT
from tests.contract import CONTRACT, find_path
from tests.faulty_server import FaultyServer, Received, answer, raw

CUSTOMER = "0b0e1d6e-55a5-4b0a-9d5c-0a4f4f3a2b11"
LINK = "7b1f3d7e-7d1c-4b57-8d57-1f1f0a5b6c22"
WEBHOOK = "c5b0a1de-0d0e-4f5b-9a51-3a3b4c5d6e33"
NUMBER = "106540352242922"
BASE = "/platform/v1"
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
    if "meta" in body:
        body["meta"]["total_pages"] = data.draw(st.integers(-1, 3) | JSON)
    server.will(answer(200, body))
    value_or_kapso_error(call, make())


def test_rate_limit_error_contains_the_wait(server: FaultyServer, client: KapsoClient) -> None:
    server.will(answer(429, {"error": "slow down"}, {"Retry-After": "60"}))
    with pytest.raises(KapsoRateLimited, match=r'"slow down"\. Try again in 60 seconds') as caught:
        client.get_phone_number_health(NUMBER)
    assert caught.value.retry_after == 60
