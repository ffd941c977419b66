"""What is answered below the API where nothing is: the error body of the API, never a redirect that
loses a request."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import include, path

from kapso_connect.models import Customer

from ..factories import make_customer
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

MOUNT = "/api/whatsapp/"

urlpatterns = [path("admin/", admin.site.urls), path("", include("kapso_connect.api.urls"))]
"""A site that has the API at its root."""


@pytest.mark.parametrize("append_slash", [True, False])
@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_missing_slash_is_an_error_that_names_the_url(
    caller: Caller, settings: Any, method: str, debug: bool, append_slash: bool
) -> None:
    settings.DEBUG, settings.APPEND_SLASH = debug, append_slash
    answer = caller.send(method, "customers", {"name": "Ada"})
    assert code(answer, 404) == "missing_slash"
    assert answer.json()["message"].endswith(" /api/whatsapp/v1/customers/")
    assert not Customer.objects.exists()


def test_missing_slash_is_named_to_anybody() -> None:
    assert (
        code(Client(enforce_csrf_checks=True).post(f"{MOUNT}v1/customers"), 404) == "missing_slash"
    )


def test_wrong_credentials_do_not_hide_that_there_is_nothing() -> None:
    headers = {"Authorization": "Basic nobody"}
    assert code(Client().post(f"{MOUNT}v1/customers", headers=headers), 404) == "missing_slash"


@pytest.mark.urls(__name__)
def test_api_at_the_root_of_a_site() -> None:
    client = Client()
    assert code(client.post("/v1/customers"), 404) == "missing_slash"
    assert code(client.post("/customers/"), 404) == "not_found"
    assert client.get("/").headers["Location"] == "v1/"
    assert code(client.get("/%5cevil.example/v1"), 404) == "not_found"


@pytest.mark.urls(__name__)
def test_other_pages_of_a_site_with_the_api_at_its_root_need_no_slash() -> None:
    assert Client().get("/admin").headers["Location"] == "/admin/"


def test_get_without_the_slash_is_redirected(caller: Caller) -> None:
    customer = make_customer()
    answer = caller.get(f"customers/{customer.pk}?a=b")
    assert answer.status_code == 301
    assert answer.headers["Location"] == f"/api/whatsapp/v1/customers/{customer.pk}/?a=b"
    assert caller.get("customers", follow=True).json()["count"] == 1


@pytest.mark.parametrize(
    "path", ["v1/nothing/", "v1/nothing", "v2/customers/", "x", "v1/customers/x/y/", "%0a", "é"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_unknown_urls_have_the_error_body(caller: Caller, method: str, path: str) -> None:
    caller.at = MOUNT
    answer = caller.send(method, path, {})
    assert code(answer, 404) == "not_found"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["customers/", "customers", "customers/7/status/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_missing_version_is_named(caller: Caller, method: str, path: str) -> None:
    caller.at = MOUNT
    answer = caller.send(method, path, {})
    assert code(answer, 404) == "not_found"
    right = f"{MOUNT}v1/{path.rstrip('/')}/"
    assert answer.json()["message"].endswith(right)


def test_root_without_a_version_leads_to_the_present_one(caller: Caller) -> None:
    answer = caller.client.get(MOUNT, follow=True)
    assert answer.redirect_chain == [("v1/", 302)]
    assert answer.json()["customers"] == "http://testserver/api/whatsapp/v1/customers/"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_root_without_a_version_loses_no_request(caller: Caller, method: str) -> None:
    """Clients would follow a redirect with a GET, and take its answer for a success."""
    caller.at = MOUNT
    answer = caller.send(method, "", {})
    if method == "OPTIONS":
        assert code(answer, 405) == "method_not_allowed"
        return
    assert code(answer, 404) == "not_found"
    assert answer.json()["message"].endswith(f"{MOUNT}v1/")


def test_question_mark_in_a_path_does_not_become_a_query(caller: Caller) -> None:
    answer = caller.get("customers/7%3Fa=b?c=d")
    assert answer.headers["Location"] == "/api/whatsapp/v1/customers/7%3Fa%3Db/?c=d"


@pytest.mark.urls("tests.sites.tenant_api")
def test_arguments_of_the_mount_are_kept(caller: Caller) -> None:
    caller.at = "/of/theirs/api/v1/"
    answer = caller.post("customers", {"name": "A"})
    assert answer.json()["message"].endswith(" /of/theirs/api/v1/customers/")


def test_people_read_the_error_in_a_browser(caller: Caller) -> None:
    answer = caller.get("nothing/", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "not_found" in answer.content.decode()
