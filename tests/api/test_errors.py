"""Whatever is sent to the REST API: an answer below 500, one shape of body, a code to rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rest_framework import exceptions
from rest_framework.exceptions import ErrorDetail

from kapso_connect.api import errors
from kapso_connect.api.parsers import MAX_BODY_BYTES
from kapso_connect.models import Customer, IdempotentRequest, SetupLink
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from .support import API, Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

LISTS = ["customers/", "setup-links/", "connections/", "events/"]


# Ids, filters, pages


@pytest.mark.parametrize(
    "pk",
    [
        "0",
        "99",
        "-1",
        "1.0",
        "1e3",
        "x",
        "None",
        "٣",
        "²",
        "1%00",
        "%00",
        "%ED%A0%80",
        "%FF",
        "9" * 18,
        "9" * 19,
        "9" * 400,
        "+1",
        "1_0",
        "%20",
    ],
)
def test_unknown_and_malformed_ids_are_not_found(caller: Caller, pk: str) -> None:
    for path in ("customers/{}/", "customers/{}/status/", "setup-links/{}/", "connections/{}/"):
        assert code(caller.get(path.format(pk)), 404) == "not_found"
    for path in (
        "setup-links/{}/revoke/",
        "connections/{}/refresh/",
        "connections/{}/disconnect/",
    ):
        assert code(caller.post(path.format(pk)), 404) == "not_found"
    assert code(caller.send("PATCH", f"customers/{pk}/", {"name": "A"}), 404) == "not_found"


NUMBERS = [
    "",
    "x",
    "-1",
    "0",
    "1.5",
    "1e3",
    "٣",
    "9" * 19,
    "9" * 5000,
    "%00",
    "%ED%A0%80",
    "1%20",
    "+1",
]
MOMENTS = [
    "",
    "x",
    "2026",
    "2026-01-31",
    "2026-01-31T12:00:00",
    "2026-13-31T12:00:00Z",
    "0001-01-01T00:00:00%2B14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-01-31T12:00:00 02:00",
    "1",
]
TEXTS = ["%00", "x" * 5000, "a%00b"]


@pytest.mark.parametrize(
    ("path", "name", "values"),
    [
        ("customers/", "page", NUMBERS),
        ("customers/", "page_size", [*NUMBERS, "101"]),
        ("customers/", "status", ["", "x", "CONNECTED", *TEXTS]),
        ("customers/", "search", TEXTS),
        ("customers/", "external_customer_id", ["", *TEXTS]),
        ("setup-links/", "customer", NUMBERS),
        ("setup-links/", "status", ["", "x", *TEXTS]),
        ("connections/", "customer", NUMBERS),
        ("connections/", "status", ["", "x", *TEXTS]),
        ("connections/", "phone_number_id", ["", *TEXTS]),
        ("events/", "page_size", [*NUMBERS, "101"]),
        ("events/", "customer", NUMBERS),
        ("events/", "connection", NUMBERS),
        ("events/", "setup_link", NUMBERS),
        ("events/", "kind", ["", "x", *TEXTS]),
        ("events/", "since", MOMENTS),
        ("events/", "until", MOMENTS),
        ("events/", "cursor", ["", *TEXTS]),
        ("events/", "page", ["1"]),
    ],
)
def test_invalid_filter_values_are_rejected(
    caller: Caller, path: str, name: str, values: list[str]
) -> None:
    for value in values:
        answer = caller.get(f"{path}?{name}={value}")
        assert code(answer, 400) == "invalid_filter", value
        (path_of_error,) = answer.json()["fields"]
        assert path_of_error.removesuffix(".0") == name, value


@pytest.mark.parametrize("path", LISTS)
def test_unknown_and_repeated_filters_are_rejected(caller: Caller, path: str) -> None:
    answer = caller.get(f"{path}?custmer=1&customer=x&page_size=1&page_size=2")
    assert code(answer, 400) == "invalid_filter"
    fields = answer.json()["fields"]
    assert fields["custmer"][0]["code"] == "unknown_filter"
    assert "repeated" in [problem["code"] for problem in fields["page_size"]]


def test_page_beyond_the_last_is_not_found(caller: Caller) -> None:
    assert code(caller.get("customers/?page=1000000"), 404) == "not_found"
    assert code(caller.get("customers/?page=1000001"), 400) == "invalid_filter"


# Bodies

DEEP = b'{"name": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
BODIES = [
    b"{",
    b"nonsense",
    b"\xff\xfe",
    b'{"name": NaN}',
    b'{"name": Infinity}',
    DEEP,
    b'{"name": ' + b'{"a":' * 30 + b"1" + b"}" * 30 + b"}",
    b'{"name": "a\\u0000b"}',
    b'{"name": "\\ud800"}',
    b'{"a\\u0000": 1}',
    b'{"x": ["\\udfff"]}',
    b'{"name": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf{}",
    '{"name": "ä"}'.encode("utf-16"),
]
POSTS = [
    ("POST", "customers/"),
    ("PATCH", "customers/{}/"),
    ("PATCH", "customers/{}/"),
    ("POST", "setup-links/"),
    ("POST", "setup-links/{}/revoke/"),
    ("POST", "connections/{}/refresh/"),
    ("POST", "connections/{}/disconnect/"),
]


@pytest.fixture
def pk() -> int:
    """The key of a customer, of a link and of a number."""
    customer = make_customer(pk=77)
    make_link(customer, pk=77)
    make_connection(customer, pk=77)
    return 77


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_invalid_json_is_rejected(
    caller: Caller, sandbox: Sandbox, pk: int, method: str, path: str
) -> None:
    before = [list(model.objects.values()) for model in (Customer, SetupLink)]
    for body in BODIES:
        answer = caller.send(method, path.format(pk), body)
        assert code(answer, 400) == "parse_error", body[:50]
    assert [list(model.objects.values()) for model in (Customer, SetupLink)] == before


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_other_media_types_are_rejected(caller: Caller, pk: int, method: str, path: str) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        answer = caller.send(method, path.format(pk), b"name=A", content_type=kind)
        assert code(answer, 415) == "unsupported_media_type"


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_too_large_body_is_not_read(caller: Caller, pk: int, method: str, path: str) -> None:
    class Unread:
        def read(self, *args: Any) -> bytes:
            raise AssertionError("The body was read.")

        readline = read

    answer = caller.client.generic(
        method,
        API + path.format(pk),
        content_type="application/json",
        CONTENT_LENGTH=str(MAX_BODY_BYTES + 1),
        **{"wsgi.input": Unread()},
    )
    assert code(answer, 413) == "too_large"


def test_body_of_the_maximum_size_is_read(caller: Caller) -> None:
    body = b'{"name": "A"}'
    assert caller.post("customers/", body.ljust(MAX_BODY_BYTES)).status_code == 201
    assert code(caller.post("customers/", body.ljust(MAX_BODY_BYTES + 1)), 413) == "too_large"


def test_lower_limit_of_the_site_applies(caller: Caller, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert code(caller.post("customers/", b'{"name": "A"}'.ljust(101)), 413) == "too_large"


# Methods, formats, unknown errors


@pytest.mark.parametrize("path", ["", *LISTS, "customers/77/", "customers/77/status/"])
def test_unknown_methods_are_not_allowed(caller: Caller, pk: int, path: str) -> None:
    for method in ("DELETE", "OPTIONS", "TRACE", "PURGE"):
        answer = caller.send(method, path)
        assert code(answer, 405) == "method_not_allowed"
        assert "GET" in answer.headers["Allow"]
    assert code(caller.get("setup-links/77/revoke/"), 405) == "method_not_allowed"


def test_unknown_formats(caller: Caller) -> None:
    assert code(caller.get("customers/?format=xml"), 404) == "not_found"
    answer = caller.get("customers/", headers={"Accept": "application/xml"})
    assert code(answer, 406) == "not_acceptable"


def test_responses_must_not_be_cached(caller: Caller) -> None:
    for path in ("", *LISTS, "customers/99/"):
        assert caller.get(path).headers["Cache-Control"] == "no-store"


def test_rest_framework_settings_of_the_site_do_not_change_responses(
    caller: Caller, settings: Any
) -> None:
    customer = make_customer()
    path = f"customers/{customer.pk}/"
    before = [caller.get(one).content for one in (path, "customers/", "customers/99/")]
    settings.REST_FRAMEWORK = {
        "EXCEPTION_HANDLER": "tests.api.test_errors.nothing",
        "DATETIME_FORMAT": "%d",
        "DEFAULT_PAGINATION_CLASS": None,
        "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.NamespaceVersioning",
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.FormParser"],
        "DEFAULT_PERMISSION_CLASSES": ["tests.api.test_errors.Nobody"],
        "DEFAULT_THROTTLE_CLASSES": ["tests.api.test_errors.Nobody"],
        "DEFAULT_FILTER_BACKENDS": ["tests.api.test_errors.Nobody"],
        "PAGE_SIZE": 1,
        "NON_FIELD_ERRORS_KEY": "wrong",
    }
    assert [caller.get(one).content for one in (path, "customers/", "customers/99/")] == before
    assert list(caller.post("customers/", []).json()["fields"]) == ["body"]


def test_missing_public_url_is_a_configuration_error(
    caller: Caller, configure: Any, sandbox: Sandbox
) -> None:
    configure(PUBLIC_URL="")
    answer = caller.post(
        "setup-links/", {"customer": make_customer().pk}, headers={"Idempotency-Key": "k"}
    )
    assert code(answer, 503) == "not_configured"
    assert not IdempotentRequest.objects.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.AuthenticationFailed({"detail": "No.", "code": "token_not_valid"}), "No."),
        (exceptions.AuthenticationFailed(["No."]), "No."),
        (exceptions.AuthenticationFailed([]), "Incorrect authentication credentials."),
        (exceptions.APIException(ErrorDetail("No.", "mine")), "No."),
    ],
)
def test_errors_of_other_authentication_classes_have_the_same_body(
    error: exceptions.APIException, expected: str
) -> None:
    class View:
        shows_details = True

    error.auth_header = "Bearer"
    answer = errors.exception_handler(error, {"view": View})
    assert answer is not None
    assert answer.data["message"] == expected
    assert isinstance(answer.data["code"], str)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    json.dumps(answer.data)


def nothing(*args: Any) -> None:
    raise AssertionError("This is not ours to use.")


class Nobody:
    """Would refuse everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: False
