"""Customers that the REST API creates, and their owners."""

from __future__ import annotations

from typing import Any

import pytest
from django.db.models import Model
from django.urls import include, path
from rest_framework.request import Request

from kapso_connect.api.urls import urls_for
from kapso_connect.models import Customer, TimelineEvent

from ..sites.host_site.models import Bakery
from ..urls import urlpatterns as site
from .support import Caller, code, make_user

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("unthrottled"),
    pytest.mark.urls("tests.api.test_owners"),
]


class OwnedByBakeries:
    """Bakeries are found by the id that this site gives its customers."""

    def get_owner(self, request: Request, **values: Any) -> Model | None:
        return Bakery.objects.filter(reference=values.get("external_customer_id", "-")).first()


urlpatterns = [*site, path("owned/", include(urls_for(OwnedByBakeries), namespace="owned"))]


@pytest.fixture
def caller() -> Caller:
    return Caller(make_user("staff", "superuser"), at="/owned/v1/")


def test_a_new_customer_gets_the_owner_that_the_site_names(caller: Caller) -> None:
    bakery = Bakery.objects.create(title="Ada's", reference="b-1")
    answer = caller.post("customers/", {"name": "Ada's", "external_customer_id": "b-1"})
    assert answer.status_code == 201
    assert Customer.objects.get().get_owner() == bakery
    (event,) = TimelineEvent.objects.all()
    assert (event.kind, event.actor) == ("owner_assigned", caller.user)


def test_a_customer_without_an_owner_is_created_all_the_same(caller: Caller) -> None:
    assert caller.post("customers/", {"name": "Ada's"}).status_code == 201
    assert Customer.objects.get().get_owner() is None
    assert not TimelineEvent.objects.exists()


def test_an_owner_that_has_a_customer_is_a_conflict_and_nothing_is_created(caller: Caller) -> None:
    bakery = Bakery.objects.create(title="Ada's", reference="b-1")
    Customer.objects.for_owner(bakery)
    answer = caller.post("customers/", {"name": "Ada's", "external_customer_id": "b-1"})
    assert code(answer, 409) == "owner_taken"
    assert Customer.objects.count() == 1


def test_a_repeated_request_assigns_the_owner_once(caller: Caller) -> None:
    Bakery.objects.create(title="Ada's", reference="b-1")
    body = {"name": "Ada's", "external_customer_id": "b-1"}
    for _ in range(2):
        answer = caller.post("customers/", body, headers={"Idempotency-Key": "one"})
        assert answer.status_code == 201
    assert TimelineEvent.objects.count() == 1
