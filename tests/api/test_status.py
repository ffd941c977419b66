"""The status of an onboarding: all a front end needs to know, and cheap to ask again and again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Connection, Customer, SetupLink

from ..factories import make_connection, make_customer, make_link, store_statuses
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def status(caller: Caller, customer: Customer) -> Any:
    answer = caller.get(f"customers/{customer.pk}/status/")
    assert answer.status_code == 200
    return answer.json()


def test_not_invited_customer(caller: Caller) -> None:
    customer = make_customer()
    assert status(caller, customer) == {
        "customer": customer.pk,
        "status": "not_invited",
        "connection": None,
        "more_connections": 0,
        "setup_link": None,
        "failure": None,
    }


def test_invited_customer(caller: Caller) -> None:
    end = timezone.now() + timedelta(days=30)
    link = make_link(expires_at=end, opened_at=end - timedelta(days=30))
    data = status(caller, link.customer)
    assert data["status"] == "opened"
    assert data["setup_link"] == {
        "id": link.pk,
        "status": "active",
        "setup_status": "pending",
        "opened_at": link.opened_at.isoformat().replace("+00:00", "Z"),
        "expires_at": end.isoformat().replace("+00:00", "Z"),
    }
    assert "secret-token" not in str(data)


def test_link_past_its_end_is_expired(caller: Caller) -> None:
    link = make_link(expires_at=timezone.now())
    assert status(caller, link.customer)["setup_link"]["status"] == "expired"


@pytest.mark.parametrize("kapso_code", [*SETUP_ERRORS, "something_new", ""])
def test_failure_has_a_stable_code(caller: Caller, kapso_code: str) -> None:
    link = make_link(setup_status="failed", last_error_code=kapso_code)
    data = status(caller, link.customer)["failure"]
    assert data["code"] == (kapso_code if kapso_code in SETUP_ERRORS else "unknown")
    assert data["kapso_code"] == (kapso_code or None)
    assert data["title"]
    assert data["cause"]
    assert data["advice"]
    assert data["action"] in {"try_again", "other_number", "fresh_link", "contact"}


def test_failure_texts_are_in_the_language_of_the_request(caller: Caller) -> None:
    link = make_link(setup_status="failed", last_error_code="link_expired")
    path = f"customers/{link.customer_id}/status/"
    english = caller.get(path)
    spanish = caller.get(path, headers={"Accept-Language": "es"})
    assert english.json()["failure"]["title"] == "This link has expired"
    assert spanish.json()["failure"]["title"] != "This link has expired"
    assert "Accept-Language" in english.headers["Vary"]


def test_failure_is_gone_after_success(caller: Caller) -> None:
    link = make_link(setup_status="failed", last_error_code="link_expired")
    make_connection(link.customer)
    assert status(caller, link.customer)["failure"] is None


def test_connected_customer(caller: Caller) -> None:
    customer = make_customer()
    make_connection(customer, connected_at=timezone.now() - timedelta(days=1))
    newest = make_connection(
        customer, display_phone_number="+1 415-555-0100", verified_name="Ada's"
    )
    data = status(caller, customer)
    assert data["status"] == "connected"
    assert data["more_connections"] == 1
    assert data["connection"]["id"] == newest.pk
    assert data["connection"]["phone_number_id"] == newest.phone_number_id
    assert data["connection"]["display_phone_number"] == "+1 415-555-0100"


def test_list_and_status_agree(caller: Caller) -> None:
    make_link(unconfirmed_since=timezone.now(), setup_status="failed", last_error_code="x")
    make_link(make_connection().customer)
    customers = caller.get("customers/").json()["results"]
    assert [row["status"] for row in customers] == ["connected", "confirming"]
    for row in customers:
        data = status(caller, Customer.objects.get(pk=row["id"]))
        assert (data["status"], data["failure"]) == (row["status"], None)


# Asking again and again


def poll(caller: Caller, customer: Customer, etag: str) -> Any:
    return caller.get(f"customers/{customer.pk}/status/", headers={"If-None-Match": etag})


def test_unchanged_status_is_304(caller: Caller) -> None:
    customer = make_link().customer
    first = caller.get(f"customers/{customer.pk}/status/")
    etag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "private, no-cache"
    for known in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        again = poll(caller, customer, known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == etag
        assert again.headers["Cache-Control"] == "private, no-cache"
    for unknown in ('"other"', "", "nonsense", etag[:-2] + '"'):
        assert poll(caller, customer, unknown).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"status": "revoked"},
        {"setup_status": "processing"},
        {"setup_status": "failed"},
        {"setup_status": "failed", "last_error_code": "link_expired"},
        {"opened_at": timezone.now()},
        {"expires_at": timezone.now()},
    ],
)
def test_every_change_of_the_link_changes_the_etag(caller: Caller, change: dict[str, Any]) -> None:
    link = make_link()
    etag = caller.get(f"customers/{link.customer_id}/status/").headers["ETag"]
    SetupLink.objects.update(**change)
    store_statuses()
    assert poll(caller, link.customer, etag).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"status": "disconnected", "disconnected_at": timezone.now()},
        {"display_phone_number": "+49 30 1"},
        {"verified_name": "Ada"},
        {"connection_type": "dedicated"},
        {"connected_at": timezone.now() - timedelta(days=1)},
        {"disconnect_reason": "moved"},
    ],
)
def test_every_change_of_the_number_changes_the_etag(
    caller: Caller, change: dict[str, Any]
) -> None:
    customer = make_connection().customer
    etag = caller.get(f"customers/{customer.pk}/status/").headers["ETag"]
    Connection.objects.update(**change)
    assert poll(caller, customer, etag).status_code == 200


def test_status_takes_a_fixed_number_of_queries(caller: Caller) -> None:
    customer = make_customer()
    for _ in range(10):
        make_link(customer)
        make_connection(customer)
        make_link()
    etag = caller.get(f"customers/{customer.pk}/status/").headers["ETag"]
    with CaptureQueriesContext(database) as captured:
        assert poll(caller, customer, etag).status_code == 304
    assert len(captured) == 6  # two of them for the session and the user


def test_unknown_customer(caller: Caller) -> None:
    assert code(caller.get("customers/99/status/"), 404) == "not_found"
