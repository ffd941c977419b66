"""Staff search for customers by what these tell them on the phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from kapso_connect.models import Connection, Customer
from kapso_connect.onboarding.numbers import Number, connect, connect_new

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Shop

pytestmark = pytest.mark.django_db


@pytest.fixture
def find(admin_client: Client) -> Callable[..., list[Any]]:
    """Return a function that searches a list of the admin, and returns the rows it shows."""

    def search(text: str, model: type[Model] = Customer, **query: str) -> list[Any]:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        response = admin_client.get(reverse(name), {"q": text, **query})
        assert response.status_code == 200
        return list(response.context_data["cl"].result_list)  # type: ignore[attr-defined]

    return search


@pytest.fixture
def berlin() -> Customer:
    """A customer with two numbers, beside one whose number is similar."""
    ids = {"external_customer_id": "crm-7", "kapso_id": "berlin"}
    customer = make_customer(name="Bäckerei", email="b@example.com", **ids)
    make_connection(customer, display_phone_number="+49 30 5432134")
    make_connection(customer, display_phone_number="+49 30 5432199", status="disconnected")
    other = make_customer(name="Other", external_customer_id="other", kapso_id="other")
    make_connection(other, display_phone_number="+49 30 5432100")
    return customer


def test_customer_is_found_once(find: Any, berlin: Customer) -> None:
    for text in (
        "bäcker",
        "b@example",
        "crm-7",
        "+49305432134",
        "0049 30 5432134",
        "030 5432134",
        "+49 30 5432134",
        "+49 (0)30 / 543-21-34",
        "5432134",
        "32134",
        "030 5432199",
    ):
        assert find(text) == [berlin], text


@pytest.mark.parametrize("text", ["2134", "00000", "+49 30 99999", "x5432134"])
def test_other_texts_find_nobody(find: Any, berlin: Customer, text: str) -> None:
    assert find(text) == []


def test_a_part_of_several_numbers_finds_all(find: Any, berlin: Customer) -> None:
    assert len(find("030 54321")) == 2


def test_customer_is_found_by_the_reference_of_a_link(find: Any) -> None:
    customer = make_customer()
    former = make_link(customer)
    make_link(customer)
    make_link()
    assert find(former.reference) == [customer]
    assert find(f" {former.reference.upper()} ") == [customer]
    assert find(former.reference[:5]) == []


def test_search_and_filter_go_together(find: Any, berlin: Customer) -> None:
    assert find("030 5432134", whatsapp_status="connected") == [berlin]
    assert find("030 5432134", whatsapp_status="invited") == []


def test_connections_are_found_by_number(find: Any, berlin: Customer) -> None:
    [found] = find("030 5432134", Connection)
    assert found.display_phone_number == "+49 30 5432134"


@pytest.mark.parametrize(("model", "field"), [(Bakery, "title"), (Shop, "name")])
def test_a_sites_objects_are_found_by_their_customers(
    find: Any, model: type[Model], field: str
) -> None:
    sought, other = (model._default_manager.create(**{field: name}) for name in "ab")
    customer = Customer.objects.for_owner(sought, name="Sought", external_customer_id="crm-7")
    make_connection(customer, display_phone_number="+49 30 5432134")
    link = make_link(customer)
    make_connection(Customer.objects.for_owner(other), display_phone_number="+49 30 5432199")
    # A customer of another model's object with the same key.
    make_customer(owner_type=None, owner_id=str(sought.pk), name="Sought")
    for text in ("030 5432134", link.reference, "sought", "crm-7"):
        assert find(text, model) == [sought], text
    assert find("nobody", model) == []


def test_numbers_are_found_however_they_were_written(find: Any) -> None:
    several = [make_customer(name=name) for name in "ab"]
    numbers = [
        Number(phone_number_id=str(pk), display_phone_number=f"+49 30 543213{pk}") for pk in (1, 2)
    ]
    connect_new(list(zip(several, numbers, strict=True)), source="sync")
    late = make_customer(name="c")
    connect(late, Number(phone_number_id="3"), source="webhook")
    assert find("030 5432133") == []
    told = Number(phone_number_id="3", display_phone_number="+49 30 5432133")
    connect(late, told, source="webhook")
    assert find("030 5432131") == several[:1]
    assert find("030 5432133") == [late]
