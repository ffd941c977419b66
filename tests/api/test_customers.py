"""Customers through the REST API: made, found, changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.permissions import BasePermission

from kapso_connect.models import Customer
from kapso_connect.onboarding.status import OnboardingStatus

from ..factories import make_connection, make_customer, make_link
from .support import API, Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def names(caller: Caller, query: str = "") -> list[str]:
    return [row["name"] for row in caller.get(f"customers/?{query}").json()["results"]]


def test_root_lists_the_urls(caller: Caller) -> None:
    answer = caller.get("").json()
    names = {"customers", "setup_links", "connections", "events", "batches", "schema"}
    assert set(answer) == names
    for url in answer.values():
        assert caller.client.get(url).status_code == 200


# Making


def test_a_customer_is_created(caller: Caller) -> None:
    answer = caller.post("customers/", {"name": "Ada", "email": "ada@example.com"})
    assert answer.status_code == 201
    customer = Customer.objects.get()
    assert (customer.name, customer.email, customer.language) == ("Ada", "ada@example.com", "")
    assert answer.headers["Location"] == f"http://testserver{API}customers/{customer.pk}/"
    assert answer.json() == caller.get(f"customers/{customer.pk}/").json()
    assert answer.json()["status"] == "not_invited"
    assert answer.json()["external_customer_id"] == customer.external_customer_id != ""


def test_language_may_be_one_that_the_site_adds(caller: Caller, configure: Any) -> None:
    def patch(**body: str) -> Any:
        return caller.send("PATCH", f"customers/{Customer.objects.get().pk}/", body)

    configure(EXTRA_LANGUAGES=["de"])
    answer = caller.post("customers/", {"name": "Ada", "language": "de"})
    assert (answer.status_code, answer.json()["language"]) == (201, "de")
    (error,) = patch(language="fr").json()["fields"]["language"]
    assert error == {
        "code": "invalid_choice",
        "message": "Must be one of: en, es, pt, hi, id, ar, de.",
    }
    document = caller.get("schema/").json()
    schemas = document["components"]["schemas"]
    assert "de" in schemas["KapsoCustomerLanguage"]["enum"]
    assert "de" not in schemas["KapsoLanguage"]["enum"]
    configure(EXTRA_LANGUAGES=[])
    assert patch(language="de").status_code == 400
    answer = patch(name="New")
    assert (answer.status_code, answer.json()["language"]) == (200, "de")


def test_times_are_in_utc_in_every_time_zone(caller: Caller, settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Kolkata"
    with timezone.override("Asia/Kolkata"):
        created = caller.post("customers/", {"name": "Ada"}).json()["created_at"]
    stored = Customer.objects.get().created_at
    assert created == stored.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize(
    ("body", "path", "problem"),
    [
        ({}, "name", "required"),
        ({"name": ""}, "name", "blank"),
        ({"name": " "}, "name", "blank"),
        ({"name": None}, "name", "null"),
        ({"name": 7}, "name", "invalid"),
        ({"name": True}, "name", "invalid"),
        ({"name": ["A"]}, "name", "invalid"),
        ({"name": "A" * 256}, "name", "max_length"),
        ({"name": "A", "email": "ada"}, "email", "invalid"),
        ({"name": "A", "email": 7}, "email", "invalid"),
        ({"name": "A", "email": "a@example.com".rjust(300, "a")}, "email", "max_length"),
        ({"name": "A", "language": "xx"}, "language", "invalid_choice"),
        ({"name": "A", "language": ["en"]}, "language", "invalid_choice"),
        ({"name": "A", "external_customer_id": ""}, "external_customer_id", "blank"),
        ({"name": "A", "external_customer_id": 7}, "external_customer_id", "invalid"),
        ({"name": "A", "external_customer_id": "x" * 256}, "external_customer_id", "max_length"),
        ({"name": "A", "nmae": "B"}, "nmae", "unknown_field"),
        ([], "body", "invalid"),
        ("A", "body", "invalid"),
        (7, "body", "invalid"),
    ],
)
def test_invalid_values_are_named(caller: Caller, body: Any, path: str, problem: str) -> None:
    answer = caller.post("customers/", body)
    assert code(answer, 400) == "invalid"
    assert problem in [one["code"] for one in answer.json()["fields"][path]]
    assert not Customer.objects.exists()


def test_email_and_language_may_be_null(caller: Caller) -> None:
    answer = caller.post("customers/", {"name": "A", "email": None, "language": None})
    assert (answer.json()["email"], answer.json()["language"]) == (None, None)
    customer = Customer.objects.get()
    assert (customer.email, customer.language) == ("", "")
    for name in ("email", "language"):
        answer = caller.send("PATCH", f"customers/{customer.pk}/", {name: ""})
        assert code(answer, 400) == "invalid", name


def test_all_errors_are_said_at_once(caller: Caller) -> None:
    make_customer(external_customer_id="acme")
    body = {"email": "x", "nmae": "A", "status": "paused", "external_customer_id": " acme "}
    answer = caller.post("customers/", body)
    assert code(answer, 400) == "invalid"
    found = {name: problems[0]["code"] for name, problems in answer.json()["fields"].items()}
    assert found == {
        "name": "required",
        "email": "invalid",
        "nmae": "unknown_field",
        "status": "read_only",
        "external_customer_id": "unique",
    }


def test_external_id_is_unique(caller: Caller) -> None:
    make_customer(external_customer_id="acme")
    other = make_customer(external_customer_id="other")
    answer = caller.post("customers/", {"name": "B", "external_customer_id": "acme"})
    assert code(answer, 409) == "external_customer_id_taken"
    assert list(answer.json()["fields"]) == ["external_customer_id"]
    answer = caller.send("PATCH", f"customers/{other.pk}/", {"external_customer_id": "acme"})
    assert code(answer, 409) == "external_customer_id_taken"
    assert Customer.objects.count() == 2


def test_own_external_id_is_no_error_among_others(caller: Caller) -> None:
    customer = make_customer(external_customer_id="acme")
    body = {"email": "x", "external_customer_id": "acme"}
    answer = caller.send("PATCH", f"customers/{customer.pk}/", body)
    assert code(answer, 400) == "invalid"
    assert list(answer.json()["fields"]) == ["email"]


# Changing


def test_partial_update_keeps_other_fields(caller: Caller) -> None:
    customer = make_customer(name="A", email="a@example.com", external_customer_id="x")
    answer = caller.send("PATCH", f"customers/{customer.pk}/", {"name": "B"})
    assert answer.status_code == 200
    customer.refresh_from_db()
    assert (customer.name, customer.email, customer.external_customer_id) == (
        "B",
        "a@example.com",
        "x",
    )
    assert answer.json()["name"] == "B"


@pytest.mark.parametrize("field", ["id", "status", "kapso_id", "created_at", "updated_at"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_read_only_fields_are_refused(caller: Caller, method: str, field: str) -> None:
    customer = make_customer(name="A")
    known = caller.get(f"customers/{customer.pk}/").json()
    path = "customers/" if method == "POST" else f"customers/{customer.pk}/"
    answer = caller.send(method, path, {"name": "B", field: known[field]})
    assert code(answer, 400) == "invalid"
    assert answer.json()["fields"][field][0]["code"] == "read_only"
    assert Customer.objects.get().name == "A"


def test_change_to_what_it_is_already_changes_no_time(caller: Caller) -> None:
    customer = make_customer(name="A", email="a@example.com")
    path = f"customers/{customer.pk}/"
    before = caller.get(path).json()
    for body in ({}, {"name": "A", "email": "a@example.com", "language": None}):
        assert caller.send("PATCH", path, body).json() == before
    assert caller.send("PATCH", path, {"name": "B"}).json()["updated_at"] > before["updated_at"]


@pytest.mark.django_db(transaction=True)
def test_customer_who_is_erased_meanwhile_keeps_no_data(caller: Caller) -> None:
    """The erasure waits for the change, and erases what it changed."""
    if not database.features.has_select_for_update:
        pytest.skip("SQLite has no locks of rows: one transaction writes at a time.")
    customer = make_customer(name="Ada")

    def erase() -> None:
        Customer.objects.filter(pk=customer.pk).update(name="#1", erased_at=timezone.now())
        connections.close_all()

    erasure = threading.Thread(target=erase)

    def erase_meanwhile(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and "kapso_connect_customer" in sql and not erasure.ident:
            erasure.start()
            erasure.join(0.5)
        return execute(sql, *args)

    with database.execute_wrapper(erase_meanwhile):
        answer = caller.send("PATCH", f"customers/{customer.pk}/", {"name": "Bob"})
    assert answer.status_code == 200
    erasure.join(10)
    customer.refresh_from_db()
    assert customer.name == "#1"


def test_erased_customer_is_not_changed(caller: Caller) -> None:
    customer = make_customer(name="#1", erased_at=timezone.now())
    answer = caller.send("PATCH", f"customers/{customer.pk}/", {"name": "Ada"})
    assert code(answer, 409) == "customer_erased"
    customer.refresh_from_db()
    assert customer.name == "#1"


def test_put_is_not_there(caller: Caller) -> None:
    answer = caller.send("PUT", f"customers/{make_customer().pk}/", {"name": "B"})
    assert code(answer, 405) == "method_not_allowed"


def test_own_external_id_is_not_a_conflict(caller: Caller) -> None:
    customer = make_customer(external_customer_id="x")
    path = f"customers/{customer.pk}/"
    assert caller.send("PATCH", path, {"external_customer_id": "x"}).status_code == 200
    assert caller.send("PATCH", path, {"external_customer_id": None}).status_code == 200
    customer.refresh_from_db()
    assert customer.external_customer_id is None


class ConcurrentChange(BasePermission):
    """Lets another process change the customer after the view has read it."""

    change: Callable[[Customer], Any]

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        type(self).change(Customer.objects.get(pk=obj.pk))
        return True


def during_a_request(configure: Any, change: Callable[[Customer], Any]) -> None:
    ConcurrentChange.change = change
    configure(API_PERMISSIONS=["tests.api.test_customers.ConcurrentChange"])


def test_update_keeps_concurrent_changes_of_other_fields(caller: Caller, configure: Any) -> None:
    customer = make_customer(kapso_id=None)
    written = {"kapso_id": "k", "connect_key": "c"}
    during_a_request(configure, lambda row: Customer.objects.filter(pk=row.pk).update(**written))
    answer = caller.send("PATCH", f"customers/{customer.pk}/", {"name": "B"})
    assert answer.json()["kapso_id"] == "k"
    customer.refresh_from_db()
    assert (customer.name, customer.kapso_id, customer.connect_key) == ("B", "k", "c")


def test_customer_deleted_during_the_request_is_not_found(caller: Caller, configure: Any) -> None:
    customer = make_customer()
    during_a_request(configure, lambda row: row.delete())
    answer = caller.send("PATCH", f"customers/{customer.pk}/", {"name": "B"})
    assert code(answer, 404) == "not_found"


# Finding


def test_list_is_paginated_newest_first(caller: Caller) -> None:
    for number in range(5):
        make_customer(name=str(number))
    assert names(caller) == ["4", "3", "2", "1", "0"]
    page = caller.get("customers/?page_size=2&page=2").json()
    assert [row["name"] for row in page["results"]] == ["2", "1"]
    assert page["count"] == 5
    assert "page=3" in page["next"]
    assert page["previous"] is not None
    assert code(caller.get("customers/?page=4&page_size=2"), 404) == "not_found"


def test_default_page_size_is_fifty(caller: Caller) -> None:
    Customer.objects.bulk_create(Customer(name=str(n)) for n in range(101))
    assert len(names(caller)) == 50
    assert len(names(caller, "page_size=100")) == 100
    assert code(caller.get("customers/?page_size=101"), 400) == "invalid_filter"


def test_filter_by_exact_external_id(caller: Caller) -> None:
    make_customer(name="A", external_customer_id="Ab3")
    make_customer(name="B", external_customer_id="Ab34")
    assert names(caller, "external_customer_id=Ab3") == ["A"]
    assert names(caller, "external_customer_id=aB3") == []


def test_search(caller: Caller) -> None:
    make_customer(name="Bäckerei", email="x@example.com", external_customer_id="e1", kapso_id="k1")
    make_customer(name="Other", email="", external_customer_id="e2", kapso_id="k2")
    for text in ("bäckerei", "x@EXAMPLE", "e1", "k1", "%C3%A4cker"):
        assert names(caller, f"search={text}") == ["Bäckerei"], text
    assert names(caller, "search=%25") == []
    assert len(names(caller, "search=")) == 2


def test_search_finds_phone_numbers_and_references(caller: Caller) -> None:
    make_connection(make_customer(name="In Berlin"), display_phone_number="+49 30 5432134")
    link = make_link(make_customer(name="Invited"))
    for text in ("%2B49305432134", "030 5432134", "%2B49 30 5432134"):
        assert names(caller, f"search={text}") == ["In Berlin"], text
    assert names(caller, f"search={link.reference}") == ["Invited"]


def test_filter_by_status(caller: Caller) -> None:
    make_customer(name="not_invited")
    make_link(make_customer(name="invited"))
    make_link(make_customer(name="opened"), opened_at=timezone.now())
    make_link(make_customer(name="confirming"), unconfirmed_since=timezone.now())
    make_link(make_customer(name="failed"), setup_status="failed", last_error_code="x")
    make_connection(make_customer(name="connected"))
    make_connection(
        make_customer(name="disconnected"), status="disconnected", disconnected_at=timezone.now()
    )
    make_connection(
        make_customer(name="paused"),
        status="disconnected",
        disconnect_reason="offboarded",
        disconnected_at=timezone.now(),
    )
    for status in OnboardingStatus.values:
        assert names(caller, f"status={status}") == [status]
        (row,) = caller.get(f"customers/?status={status}").json()["results"]
        assert row["status"] == status


def test_list_takes_a_constant_number_of_queries(caller: Caller) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            database,
        ) as captured:
            assert caller.get("customers/?page_size=100").status_code == 200
        return len(captured)

    def one_more() -> None:
        customer = make_customer()
        make_link(customer, expires_at=timezone.now() + timedelta(days=1))
        make_connection(customer)

    one_more()
    one = queries()
    for _ in range(20):
        one_more()
    assert queries() == one == 4  # two of them for the session and the user
