"""Customers of owners, and rows as text."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType

from kapso_connect.models import Customer, TimelineEvent

from .factories import make_connection, make_customer, make_link
from .sites.host_site.models import Branch

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
