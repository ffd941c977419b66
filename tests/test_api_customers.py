from __future__ import annotations

import pytest

from kapso_connect.models import Customer

from .api_support import API, Caller, staff

pytestmark = pytest.mark.django_db


@pytest.fixture
def caller() -> Caller:
    return staff()


def test_root_says_where_everything_is(caller: Caller) -> None:
    answer = caller.get("").json()
    assert set(answer) == {"customers", "setup_links", "connections", "events"}
    for url in answer.values():
        assert caller.client.get(url).status_code == 200


def test_a_customer_is_created(caller: Caller) -> None:
    answer = caller.post("customers/", {"name": "Ada", "email": "ada@example.com"})
    assert answer.status_code == 201
    customer = Customer.objects.get()
    assert (customer.name, customer.email, customer.language) == ("Ada", "ada@example.com", "")
    assert answer.headers["Location"] == f"http://testserver{API}customers/{customer.pk}/"
    assert answer.json() == caller.get(f"customers/{customer.pk}/").json()
    assert answer.json()["standing"] == "not_invited"
    assert answer.json()["external_customer_id"] == customer.external_customer_id
