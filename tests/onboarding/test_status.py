"""The status of customers: the rule, and what is shown with it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.admin.status import with_status
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding.status import OnboardingStatus, get_statuses

from ..factories import (
    make_connection,
    make_customer,
    make_link,
    new_connection,
    new_customer,
    new_link,
    store_statuses,
)
from ..sites.host_site.models import Bakery, Branch, Franchise, Shop

pytestmark = pytest.mark.django_db

NOW = timezone.now()


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def lost(days: float, **fields: Any) -> dict[str, Any]:
    return {
        "status": "disconnected",
        "connected_at": ago(days + 1),
        "disconnected_at": ago(days),
        **fields,
    }


OPEN = {"connected_at": ago(5)}
REOPENED = {"connected_at": ago(1), "disconnected_at": ago(2)}
NEVER_CONNECTED = {"status": "disconnected", "connected_at": None, "disconnected_at": ago(3)}

NUMBERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "connected": [OPEN],
    "two connected": [OPEN, REOPENED],
    "lost": [lost(4)],
    "lost, another connected": [lost(4), OPEN],
    "two lost": [lost(8), lost(2)],
    "paused": [lost(8), lost(4, disconnect_reason="offboarded")],
    "paused, then another lost": [lost(4, disconnect_reason="offboarded"), lost(2)],
    "never connected": [NEVER_CONNECTED],
    "never connected, one lost": [NEVER_CONNECTED, lost(8)],
    "lost, time unknown": [lost(4, disconnected_at=None), lost(8)],
}

NEWEST: dict[str, dict[str, Any] | None] = {
    "none": None,
    "active": {},
    "opened": {"opened_at": ago(0.2)},
    "over": {"expires_at": ago(0.1)},
    "expired": {"status": "expired", "opened_at": ago(0.2)},
    "revoked": {"status": "revoked"},
    "failed": {"setup_status": "failed", "last_error_code": "x", "opened_at": ago(0.2)},
    "failed, used": {"status": "used", "setup_status": "failed", "opened_at": ago(0.2)},
    "failed, revoked": {"status": "revoked", "setup_status": "failed"},
    "completed": {"status": "used", "setup_status": "completed", "opened_at": ago(0.2)},
    "used": {"status": "used", "opened_at": ago(0.2)},
    "unconfirmed": {"unconfirmed_since": ago(0.1), "unconfirmed_phone_number_id": "1"},
    "unconfirmed, expired": {"unconfirmed_since": ago(0.1), "status": "expired"},
}

OLDER: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "revoked": [{"status": "revoked"}, {"status": "expired", "opened_at": ago(20)}],
    "unconfirmed": [{"status": "revoked", "unconfirmed_since": ago(20)}],
}


def make_cases(*cases: tuple[str, str, float, str]) -> list[Customer]:
    """Create a customer for each case: their numbers, their newest link, how many days ago that was
    created, and their older links."""
    customers = Customer.objects.bulk_create(new_customer() for case in cases)
    connections: list[Connection] = []
    links: list[SetupLink] = []
    for customer, (numbers, newest, made, older) in zip(customers, cases, strict=True):
        connections += [new_connection(customer, **number) for number in NUMBERS[numbers]]
        fields = [{"created_at": ago(30), **link} for link in OLDER[older]]
        latest = NEWEST[newest]
        if latest is not None:
            fields.append({"created_at": ago(made), **latest})
        links += [new_link(customer, **link) for link in fields]
    Connection.objects.bulk_create(connections)
    SetupLink.objects.bulk_create(links)
    for link in links:
        link.customer.latest_setup_link = link  # the last one
    Customer.objects.bulk_update(customers, ["latest_setup_link"])
    store_statuses(*customers)
    return customers


@pytest.mark.parametrize(
    ("numbers", "newest", "made", "older", "status"),
    [
        ("none", "none", 0, "none", "not_invited"),
        ("none", "revoked", 1, "none", "not_invited"),
        ("none", "completed", 1, "none", "not_invited"),
        ("never connected", "none", 0, "none", "not_invited"),
        ("none", "active", 1, "revoked", "invited"),
        ("none", "over", 1, "none", "invited"),
        ("none", "opened", 1, "none", "opened"),
        ("none", "expired", 1, "none", "opened"),
        ("none", "failed", 1, "none", "failed"),
        ("none", "failed, used", 1, "none", "failed"),
        ("none", "failed, revoked", 1, "none", "not_invited"),
        ("none", "unconfirmed", 1, "none", "confirming"),
        ("lost", "active", 0.5, "unconfirmed", "confirming"),
        ("connected", "unconfirmed", 1, "none", "connected"),
        ("connected", "failed", 1, "none", "connected"),
        ("lost, another connected", "none", 0, "none", "connected"),
        ("lost", "none", 0, "none", "disconnected"),
        ("paused", "completed", 10, "none", "paused"),
        ("paused", "active", 10, "none", "paused"),
        ("paused", "active", 0.5, "none", "invited"),
        ("paused, then another lost", "none", 0, "none", "disconnected"),
        ("lost", "completed", 10, "none", "disconnected"),
        ("lost", "active", 10, "none", "disconnected"),
        ("lost", "active", 0.5, "none", "invited"),
        ("lost", "opened", 0.5, "none", "opened"),
        ("lost", "failed", 0.5, "none", "failed"),
        ("lost", "revoked", 0.5, "none", "disconnected"),
        ("two lost", "active", 3, "none", "disconnected"),
        ("two lost", "active", 0.5, "none", "invited"),
    ],
)
def test_status_of_a_customer(
    numbers: str, newest: str, made: float, older: str, status: str
) -> None:
    [customer] = make_cases((numbers, newest, made, older))
    assert customer.status == status


def test_status_includes_the_rows_it_follows_from() -> None:
    [customer] = make_cases(("two lost", "revoked", 0.5, "revoked"))
    status = get_statuses([customer])[customer.pk]
    assert status.connection == customer.connections.get(disconnected_at=ago(2))
    assert status.link == customer.latest_setup_link
    assert status.link.get_deferred_fields() == {"url", "options"}
    [customer] = make_cases(("two connected", "none", 0, "none"))
    status = get_statuses([customer])[customer.pk]
    assert (status.connection, status.more_connections) == (customer.connections.get(**REOPENED), 1)


def test_saving_a_customer_that_was_read_before_keeps_what_has_changed_since() -> None:
    customer = make_customer()
    stale, partly = Customer.objects.get(), Customer.objects.only("name").get()
    link = make_link(customer)
    connect_key = "the new key"
    Customer.objects.update(connect_key=connect_key)
    for name, read in {"Renamed": stale, "Again": partly}.items():
        read.name = name
        read.save()
        customer = Customer.objects.get()
        assert (customer.name, customer.connect_key) == (name, connect_key)
        assert (customer.status, customer.latest_setup_link) == ("invited", link)
        assert customer.status_changed_at == link.customer.status_changed_at
    stale.connect_key = None
    stale.save(update_fields=["connect_key"])
    assert Customer.objects.get().connect_key is None


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(("with_attention", "queries"), [(False, 3), (True, 4)])
def test_statuses_of_many_customers_take_few_queries(
    count: int, with_attention: bool, queries: int
) -> None:
    customers = make_cases(*[("lost", "active", 0.5, "revoked")] * count)
    with CaptureQueriesContext(database) as context:
        assert len(get_statuses(customers, with_attention=with_attention)) == count
    assert len(context) == queries


# The site's own objects

KEYS = {
    Bakery: [{"title": "a"}, {"title": "b"}, {"title": "c"}, {"title": "d"}],
    Franchise: [{"title": "a"}, {"title": "b"}, {"title": "c"}, {"title": "d"}],
    Shop: [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}],
    Branch: [{"code": "a-1_/x"}, {"code": "🦊"}, {"code": "12"}, {"code": "d'd"}],
}


@pytest.mark.parametrize("model", KEYS, ids=lambda model: model.__name__)
def test_owners_are_filtered_by_status(model: Any) -> None:
    connected, invited, withdrawn, stranger = (model.objects.create(**row) for row in KEYS[model])
    make_connection(Customer.objects.for_owner(connected))
    make_link(Customer.objects.for_owner(invited), is_latest=True)
    make_link(Customer.objects.for_owner(withdrawn), is_latest=True, status="revoked")
    # Owners of another model, and customers without an owner, do not count.
    other = ContentType.objects.get_for_model(ContentType)
    for kind, key in [(other, str(stranger.pk)), (None, str(stranger.pk)), (other, None)]:
        make_connection(make_customer(owner_type=kind, owner_id=key))
    make_customer(owner_type=ContentType.objects.get_for_model(model), owner_id="gone")

    def at(status: OnboardingStatus) -> set[Any]:
        return set(with_status(model.objects.all(), status))

    assert at(OnboardingStatus.CONNECTED) == {connected}
    assert at(OnboardingStatus.INVITED) == {invited}
    assert at(OnboardingStatus.NOT_INVITED) == {withdrawn, stranger}
    for status in set(OnboardingStatus) - {"connected", "invited", "not_invited"}:
        assert at(status) == set()
