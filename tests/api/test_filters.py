"""Lists of the REST API: several values of a filter, order and search."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect.models import Customer, TimelineEvent

from ..factories import make_connection, make_customer, make_link
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def ids(caller: Caller, path: str) -> list[int]:
    answer = caller.get(path)
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["results"]]


# Several values


def test_customers_with_any_of_several_statuses_are_found(caller: Caller) -> None:
    new = make_customer()
    invited = make_link().customer
    connected = make_connection().customer
    assert ids(caller, "customers/?status=invited&status=connected") == [connected.pk, invited.pk]
    assert ids(caller, "customers/?status=not_invited&status=not_invited") == [new.pk]


def test_several_external_ids_are_compared_exactly(caller: Caller) -> None:
    one = make_customer(external_customer_id="Ab3").pk
    make_customer(external_customer_id="Ab34")
    other = make_customer(external_customer_id="c")
    query = "external_customer_id=Ab3&external_customer_id={}"
    assert ids(caller, f"customers/?{query.format('c')}") == [other.pk, one]
    assert ids(caller, f"customers/?{query.format('aB34')}") == [one]
    assert ids(caller, f"customers/?{query.format('C')}") == [one]


def test_setup_links_of_several_customers_and_statuses_are_found(caller: Caller) -> None:
    now = timezone.now()
    active, endless = (make_link(expires_at=at) for at in (now + timedelta(days=1), None))
    over = make_link(expires_at=now - timedelta(days=1))
    expired, revoked, used = (make_link(status=one) for one in ("expired", "revoked", "used"))
    found = {
        "status=active&status=revoked": [revoked, endless, active],
        "status=active&status=expired": [expired, over, endless, active],
        "status=expired&status=used": [used, expired, over],
        f"customer={used.customer_id}&customer={over.customer_id}": [used, over],
        f"customer={used.customer_id}&customer={over.customer_id}&status=used": [used],
    }
    for query, links in found.items():
        assert ids(caller, f"setup-links/?{query}") == [link.pk for link in links], query


def test_several_connections_are_found(caller: Caller) -> None:
    one, two, three = make_connection(), make_connection(status="disconnected"), make_connection()
    for query in (
        f"customer={one.customer_id}&customer={two.customer_id}",
        f"phone_number_id={one.phone_number_id}&phone_number_id={two.phone_number_id}",
    ):
        assert ids(caller, f"connections/?{query}") == [two.pk, one.pk], query
    both = "connections/?status=connected&status=disconnected"
    assert ids(caller, both) == [three.pk, two.pk, one.pk]


def test_several_events_are_found(caller: Caller) -> None:
    rows: list[tuple[Any, int]] = []
    for kind in ("connected", "disconnected", "reconnected"):
        number = make_connection(setup_link=make_link())
        event = TimelineEvent.objects.create(
            kind=kind,
            source="webhook",
            customer=number.customer,
            connection=number,
            setup_link=number.setup_link,
        )
        rows.append((number, event.pk))
    (one, first), (two, second), _other = rows
    for query in (
        f"customer={one.customer_id}&customer={two.customer_id}",
        f"connection={one.pk}&connection={two.pk}",
        f"setup_link={one.setup_link_id}&setup_link={two.setup_link_id}",
        "kind=connected&kind=disconnected",
    ):
        assert ids(caller, f"events/?{query}") == [second, first], query


def test_each_bad_value_has_an_error(caller: Caller) -> None:
    answer = caller.get("customers/?status=x&status=invited&status=y")
    assert code(answer, 400) == "invalid_filter"
    fields = answer.json()["fields"]
    assert {path: problems[0]["code"] for path, problems in fields.items()} == {
        "status.0": "invalid_choice",
        "status.2": "invalid_choice",
    }


def test_a_filter_takes_at_most_100_values(caller: Caller) -> None:
    for name, path in (("external_customer_id", "customers/"), ("customer", "events/")):
        assert ids(caller, f"{path}?{'&'.join([f'{name}=1'] * 100)}") == []
        answer = caller.get(f"{path}?{'&'.join([f'{name}=1'] * 101)}")
        assert code(answer, 400) == "invalid_filter"
        assert answer.json()["fields"][name][0]["code"] == "max_length"


def test_pages_keep_all_values(caller: Caller) -> None:
    for _ in range(2):
        make_link()
    page = caller.get("customers/?status=invited&status=opened&page_size=1").json()
    assert "status=invited&status=opened" in page["next"]


# Order


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("customers/", "created_at"),
        ("customers/", "updated_at"),
        ("customers/", "name"),
        ("customers/", "status_changed_at"),
        ("setup-links/", "created_at"),
        ("setup-links/", "expires_at"),
        ("connections/", "connected_at"),
        ("connections/", "disconnected_at"),
    ],
)
def test_lists_are_sorted_both_ways_with_ties_by_id_and_nulls_last(
    caller: Caller, path: str, name: str
) -> None:
    make = {
        "customers/": make_customer,
        "setup-links/": make_link,
        "connections/": make_connection,
    }[path]
    now = timezone.now()
    values: list[Any] = ["b", "a", "b"] if name == "name" else [
        now, now - timedelta(days=1), now
    ]  # fmt: skip
    has_nulls = name in {"expires_at", "connected_at", "disconnected_at"}
    rows = [make() for _ in range(3)]
    for row, value in zip(rows, values, strict=True):
        type(row).objects.filter(pk=row.pk).update(**{name: value})
    late, early, tied = (row.pk for row in rows)
    ends = []
    if has_nulls:
        row = make()
        type(row).objects.filter(pk=row.pk).update(**{name: None})
        ends = [row.pk]
    assert ids(caller, f"{path}?ordering={name}") == [early, late, tied, *ends]
    assert ids(caller, f"{path}?ordering=-{name}") == [tied, late, early, *ends]
    pages = [ids(caller, f"{path}?ordering={name}&page_size=1&page={n}") for n in (1, 2, 3)]
    assert pages == [[early], [late], [tied]]


def test_other_orders_are_rejected(caller: Caller) -> None:
    for path, value in (
        ("customers/", "email"),
        ("customers/", ""),
        ("customers/", "--name"),
        ("setup-links/", "url"),
        ("connections/", "customer__connect_key"),
    ):
        answer = caller.get(f"{path}?ordering={value}")
        assert code(answer, 400) == "invalid_filter"
        assert answer.json()["fields"]["ordering"][0]["code"] == "invalid_choice"
    answer = caller.get("customers/?ordering=name&ordering=-name")
    assert answer.json()["fields"]["ordering"][0]["code"] == "repeated"
    answer = caller.get("events/?ordering=occurred_at")
    assert answer.json()["fields"]["ordering"][0]["code"] == "unknown_filter"


# Search


def searched_customer() -> Customer:
    make_connection(setup_link=make_link())  # somebody else's
    return make_customer(
        name="Zuckerl", external_customer_id="crm-7", email="ada@bakery.example", kapso_id=None
    )


def test_setup_links_are_searched(caller: Caller) -> None:
    customer = searched_customer()
    link = make_link(customer, kapso_id="abcdef12-3456", url="https://setup.example/token")
    make_connection(customer, display_phone_number="+49 30 5432134")
    for text in (
        link.reference,
        "DEF12-34",
        "uckerl",
        "crm-7",
        "ADA@bakery",
        "030 5432134",
        "(030)5432-134",
    ):
        assert ids(caller, f"setup-links/?search={text}") == [link.pk], text
    for text in ("setup.example", "token", "%25"):
        assert ids(caller, f"setup-links/?search={text}") == [], text
    assert len(ids(caller, "setup-links/?search=")) == 2


def test_connections_are_searched(caller: Caller) -> None:
    customer = searched_customer()
    link = make_link(customer, kapso_id="abcdef12-3456")
    number = make_connection(
        customer,
        display_phone_number="+49 30 5432134",
        phone_number_id="777001",
        business_account_id="888002",
        verified_name="Brot und mehr",
    )
    for text in (
        link.reference,
        "uckerl",
        "crm-7",
        "ADA@bakery",
        "030 5432134",
        "(030)5432-134",
        "%2B49 30",
        "77700",
        "88800",
        "und mehr",
    ):
        assert ids(caller, f"connections/?search={text}") == [number.pk], text
    assert ids(caller, "connections/?search=%25") == []
    assert len(ids(caller, "connections/?search=")) == 2


def test_search_status_and_order_narrow_together(caller: Caller) -> None:
    customer = searched_customer()
    links = [make_link(customer, status=status) for status in ("revoked", "active", "used")]
    query = "search=crm-7&status=revoked&status=used&ordering=created_at"
    assert ids(caller, f"setup-links/?{query}") == [links[0].pk, links[2].pk]
