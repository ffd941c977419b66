"""Erasing and deleting customers, and what is said when their objects are deleted."""

from __future__ import annotations

import html
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.admin import CustomerAdmin, erase
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import setup_links
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery
from .world import World, messages

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/kapso_connect/customer/"
ERASE = f"{LIST}erase/"
BAKERIES = "/admin/host_site/bakery/"


def text(response: Any) -> str:
    return html.unescape(response.content.decode())


def erased(**fields: Any) -> Customer:
    customer = make_customer(**{"kapso_id": None, "erased_at": timezone.now(), **fields})
    Customer.objects.filter(pk=customer.pk).update(name=f"#{customer.pk}")
    return customer


def test_customers_whom_the_user_may_not_view_are_left_out(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    class OwnAdmin(CustomerAdmin):
        def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
            return obj is None or obj.name != "Hidden"

    site = AdminSite()
    site.register(Customer, OwnAdmin)
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path("admin/", site.urls)]})
    hidden, other = (make_customer(kapso_id=None, name=name) for name in ("Hidden", "Other"))
    response = admin_client.post(ERASE, {"ids": [hidden.pk, other.pk]})
    assert "Some of the selected rows no longer exist." in messages(response)
    assert list(Customer.objects.filter(erased_at=None)) == [hidden]


def test_one_customer_is_erased_from_its_page(world: World) -> None:
    pk = world.customer.pk
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    page = text(world.client.get(f"{LIST}{pk}/change/"))
    assert f'href="{ERASE}?ids={pk}"' in page
    confirm = text(world.client.get(ERASE, {"ids": pk}))
    assert "Süß: <bdi>+1 415-555-0123</bdi>" in confirm
    assert "1 connected number is disconnected and removed from Kapso" in confirm
    assert "1 setup link is revoked at Kapso" in confirm
    assert "setup links (1) and timeline events (" in confirm
    assert "This cannot be undone" in confirm
    response = world.client.post(ERASE, {"ids": pk})
    assert "The data of 1 customer were erased." in messages(response)
    world.customer.refresh_from_db()
    assert world.customer.erased_at is not None
    assert not Connection.objects.get().is_connected
    page = text(world.client.get(response.url))
    assert "Erased customer" in page
    assert "personal data were erased, and the customer cannot be invited again." in page
    assert "Create a new setup link" not in page
    assert 'name="_save"' not in page
    entry = LogEntry.objects.get(object_id=str(pk), change_message="Erased the customer's data.")
    assert entry.object_repr == f"Erased customer {pk}"


def test_page_of_an_erased_customer_says_when_and_not_to_whom_the_link_was_sent(
    world: World,
) -> None:
    customer = make_customer(kapso_id=None)
    link = onboarding.create_setup_link(customer)
    setup_links.record_sent(link, "email", to="ada@example.com")
    address = f"{LIST}{customer.pk}/change/"
    assert "to ada@example.com." in text(world.client.get(address))
    world.client.post(ERASE, {"ids": customer.pk})
    page = text(world.client.get(address))
    assert "E-mailed on" in page
    assert "to ." not in page


def test_several_customers_are_erased_with_the_action(world: World) -> None:
    one, other = (make_customer(kapso_id=None) for _ in range(2))
    response = world.client.post(LIST, {"action": "erase", "_selected_action": [one.pk, other.pk]})
    assert world.client.get(response.url).status_code == 200
    response = world.client.post(response.url, {"ids": [one.pk, other.pk]})
    assert response.url == LIST
    assert "The data of 2 customers were erased." in messages(response)
    assert Customer.objects.exclude(erased_at=None).count() == 2
    page = text(world.client.get(LIST))
    assert page.count(">Erased<") == 2


def test_outage_is_told_and_nothing_is_erased(world: World) -> None:
    world.sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    response = world.client.post(ERASE, {"ids": world.customer.pk})
    assert "Süß was not erased: Kapso did not respond." in messages(response)
    world.customer.refresh_from_db()
    assert (world.customer.name, world.customer.erased_at) == ("Süß", None)


def test_what_kapso_keeps_is_told(world: World) -> None:
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    world.sandbox.faults(api=[{"match": "^DELETE .*/customers", "kind": "status", "status": 401}])
    response = world.client.post(ERASE, {"ids": world.customer.pk})
    assert f"Kapso still has its own record of Erased customer {world.customer.pk}" in messages(
        response
    )


