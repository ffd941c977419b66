"""Giving a customer that exists an owner, and clear errors for what is no customer."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from kapso_connect import onboarding
from kapso_connect.exceptions import CustomerErased, OwnerTaken
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import assign_owner

from ..factories import make_customer
from ..sites.host_site.models import Bakery, Branch, Franchise, Seat, Shop
from .support import at_once

pytestmark = pytest.mark.django_db


def owners() -> list[Any]:
    return [
        Bakery.objects.create(title="Ada's"),
        Shop.objects.create(name="Bob's"),
        Branch.objects.create(code="a-1_/x"),
        Franchise.objects.create(title="Chain"),
    ]


def test_a_customer_is_given_an_owner_with_any_key() -> None:
    for owner in owners():
        customer = make_customer()
        assert assign_owner(customer, owner)
        assert Customer.objects.for_owner(owner) == customer
        assert customer.get_owner() == (owner.bakery_ptr if type(owner) is Franchise else owner)
        (event,) = TimelineEvent.objects.filter(customer=customer)
        assert (event.kind, event.source) == ("owner_assigned", "manual")
        assert event.data["owner_id"] == str(owner.pk)


def test_the_same_owner_again_is_no_change(admin_user: Any) -> None:
    customer, (bakery, shop, *_others) = make_customer(), owners()
    assert assign_owner(customer, bakery, actor=admin_user)
    assert not assign_owner(customer, bakery)
    assert assign_owner(customer, shop)
    assert assign_owner(customer, None)
    assert not assign_owner(customer, None)
    assert customer.get_owner() is None
    events = TimelineEvent.objects.order_by("pk")
    assert [event.data.get("owner_type") for event in events] == [
        "host_site.bakery",
        "host_site.shop",
        None,
    ]
    assert events[0].actor == admin_user


def test_an_owner_has_one_customer() -> None:
    bakery = Bakery.objects.create(title="Ada's")
    first, second = Customer.objects.for_owner(bakery), make_customer()
    with pytest.raises(OwnerTaken, match=f"owns customer {first.pk} already"):
        assign_owner(second, bakery)
    assert second.get_owner() is None
    assert not TimelineEvent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_customers_one_gets_the_owner() -> None:
    bakery = Bakery.objects.create(title="Ada's")
    customers, taken = [make_customer(), make_customer()], []

    def assign(customer: Customer) -> None:
        try:
            assign_owner(customer, bakery)
        except OwnerTaken:
            taken.append(customer)

    at_once(lambda: assign(customers[0]), lambda: assign(customers[1]))
    assert len(taken) == 1
    assert Customer.objects.exclude(owner_id=None).count() == 1
    assert TimelineEvent.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time")
@pytest.mark.parametrize("number", range(3))
def test_owner_is_taken_while_a_transaction_of_the_callers_is_open(number: int) -> None:
    """The customer of the other transaction is not in what this one has read."""
    owner, first, second = owners()[number], make_customer(), make_customer()
    with transaction.atomic():
        assert Customer.objects.find_for_owner(owner) is None
        at_once(lambda: assign_owner(first, owner))
        with pytest.raises(OwnerTaken, match=f"owns customer {first.pk} already"):
            assign_owner(second, owner)
        make_customer(name="Later")  # the transaction is not broken
    assert Customer.objects.filter(name="Later").exists()
    assert TimelineEvent.objects.get().customer == first


@pytest.mark.parametrize("number", range(3))
def test_owner_of_another_customer_does_not_break_the_transaction(number: int) -> None:
    owner = owners()[number]
    Customer.objects.for_owner(owner)
    with transaction.atomic():
        with pytest.raises(OwnerTaken):
            assign_owner(make_customer(), owner)
        make_customer(name="Later")
    assert Customer.objects.filter(name="Later").exists()


def test_lazy_object_such_as_the_user_of_a_request_is_an_owner(admin_user: Any) -> None:
    customer = make_customer()
    assert assign_owner(customer, SimpleLazyObject(lambda: admin_user))  # type: ignore[arg-type]
    assert customer.get_owner() == admin_user
    lazy: Any = SimpleLazyObject(lambda: admin_user)
    with pytest.raises(TypeError, match=r"takes a Customer, not User\."):
        onboarding.connect_url(lazy)


def test_composite_key_cannot_be_that_of_an_owner() -> None:
    with pytest.raises(ValueError, match="composite primary key"):
        assign_owner(make_customer(), Seat(row=1, number=2))


def test_who_cannot_be_an_owner() -> None:
    customer = make_customer()
    with pytest.raises(ValueError, match="Save the owner"):
        assign_owner(customer, Bakery())
    for nobody in (customer, "Ada's", 7):
        with pytest.raises(TypeError, match="has to be an object of the site's own"):
            assign_owner(customer, nobody)  # type: ignore[arg-type]
    Customer.objects.filter(pk=customer.pk).update(erased_at=timezone.now())
    with pytest.raises(CustomerErased):
        assign_owner(customer, Bakery.objects.create(title="Ada's"))


def test_a_customer_whose_owner_was_deleted_can_get_another_one() -> None:
    old, new, *_others = owners()
    customer = Customer.objects.for_owner(old)
    old.delete()
    customer.refresh_from_db()
    assert customer.get_owner() is None
    assert assign_owner(customer, new)
    assert customer.get_owner() == new


TAKES_A_CUSTOMER: list[Any] = [
    onboarding.assign_owner,
    onboarding.connect,
    onboarding.connect_path,
    onboarding.connect_url,
    onboarding.create_setup_link,
    onboarding.erase_customer,
    onboarding.send_invitation,
    onboarding.send_reminder,
]
SECOND: dict[Any, tuple[Any, ...]] = {
    onboarding.assign_owner: (None,),
    onboarding.connect: (None,),
    onboarding.send_invitation: (None,),
    onboarding.send_reminder: (None,),
    onboarding.extend_setup_link: (None,),
}
KEYWORDS: dict[Any, dict[str, Any]] = {onboarding.connect: {"source": "manual"}}


def call(function: Any, first: Any) -> Any:
    return function(first, *SECOND.get(function, ()), **KEYWORDS.get(function, {}))


@pytest.mark.parametrize("function", TAKES_A_CUSTOMER, ids=lambda one: one.__name__)
def test_an_owner_in_place_of_its_customer_is_a_clear_error(function: Any) -> None:
    bakery = Bakery.objects.create(title="Ada's")
    expected = (
        rf"^{function.__name__}\(\) takes a Customer, not Bakery. "
        r"Use Customer.objects.for_owner\(bakery\).$"
    )
    with pytest.raises(TypeError, match=expected):
        call(function, bakery)
    with pytest.raises(TypeError, match=r"takes a Customer, not str.$"):
        call(function, "Ada's")


@pytest.mark.parametrize(
    "function",
    [
        function
        for function in TAKES_A_CUSTOMER
        if function not in {onboarding.connect_path, onboarding.connect_url}
    ],
)
def test_a_customer_has_to_be_saved(function: Any) -> None:
    with pytest.raises(ValueError, match="Save it first"):
        call(function, Customer(name="Ada's"))


@pytest.mark.parametrize("function", [onboarding.check_health, onboarding.disconnect_number])
def test_a_customer_in_place_of_its_number_is_a_clear_error(function: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a Connection, not Customer.$"):
        call(function, make_customer())
    with pytest.raises(ValueError, match="Save it first"):
        call(function, Connection())


@pytest.mark.parametrize("function", [onboarding.extend_setup_link, onboarding.revoke_setup_link])
def test_a_customer_in_place_of_its_link_is_a_clear_error(function: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a SetupLink, not Customer.$"):
        call(function, make_customer())
    with pytest.raises(ValueError, match="Save it first"):
        call(function, SetupLink())


def test_every_public_function_is_tested_here() -> None:
    others = {"check_health", "disconnect_number", "extend_setup_link", "revoke_setup_link"}
    names = {function.__name__ for function in TAKES_A_CUSTOMER} | others
    assert names | {"disconnect"} == set(onboarding.__all__)  # which takes the id of a number
