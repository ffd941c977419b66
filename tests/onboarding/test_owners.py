"""Queries of a site's own objects by their customers, whatever their keys are."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection as database
from django.db.migrations.state import ModelState
from django.test.utils import CaptureQueriesContext

from kapso_connect.models import Customer
from kapso_connect.owners import owner_type

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Branch, Franchise, Shop

pytestmark = pytest.mark.django_db

LARGE = 2**53  # from here on, neighbours are the same number as floats
KEYS: dict[Any, list[dict[str, Any]]] = {
    Bakery: [{"pk": LARGE + n} for n in range(4)],
    Franchise: [{"pk": LARGE + n} for n in range(4)],
    Shop: [{}, {}, {}, {}],
    Branch: [{"pk": "a-1_/x"}, {"pk": "🦊"}, {"pk": "12"}, {"pk": "d'd"}],
}


@pytest.fixture(params=KEYS, ids=lambda model: model.__name__)
def owners(request: pytest.FixtureRequest) -> list[Any]:
    """Four objects: with a customer that has two numbers, with one that is invited, with one that
    was never invited, and without a customer. Each key is that of another customer's owner, too."""
    model = request.param
    owners = [model.objects.create(**fields) for fields in KEYS[model]]
    connected, invited, _not_invited = map(Customer.objects.for_owner, owners[:3])
    make_connection(connected)
    make_connection(connected)
    make_link(invited)
    for other in (ContentType.objects.get_for_model(ContentType), None):
        for owner in owners:
            make_connection(make_customer(owner_type=other, owner_id=str(owner.pk)))
    for kind in {owner_type(model) for model in KEYS}:
        make_connection(make_customer(owner_type=kind, owner_id="deleted"))
        make_connection(make_customer(owner_type=kind, owner_id=None))
    return owners


def test_owners_are_filtered_by_their_customers(owners: list[Any]) -> None:
    connected, invited, not_invited, without = owners
    objects = type(connected).objects
    assert list(objects.filter(whatsapp__status="connected")) == [connected]
    assert list(objects.filter(whatsapp__status__in=["invited", "opened"])) == [invited]
    assert set(objects.exclude(whatsapp__status="connected")) == {invited, not_invited, without}
    assert list(objects.filter(whatsapp=None)) == [without]
    assert list(objects.filter(whatsapp__connections__status="connected").distinct()) == [connected]
    assert set(objects.exclude(whatsapp__connections__status="connected")) == set(owners[1:])
    found = objects.filter(pk__in=objects.filter(whatsapp__status="connected").values("pk"))
    assert list(found.values_list("pk", "whatsapp__status")) == [(connected.pk, "connected")]
    in_order = objects.exclude(whatsapp=None).order_by("whatsapp__status")
    assert list(in_order) == [connected, invited, not_invited]


def test_customers_are_filtered_by_their_owners(owners: list[Any]) -> None:
    name = type(owners[0]).__name__.lower().replace("franchise", "bakery")
    if type(owners[0]) is not Franchise:  # the relation is inherited, its reverse is not
        customers = Customer.objects.filter(**{f"{name}__pk__in": [owner.pk for owner in owners]})
        assert {customer.owner for customer in customers} == set(owners[:3])


def test_customer_of_an_owner(owners: list[Any]) -> None:
    for owner in owners[:3]:
        assert owner.whatsapp.get() == Customer.objects.for_owner(owner)
    assert list(owners[3].whatsapp.all()) == []


def test_customers_of_many_owners_are_prefetched(owners: list[Any]) -> None:
    with CaptureQueriesContext(database) as context:
        found = list(type(owners[0]).objects.prefetch_related("whatsapp"))
        statuses = {owner.pk: [row.status for row in owner.whatsapp.all()] for owner in found}
    assert [statuses[owner.pk] for owner in owners] == [
        ["connected"],
        ["invited"],
        ["not_invited"],
        [],
    ]
    assert len(context) == 2


def test_customer_outlives_its_owner(owners: list[Any]) -> None:
    customers = set(Customer.objects.all())
    for owner in owners:
        owner.delete()
    assert set(Customer.objects.all()) == customers


def test_relation_needs_no_migration() -> None:
    assert "whatsapp" not in ModelState.from_model(Bakery).fields
