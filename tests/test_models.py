"""Customers of owners, and rows as text."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core import checks
from django.db import connection as database
from django.db import models

from kapso_connect.exceptions import ExternalIdTaken, OwnerTaken
from kapso_connect.models import Customer, TimelineEvent, WhatsAppRelation
from kapso_connect.onboarding import create_setup_link
from kapso_connect.testing import Sandbox

from .factories import make_connection, make_customer, make_link
from .sites.host_site.models import (
    Bakery,
    Branch,
    Corner,
    Desk,
    Franchise,
    Kiosk,
    Ledger,
    Seat,
    Shop,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_for_owner_links_an_object_of_the_site() -> None:
    owner = User.objects.create(username="Ana's Bakery")
    customer = Customer.objects.for_owner(owner, email="a@example.com")
    assert (customer.name, customer.email) == ("Ana's Bakery", "a@example.com")
    assert customer.owner == owner
    assert Customer.objects.for_owner(owner) == customer
    with pytest.raises(ValueError, match="Save the owner"):
        Customer.objects.for_owner(User(username="unsaved"))


def test_primary_key_of_an_owner_may_be_a_long_text() -> None:
    owner = Branch.objects.create(code="b" * 255)
    customer = Customer.objects.for_owner(owner)
    customer.full_clean(exclude=["name"])
    assert Customer.objects.for_owner(owner) == customer
    assert customer.owner == owner


KEY = uuid.UUID("4f3c0000-0000-4000-8000-00000000000a")


@pytest.mark.parametrize("key", [5, 0, KEY])
def test_external_id_may_be_a_key_of_the_sites(key: Any, sandbox: Sandbox) -> None:
    owner = User.objects.create(username="ada")
    known = Customer.objects.create(name="Ada", external_customer_id=key)
    customer = Customer.objects.for_owner(owner, external_customer_id=key)
    assert customer == known
    for row in (known, customer):
        assert row.external_customer_id == str(key)
    create_setup_link(known)
    assert sandbox.state()["customers"][0]["external_customer_id"] == str(key)


def test_empty_ids_are_those_of_no_customer(sandbox: Sandbox) -> None:
    empty = {"external_customer_id": "", "kapso_id": ""}
    first, second = (Customer.objects.create(name="Ada", **empty) for _ in range(2))
    assert (first.external_customer_id, second.kapso_id) == (None, None)
    create_setup_link(first)
    for name in ("ada", "bo"):
        owner = User.objects.create(username=name)
        assert Customer.objects.for_owner(owner, name="", **empty).name == name


@pytest.mark.parametrize(
    ("model", "spellings"),
    [
        (Shop, [KEY, str(KEY), str(KEY).upper(), KEY.hex, f"{{{KEY}}}"]),
        (Desk, [KEY, str(KEY), str(KEY).upper(), KEY.hex]),
        (Corner, [KEY, str(KEY).upper()]),
        (Bakery, [5, "5", "05", " 5", Decimal("5"), 5.0]),
        (Ledger, [Decimal("5"), Decimal("5.00"), "5", "5.0", 5]),
    ],
)
def test_a_key_in_another_spelling_is_the_same_owner(model: Any, spellings: list[Any]) -> None:
    if model is Desk:
        Shop.objects.create(pk=KEY)
    model.objects.create(pk=spellings[0])
    read = model.objects.get()
    customer = Customer.objects.for_owner(read)
    for spelling in spellings:
        assert Customer.objects.for_owner(model(pk=spelling)) == customer, spelling
        assert model(pk=spelling).whatsapp.get() == customer
    assert Customer.objects.get().get_owner() == read
    assert list(Customer.objects.for_owners(model.objects.all())) == [customer]
    assert list(model.objects.filter(whatsapp__status="not_invited")) == [read]
    (prefetched,) = model.objects.prefetch_related("whatsapp")
    assert list(prefetched.whatsapp.all()) == [customer]


@pytest.mark.parametrize("first", [Bakery, Franchise, Kiosk])
def test_a_row_of_several_tables_has_one_customer(first: Any) -> None:
    kiosk = Kiosk.objects.create(title="Ada's")
    rows = {model: model.objects.get(pk=kiosk.pk) for model in (Bakery, Franchise, Kiosk)}
    customer = Customer.objects.for_owner(rows[first])
    make_connection(customer)
    for model, row in rows.items():
        assert Customer.objects.for_owner(row) == customer
        assert row.whatsapp.get() == customer
        assert list(model.objects.filter(whatsapp__status="connected")) == [row]
        assert list(Customer.objects.for_owners(model.objects.all())) == [customer]
        (prefetched,) = model.objects.prefetch_related("whatsapp")
        assert list(prefetched.whatsapp.all()) == [customer]
    assert customer.get_owner() == rows[Bakery]
    assert list(Customer.objects.filter(bakery__title="Ada's")) == [customer]


def test_key_of_several_columns_is_refused_at_once() -> None:
    seat = Seat.objects.create(row=1, number=2)
    for call in (Customer.objects.for_owner, lambda _: Customer.objects.for_owners(Seat.objects)):
        with pytest.raises(ValueError, match=r"host_site\.Seat has a composite primary key"):
            call(seat)
    assert not Customer.objects.exists()


def test_key_of_several_columns_is_found_by_a_check() -> None:
    class Place(models.Model):
        pk = models.CompositePrimaryKey("row", "number")
        row = models.IntegerField()
        number = models.IntegerField()
        whatsapp = WhatsAppRelation()

        class Meta:
            app_label = "host_site"

        def __str__(self) -> str:
            return ""

    try:
        (error,) = (m for m in checks.run_checks() if m.id == "kapso_connect.E012")
        assert "host_site.Place has a composite primary key" in error.msg
    finally:
        Place._meta.apps.all_models["host_site"].pop("place")
        Place._meta.apps.clear_cache()


@pytest.mark.parametrize("language", ["es", "es-MX", "es_mx", "ES", " es-419 "])
def test_language_is_that_of_kapso(language: str) -> None:
    owner = Branch.objects.create(code="a")
    assert Customer.objects.for_owner(owner, language=language).language == "es"
    customer = Customer.objects.create(name="Ada", language=language)
    assert Customer.objects.get(pk=customer.pk).language == "es"


@pytest.mark.parametrize("language", ["de", "xx-YY", "x" * 300])
def test_language_that_pages_are_not_in_is_an_error(language: str) -> None:
    owner = Branch.objects.create(code="a")
    with pytest.raises(ValueError, match="but: en, es"):
        Customer.objects.for_owner(owner, language=language)
    with pytest.raises(ValueError, match="but: en, es"):
        Customer.objects.create(name="Ada", language=language)
    assert not Customer.objects.exists()


def test_customer_without_an_owner_is_found_by_its_external_id() -> None:
    known = make_customer(external_customer_id="crm-7", name="From Kapso")
    owner = Branch.objects.create(code="a")
    customer = Customer.objects.for_owner(owner, external_customer_id="crm-7", email="a@b.example")
    assert customer == known
    assert (customer.name, customer.get_owner()) == ("From Kapso", owner)
    assert Customer.objects.for_owner(owner) == known
    other = Branch.objects.create(code="b")
    from_kapso = make_customer(kapso_id="k-7")
    assert Customer.objects.for_owner(other, kapso_id="k-7") == from_kapso


def test_external_id_of_another_owner_is_an_error_that_says_whose() -> None:
    other = Customer.objects.for_owner(
        Branch.objects.create(code="b"), external_customer_id="crm-7"
    )
    owner = Branch.objects.create(code="a")
    with pytest.raises(
        ExternalIdTaken, match=rf"'crm-7' is that of customer {other.pk} .*branch b"
    ):
        Customer.objects.for_owner(owner, external_customer_id="crm-7")
    assert Customer.objects.get() == other


def test_values_that_no_column_can_hold() -> None:
    owner = Branch.objects.create(code="a")
    for name, length in {"email": 255, "external_customer_id": 256, "kapso_id": 65}.items():
        with pytest.raises(ValueError, match=f"The {name} is longer than"):
            Customer.objects.for_owner(owner, **{name: "a" * length})
    with pytest.raises(ValueError, match="is longer than 255"):
        Customer.objects.for_owner(Branch(code="a" * 256))
    with pytest.raises(ValueError, match="'abc' cannot be a primary key"):
        Customer.objects.for_owner(Bakery(pk="abc"))
    customer = Customer.objects.for_owner(owner, name="ä" * 300, email=None, language=None)
    assert (customer.name, customer.email, customer.language) == ("ä" * 255, "", "")


def test_owner_that_cannot_be_looked_up_is_none(caplog: pytest.LogCaptureFixture) -> None:
    bakeries = ContentType.objects.get_for_model(Bakery)
    removed = ContentType.objects.create(app_label="removed", model="thing")
    customers = [
        make_customer(owner_type=removed, owner_id="1"),
        make_customer(owner_type=bakeries, owner_id="abc"),
        make_customer(owner_type=ContentType.objects.get_for_model(Shop), owner_id="7"),
        make_customer(owner_type=ContentType.objects.get_for_model(Seat), owner_id="(1, 2)"),
        make_customer(owner_type=bakeries, owner_id="404"),
        make_customer(owner_type=bakeries, owner_id=None),
        make_customer(),
    ]
    assert [Customer.objects.get(pk=one.pk).get_owner() for one in customers] == [None] * 7
    logged = [record.customer_id for record in caplog.records]
    assert logged == [customer.pk for customer in customers[:4]], "the others have none"


def test_for_owners_finds_their_customers_and_creates_none() -> None:
    owners = [User.objects.create(username=name) for name in "abc"]
    mine = [Customer.objects.for_owner(owner) for owner in owners[:2]]
    other = make_customer(owner_type=ContentType.objects.get_for_model(Customer))
    Customer.objects.filter(pk=other.pk).update(owner_id=str(owners[0].pk))
    found = Customer.objects.for_owners(User.objects.filter(username__in="ac"))
    assert list(found) == mine[:1]
    assert list(Customer.objects.for_owners(User.objects.none())) == []
    assert Customer.objects.count() == 3


def test_str_of_a_row_contains_no_secret() -> None:
    link = make_link()
    connection = make_connection(link.customer, display_phone_number="+1 415-555-2671")
    event = TimelineEvent.objects.create(
        kind="connected", source="webhook", customer=link.customer, connection=connection
    )
    assert str(link) == "Setup link for Bäckerei Süß"
    assert "secret-token" not in f"{link} {link!r}"
    assert str(connection) == "+1 415-555-2671"
    assert str(event) == "Connected: +1 415-555-2671"
    assert str(make_connection(phone_number_id="77")) == "77"


def test_owner_has_no_customer_of_one_whose_key_differs_in_case() -> None:
    earlier = Branch.objects.create(code="Ab3")
    customer = Customer.objects.for_owner(earlier)
    earlier.delete()
    owner = Branch.objects.create(code="aB3")
    assert Customer.objects.find_for_owner(owner) is None
    if database.vendor == "mysql":
        with pytest.raises(OwnerTaken, match=f"'aB3' .* 'Ab3', .* customer {customer.pk}"):
            Customer.objects.for_owner(owner)
    else:
        assert Customer.objects.for_owner(owner) != customer
