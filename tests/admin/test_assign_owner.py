"""The page that gives a customer an owner."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from kapso_connect.models import Customer, TimelineEvent

from ..factories import make_customer
from ..sites.host_site.admin import BakeryAdmin
from ..sites.host_site.models import Bakery, Shop

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(client: Client) -> Client:
    user = User.objects.create_superuser("ada")
    client.force_login(user)
    return client


def page_of(customer: Customer) -> str:
    return reverse("admin:kapso_connect_customer_owner", args=[customer.pk])


def change_page_of(customer: Customer) -> str:
    return reverse("admin:kapso_connect_customer_change", args=[customer.pk])


def text(client: Client, url: str, **query: str) -> str:
    answer = client.get(url, query)
    assert answer.status_code == 200
    return " ".join(html.unescape(answer.content.decode()).split())


def choose(client: Client, customer: Customer, owner: str, *, version: str = "") -> Any:
    found = re.search(r'name="version" value="([^"]*)"', text(client, page_of(customer)))
    assert found
    data = {"version": version or found[1], "owner": owner}
    return client.post(page_of(customer), data, follow=True)


def test_an_object_is_found_and_becomes_the_owner(staff: Client) -> None:
    customer = make_customer(name="From Kapso")
    bakery = Bakery.objects.create(title="Ada's")
    Shop.objects.create(name="Other")
    link = f'<a href="{page_of(customer)}">Give it an owner</a>'
    assert link in text(staff, change_page_of(customer))
    assert "It has none." in text(staff, page_of(customer))
    found = text(staff, page_of(customer), q="ada")
    assert f'value="host_site.bakery:{bakery.pk}"' in found
    assert "Other" not in found
    answer = choose(staff, customer, f"host_site.bakery:{bakery.pk}")
    assert "The customer belongs to Bakery: Ada's." in html.unescape(answer.content.decode())
    assert Customer.objects.for_owner(bakery) == customer
    shown = text(staff, change_page_of(customer))
    assert "Change the owner" in shown
    assert f"host_site.bakery {bakery.pk}" in shown, "the timeline shows it"
    event = TimelineEvent.objects.get(kind="owner_assigned")
    assert event.actor == User.objects.get()
    history = reverse("admin:kapso_connect_customer_history", args=[customer.pk])
    assert "Made Bakery: Ada's the owner." in text(staff, history)


def test_objects_are_also_found_by_their_keys(staff: Client) -> None:
    shop = Shop.objects.create(name="Bob's")
    assert f"host_site.shop:{shop.pk}" in text(staff, page_of(make_customer()), q=str(shop.pk))
    assert "Nothing was found." in text(staff, page_of(make_customer()), q="nobody's")


def test_an_object_that_has_a_customer_cannot_be_chosen(staff: Client) -> None:
    bakery = Bakery.objects.create(title="Ada's")
    owned, other = Customer.objects.for_owner(bakery), make_customer()
    found = text(staff, page_of(other), q="Ada")
    assert re.search(r'value="host_site.bakery:\d+" disabled', found)
    assert f"it has the customer {owned}" in found
    answer = choose(staff, other, f"host_site.bakery:{bakery.pk}")
    assert "Another customer belongs to this object already." in answer.content.decode()
    other.refresh_from_db()
    assert other.get_owner() is None
    # The form that shows the error can be sent.
    version, free = answer.context["view"].version, Bakery.objects.create(title="Bob's")
    choose(staff, other, f"host_site.bakery:{free.pk}", version=version)
    other.refresh_from_db()
    assert other.get_owner() == free


def test_a_single_object_that_may_not_be_viewed_is_not_found(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, shown = (Bakery.objects.create(title=title) for title in ("Ada's", "Ada's other"))
    monkeypatch.setattr(
        BakeryAdmin, "has_view_permission", lambda self, request, obj=None: obj != hidden
    )
    found = text(staff, page_of(make_customer()), q="Ada")
    assert f'value="host_site.bakery:{shown.pk}"' in found
    assert f'value="host_site.bakery:{hidden.pk}"' not in found


def test_the_owner_is_taken_away(staff: Client) -> None:
    customer = Customer.objects.for_owner(Bakery.objects.create(title="Ada's"))
    assert "At present it is Bakery: Ada's." in text(staff, page_of(customer))
    answer = choose(staff, customer, "-")
    assert "The customer does not belong to anything any more." in answer.content.decode()
    assert "no owner any more" in text(staff, change_page_of(customer))


def test_an_owner_that_was_deleted_is_said(staff: Client) -> None:
    bakery = Bakery.objects.create(title="Ada's")
    customer = Customer.objects.for_owner(bakery)
    bakery.delete()
    assert "does not exist any more" in text(staff, page_of(customer))


@pytest.mark.parametrize(
    "owner", ["", "host_site.bakery:99", "host_site.bakery:x", "auth.user:1", "nonsense", ":", "\0"]
)
def test_what_is_no_owner_is_an_error_of_the_form(staff: Client, owner: str) -> None:
    customer = make_customer()
    answer = choose(staff, customer, owner)
    assert answer.status_code == 200
    assert "errornote" in answer.content.decode()
    assert not TimelineEvent.objects.exists()


def test_a_form_that_is_sent_twice_acts_once(staff: Client) -> None:
    customer = make_customer()
    bakery, shop = Bakery.objects.create(title="Ada's"), Shop.objects.create(name="Bob's")
    old = re.search(r'name="version" value="([^"]*)"', text(staff, page_of(customer)))
    assert old
    choose(staff, customer, f"host_site.bakery:{bakery.pk}")
    answer = choose(staff, customer, f"host_site.shop:{shop.pk}", version=old[1])
    assert "Nothing was changed" in answer.content.decode()
    assert Customer.objects.for_owner(bakery) == customer


def test_whoever_may_not_see_objects_cannot_choose_them(client: Client) -> None:
    user = User.objects.create_user("ada", is_staff=True)
    client.force_login(user)
    customer = make_customer()
    bakery = Bakery.objects.create(title="Ada's")
    assert client.get(page_of(customer)).status_code == 403
    names = ["view_customer", "change_customer", "view_shop"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    assert "Nothing was found." in text(client, page_of(customer), q="Ada")
    answer = choose(client, customer, f"host_site.bakery:{bakery.pk}")
    assert "you may not view it" in answer.content.decode()
    user.user_permissions.set(Permission.objects.filter(codename__in=names[:2]))
    assert "with SetupLinkAdminMixin adds them" in text(client, page_of(customer))
    assert "Give it an owner" not in text(client, change_page_of(customer))
    user.user_permissions.set(Permission.objects.filter(codename="view_customer"))
    assert client.get(page_of(customer)).status_code == 403


def test_an_erased_customer_gets_no_owner(staff: Client) -> None:
    customer = make_customer()
    Customer.objects.update(erased_at=customer.created_at)
    answer = staff.get(page_of(customer), follow=True)
    assert "were erased" in answer.content.decode()
    assert "Give it an owner" not in answer.content.decode()


def test_search_leaves_out_what_a_database_refuses(staff: Client) -> None:
    bakery = Bakery.objects.create(title="Ada's")
    found = text(staff, page_of(make_customer()), q="\0ada")
    assert f'value="host_site.bakery:{bakery.pk}"' in found
