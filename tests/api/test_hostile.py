"""Requests that nobody sends who means well: the REST API refuses each, and nothing has changed."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from django.test import Client

from kapso_connect.models import Customer, SetupLink
from kapso_connect.testing import Sandbox

from ..factories import make_customer, make_link
from .support import API, Caller, code, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "A", "name": "B"}',
        b'{"name": "A", "\\u006eame": "B"}',
        b'{"name": "A", "email": {"a": 1, "a": 2}}',
        gzip.compress(b'{"name": "A"}', mtime=0),
        b'{"name": "A"} {"name": "B"}',
        b'{"name": "A",}',
        b"{'name': 'A'}",
        b'{"name": "A"}\x00',
        b"-",
        b'{"name": -Infinity}',
    ],
)
def test_ambiguous_json_is_rejected(caller: Caller, body: bytes) -> None:
    assert code(caller.post("customers/", body), 400) == "parse_error"
    assert code(caller.post("customers/", body, HTTP_CONTENT_ENCODING="gzip"), 400)
    assert not Customer.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        *(b"null", b"[]", b'"name"', b"1", b"true", b"[[]]", b"", b"{}", b'[{"name": "A"}]'),
        b'{"name": "A", "": 1}',
        b'{"name": "A", "__proto__": {}}',
        b'{"name": "A", "owner_id": "1", "connect_key": "x"}',
        b'{"name": 1e400}',
        b'{"name": ' + b"1" + b"0" * 400 + b"}",
        b'{"name": ["A"]}',
        b'{"name": {"a": "A"}}',
        b'{"name": true}',
        b'{"name": "\\u200b\\u2028"' + b', "email": "\\r\\nBcc: x@example.com"}',
    ],
)
def test_invalid_customers_are_rejected(caller: Caller, body: bytes) -> None:
    assert code(caller.post("customers/", body), 400) == "invalid"
    assert not Customer.objects.exists()


@pytest.mark.parametrize(
    "key", ["1e400", "1" + "0" * 400, "-1", "1.0", '"1"', "true", "null", "[]"]
)
def test_customer_of_a_link_must_be_a_positive_integer(caller: Caller, key: str) -> None:
    make_customer(pk=1)
    answer = caller.post("setup-links/", f'{{"customer": {key}}}'.encode())
    assert code(answer, 400) == "invalid"
    assert list(answer.json()["fields"]) == ["customer"]
    assert not SetupLink.objects.exists()


def test_body_without_content_length_is_rejected(caller: Caller) -> None:
    options = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    assert code(caller.post("customers/", {"name": "A"}, **options), 400) == "parse_error"
    options["CONTENT_LENGTH"] = "x"
    assert code(caller.post("customers/", {"name": "A"}, **options), 400) == "parse_error"
    assert not Customer.objects.exists()
    path = f"customers/{make_customer().pk}/"
    answer = caller.send("PATCH", path, {"name": "A"}, **options)
    assert code(answer, 400) == "parse_error"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "TRACE"])
def test_method_overrides_are_ignored(caller: Caller, method: str) -> None:
    link = make_link()
    path = f"customers/{link.customer_id}/"
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        answer = caller.post(path, {"name": "A"}, headers={header: method})
        assert code(answer, 405) == "method_not_allowed"
    assert code(caller.post(f"{path}?_method={method}"), 405) == "method_not_allowed"
    assert Customer.objects.get().name != "A"


def test_head_is_get_without_a_body(caller: Caller) -> None:
    customer = make_customer()
    for path in ("", "customers/", f"customers/{customer.pk}/", "events/", "schema/"):
        answer = caller.send("HEAD", path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert caller.send("HEAD", "customers/99/").status_code == 404


@pytest.mark.parametrize("accept", ["image/png", "text/csv;q=1", "application/xml", "a/b,c/d"])
def test_nothing_is_created_without_an_acceptable_format(caller: Caller, accept: str) -> None:
    answer = caller.post("customers/", {"name": "A"}, headers={"Accept": accept})
    assert code(answer, 406) == "not_acceptable"
    assert code(caller.post("customers/?format=xml", {"name": "A"}), 404) == "not_found"
    assert not Customer.objects.exists()


@pytest.mark.parametrize("accept", ["", "*/*", "garbage", "application/*", ";;;"])
def test_default_format_is_json(caller: Caller, accept: str) -> None:
    answer = caller.get("customers/", headers={"Accept": accept} if accept else {})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.status_code == (406 if accept in {"garbage", ";;;"} else 200)


@pytest.mark.parametrize("pk", ["9" * 5000, str(2**63), "\u0661", "-1"])
def test_what_is_no_id_is_not_found(caller: Caller, pk: str) -> None:
    for path in ("customers", "setup-links", "connections", "batches"):
        assert code(caller.get(f"{path}/{pk}/"), 404) == "not_found"
    answer = caller.get("events/", data={"customer": pk})
    assert code(answer, 400) == "invalid_filter"


def test_errors_about_unknown_names_are_bounded(caller: Caller) -> None:
    body = {f"name{n}": n for n in range(3000)}
    assert len(caller.post("customers/", body).json()["fields"]) == 21, "With the missing name."
    answer = caller.get("customers/", data={"x" * 3000: "1"})
    assert list(answer.json()["fields"]) == ["x" * 100]


def test_slashes_and_nul_in_urls(caller: Caller) -> None:
    make_customer(pk=1)
    for path in ("customers/1%2F1/", "customers/1/%00/", "customers/..%2F1/", "customers//1/"):
        assert caller.get(path).status_code == 404
        assert caller.send("PATCH", path, {"name": "A"}).status_code == 404
    assert Customer.objects.get().name != "A"


@pytest.mark.parametrize("common", [True, False])
def test_nothing_is_created_for_another_host(caller: Caller, settings: Any, common: bool) -> None:
    settings.ALLOWED_HOSTS = ["site.example"]
    if not common:
        name = "django.middleware.common.CommonMiddleware"
        settings.MIDDLEWARE = [one for one in settings.MIDDLEWARE if one != name]
    answer = caller.post("customers/", {"name": "A"}, headers={"Host": "evil.example"})
    assert answer.status_code == 400
    if not common:
        assert code(answer, 400) == "bad_request"
    assert not Customer.objects.exists()


def test_too_many_parameters(caller: Caller) -> None:
    query = "&".join(f"a{number}=1" for number in range(1001))
    assert code(caller.get(f"customers/?{query}"), 400) == "bad_request"


@pytest.mark.parametrize(("method", "path"), [("POST", "customers/"), ("PATCH", "customers/{}/")])
def test_cross_site_requests_are_rejected(method: str, path: str) -> None:
    customer = make_customer(name="As it is")
    caller = Caller(make_user("staff", "superuser"))
    caller.client = Client(enforce_csrf_checks=True)
    caller.client.force_login(caller.user)
    path = path.format(customer.pk)
    for kind in ("application/json", "text/plain"):
        answer = caller.send(method, path, {"name": "A"}, content_type=kind)
        assert code(answer, 403) == "csrf_failed"
    assert [row.name for row in Customer.objects.all()] == ["As it is"]
    caller.client.get("/admin/")  # whose page has the token
    caller.client.cookies["csrftoken"] = "t" * 32
    answer = caller.send(method, path, {"name": "A"}, headers={"X-CSRFToken": "t" * 32})
    assert answer.status_code in {200, 201}


@pytest.mark.parametrize(
    "etag",
    ["", "*", '"', 'W/"', '"' + "x" * 5000 + '"', "W/", ", , ,", '"a", "b"', "\u00e9", '""'],
)
def test_malformed_etags_are_ignored(caller: Caller, etag: str) -> None:
    customer = make_customer()
    headers = {"If-None-Match": etag, "Accept-Language": "xx;q=9,\u00e9,*;q=-1"}
    answer = caller.get(f"customers/{customer.pk}/status/", headers=headers)
    assert answer.status_code == (304 if etag == "*" else 200)


def test_html_in_values_is_escaped(caller: Caller, sandbox: Sandbox) -> None:
    name = "<script>alert(1)</script>{{ 1 }}"
    answer = caller.post("customers/", {"name": name}, headers={"Accept": "text/html"})
    assert answer.status_code == 201
    assert b"<script>alert" not in answer.content
    assert b"&lt;script&gt;" in answer.content
    wrong = json.dumps({"name": "A", "</textarea><script>alert(1)</script>": 1}).encode()
    answer = caller.post("customers/", wrong, headers={"Accept": "text/html"})
    assert answer.status_code == 400
    assert b"<script>alert" not in answer.content
    answer = caller.get(
        'customers/?status="><script>alert(1)</script>', headers={"Accept": "text/html"}
    )
    assert answer.status_code == 400
    assert b"<script>alert" not in answer.content
    assert API.encode() in answer.content