def test_what_does_not_fit_into_the_time_is_left(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(erase, "ERASE_BUDGET", -1)
    response = world.client.post(ERASE, {"ids": world.customer.pk})
    assert "not enough time" in messages(response)
    assert not Customer.objects.exclude(erased_at=None).exists()


@pytest.mark.parametrize("allowed", [True, False])
def test_it_needs_the_permission(staff: Callable[..., Client], allowed: bool) -> None:
    customer = make_customer(kapso_id=None)
    client = staff("view_customer", *(["erase_customer"] if allowed else ["delete_customer"]))
    assert ('value="erase"' in text(client.get(LIST))) == allowed
    assert ("erase/?ids=" in text(client.get(f"{LIST}{customer.pk}/change/"))) == allowed
    codes = [client.get(ERASE, {"ids": customer.pk}).status_code]
    codes.append(client.post(ERASE, {"ids": customer.pk}).status_code)
    assert codes == ([200, 302] if allowed else [403, 403])


@pytest.mark.parametrize("ids", [[], ["x"], ["0"], ["9" * 30], [str(n) for n in range(101)]])
def test_bad_ids_get_a_message(admin_client: Client, ids: list[str]) -> None:
    for response in (admin_client.get(ERASE, {"ids": ids}), admin_client.post(ERASE, {"ids": ids})):
        assert response.status_code == 302
        assert messages(response)


def test_confirm_page_needs_the_same_queries_for_many(admin_client: Client) -> None:
    def count(pks: list[int]) -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert admin_client.get(ERASE, {"ids": pks}).status_code == 200
        return len(queries)

    customers = [make_customer() for _ in range(30)]
    for customer in customers:
        make_connection(customer)
    pks = [customer.pk for customer in customers]
    count(pks[:1])
    assert count(pks) == count(pks[:1])


def test_erased_customers_are_left_out_of_invitations(admin_client: Client) -> None:
    gone, other = erased(), make_customer(kapso_id=None)
    response = admin_client.post(
        LIST, {"action": "create_setup_links", "_selected_action": [gone.pk, other.pk]}
    )
    assert "1 customer cannot be invited: its personal data were erased." in messages(response)
    assert other.invitations.count() == 1
    assert gone.invitations.count() == 0


def test_erased_customer_with_a_new_number_is_shown_as_connected(admin_client: Client) -> None:
    make_connection(erased())
    page = text(admin_client.get(LIST))
    assert ">Erased<" not in page
    assert "kapso-badge-good" in page


# Deleting


def delete(client: Client, customer: Customer) -> list[str]:
    """Try to delete the customer on its page and with the action; return what is shown."""
    return [
        text(client.post(address, data, follow=True))
        for address, data in [
            (f"{LIST}{customer.pk}/delete/", {"post": "yes"}),
            (
                LIST,
                {"action": "delete_selected", "_selected_action": [customer.pk], "post": "yes"},
            ),
        ]
    ]


def test_customer_with_past_numbers_is_deleted_with_them(admin_client: Client) -> None:
    customer = make_customer()
    make_connection(customer, status="disconnected", disconnected_at=timezone.now())
    make_link(customer, status="revoked")
    delete(admin_client, customer)
    assert not Customer.objects.exists()
    assert not Connection.objects.exists()


def test_connected_customer_is_not_deleted(admin_client: Client) -> None:
    customer = make_customer(name="Ada")
    make_connection(customer, display_phone_number="+49 30 901820")
    for page in delete(admin_client, customer):
        assert "Ada: +49 30 901820 is connected. Erase the customer, or disconnect" in page
    assert Connection.objects.count() == 1


def test_customer_with_a_usable_link_is_not_deleted(admin_client: Client) -> None:
    customer = make_customer(name="Ada")
    make_link(customer)
    for page in delete(admin_client, customer):
        assert "Ada: a setup link can still be used at Kapso. Erase the customer, or" in page
    assert SetupLink.objects.count() == 1


def test_customer_with_a_waiting_signal_is_not_deleted(admin_client: Client) -> None:
    customer = make_customer(name="Ada")
    TimelineEvent.objects.create(kind="setup_failed", source="sync", customer=customer)
    for page in delete(admin_client, customer):
        assert "Ada: the signal of “Setup failed” is still to be sent." in page
    assert Customer.objects.count() == 1


# The objects of the site


def test_deleting_the_object_of_a_connected_customer_says_so(admin_client: Client) -> None:
    bakery, other = (Bakery.objects.create(title=title) for title in ("Süß", "Sauer"))
    customer = Customer.objects.for_owner(bakery)
    make_connection(customer, display_phone_number="+49 30 901820")
    words = f"The WhatsApp number +49 30 901820 of {customer} stays connected at Kapso."
    link = f'href="{LIST}{customer.pk}/change/"'
    page = text(admin_client.get(f"{BAKERIES}{bakery.pk}/delete/"))
    assert words in page
    assert link in page
    selected = {"action": "delete_selected", "_selected_action": [bakery.pk, other.pk]}
    page = text(admin_client.post(BAKERIES, selected))
    assert words in page
    assert link in page
    assert words not in text(admin_client.get(f"{BAKERIES}{other.pk}/delete/"))
    admin_client.post(f"{BAKERIES}{bakery.pk}/delete/", {"post": "yes"})
    assert not Bakery.objects.filter(pk=bakery.pk).exists()
    assert Connection.objects.get().is_connected


def test_link_to_the_customer_is_only_for_those_who_may_view_it(
    staff: Callable[..., Client],
) -> None:
    bakery = Bakery.objects.create(title="Süß")
    make_connection(Customer.objects.for_owner(bakery), display_phone_number="+49 30 901820")
    page = text(staff("view_bakery", "delete_bakery").get(f"{BAKERIES}{bakery.pk}/delete/"))
    assert "+49 30 901820" in page
    assert LIST not in page
