"""Customers: registered once with Kapso, and changed by one of several processes."""

from __future__ import annotations

import uuid

import pytest
from django.db import OperationalError

from kapso_connect import onboarding
from kapso_connect.exceptions import KapsoConflict
from kapso_connect.models import Customer
from kapso_connect.onboarding import customers
from kapso_connect.testing import Sandbox

from ..factories import failing_queries, make_customer, remote_customer

pytestmark = pytest.mark.django_db(transaction=True)


def unregistered() -> Customer:
    return make_customer(kapso_id=None, external_customer_id=str(uuid.uuid4()))


def test_customer_is_registered_once(sandbox: Sandbox) -> None:
    customer = unregistered()
    onboarding.create_setup_link(customer)
    onboarding.create_setup_link(Customer.objects.get())
    assert len(sandbox.state()["customers"]) == 1


def test_customer_that_exists_at_kapso_is_found(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    kapso_id, customer.kapso_id = customer.kapso_id, None
    customer.save()
    onboarding.create_setup_link(customer)
    assert customer.kapso_id == kapso_id


def test_customer_without_an_external_id_gets_one(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None, external_customer_id=None)
    onboarding.create_setup_link(customer)
    customer.refresh_from_db()
    assert customer.external_customer_id
    assert sandbox.state()["customers"][0]["external_customer_id"] == customer.external_customer_id


def test_customer_at_kapso_that_is_another_one_here_raises_a_clear_error(sandbox: Sandbox) -> None:
    # A webhook named the customer without our external id, so there are two of them here.
    theirs = remote_customer(sandbox, name="Known by webhook")
    external_id, theirs.external_customer_id = theirs.external_customer_id, None
    theirs.save()
    with pytest.raises(KapsoConflict, match="Known by webhook"):
        onboarding.create_setup_link(make_customer(kapso_id=None, external_customer_id=external_id))


def test_customer_deleted_at_kapso_is_registered_again(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=str(uuid.uuid4()))
    link = onboarding.create_setup_link(customer)
    assert link.is_usable
    customer.refresh_from_db()
    assert customer.kapso_id == sandbox.state()["customers"][0]["id"]


def test_customer_that_could_not_be_stored_as_registered_is_registered_next_time(
    sandbox: Sandbox,
) -> None:
    customer = unregistered()
    with (
        failing_queries(OperationalError, "UPDATE", Customer, "kapso_id"),
        pytest.raises(OperationalError),
    ):
        onboarding.create_setup_link(customer)
    onboarding.create_setup_link(customer)
    assert Customer.objects.get().kapso_id == sandbox.state()["customers"][0]["id"]


def test_customer_read_before_it_was_registered_stays_registered(sandbox: Sandbox) -> None:
    customer = unregistered()
    onboarding.create_setup_link(Customer.objects.get())
    customer.name = "New name"
    customer.save()
    stored = Customer.objects.get()
    assert stored.name == "New name"
    assert stored.kapso_id == sandbox.state()["customers"][0]["id"]


def test_of_two_that_read_the_same_row_one_may_continue() -> None:
    pk = make_customer().pk
    first, second = (Customer.objects.get(pk=pk) for _ in range(2))
    assert customers.touch_if_unchanged(first)
    assert not customers.touch_if_unchanged(second)
    assert customers.touch_if_unchanged(Customer.objects.get(pk=pk))


def test_nobody_may_continue_with_a_deleted_customer() -> None:
    customer = make_customer()
    Customer.objects.all().delete()
    assert not customers.touch_if_unchanged(customer)
