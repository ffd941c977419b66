"""The stored status of a customer that two processes change at the same time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer
from kapso_connect.onboarding import setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.onboarding.status import find_wrong_statuses

from ..factories import make_connection, make_customer, make_link, new_number_id
from .support import at_once

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("sqlite_options"),
    pytest.mark.parametrize("attempt", range(5)),
]


def old_connection(customer: Customer) -> Connection:
    return make_connection(customer, connected_at=timezone.now() - timedelta(hours=1))


def connect(customer: Customer, phone_number_id: str) -> None:
    number = Number(phone_number_id)
    onboarding.connect(customer, number, source="webhook", asked_at=timezone.now())


def disconnect(connection: Connection) -> None:
    onboarding.disconnect(connection.phone_number_id, source="webhook", occurred_at=timezone.now())


def statuses(*customers: Customer) -> list[str]:
    assert list(find_wrong_statuses()) == []
    return [Customer.objects.get(pk=customer.pk).status for customer in customers]


def test_one_number_is_connected_while_another_is_disconnected(attempt: int) -> None:
    customer, new = make_customer(), new_number_id()
    old = old_connection(customer)
    at_once(lambda: connect(customer, new), lambda: disconnect(old))
    assert statuses(customer) == ["connected"]
    assert Connection.objects.connected().get().phone_number_id == new


def test_both_numbers_are_disconnected(attempt: int) -> None:
    customer = make_customer()
    first, second = old_connection(customer), old_connection(customer)
    at_once(lambda: disconnect(first), lambda: disconnect(second))
    assert statuses(customer) == ["disconnected"]


def test_number_moves_away_while_another_is_connected_or_disconnected(attempt: int) -> None:
    customer, other = make_customer(), make_customer()
    moving, staying, new = old_connection(customer), old_connection(customer), new_number_id()
    at_once(
        lambda: connect(other, moving.phone_number_id),
        lambda: disconnect(staying),
        lambda: connect(customer, new),
    )
    assert statuses(customer, other) == ["connected", "connected"]


def test_two_customers_exchange_their_numbers(attempt: int) -> None:
    first, second = old_connection(make_customer()), old_connection(make_customer())
    customers = first.customer, second.customer
    at_once(
        lambda: connect(customers[0], second.phone_number_id),
        lambda: connect(customers[1], first.phone_number_id),
    )
    assert statuses(*customers) == ["connected", "connected"]


def test_link_is_opened_and_fails_while_its_number_is_connected_and_lost(attempt: int) -> None:
    link = make_link()
    customer, old, new = link.customer, old_connection(link.customer), new_number_id()
    at_once(
        lambda: setup_links.record_opened(link, source="redirect"),
        lambda: setup_links.record_failure(link, "facebook_auth_failed"),
        lambda: connect(customer, new),
        lambda: disconnect(old),
    )
    assert statuses(customer) == ["connected"]
    disconnect(Connection.objects.connected().get())
    assert statuses(customer) == ["disconnected"]
