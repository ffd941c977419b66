"""The rows of a list, exported as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.admin import export
from kapso_connect.models import Customer, TimelineEvent, WebhookEvent, new_connect_key

from ..factories import make_connection, make_customer, make_link, store_statuses

pytestmark = pytest.mark.django_db

ADMIN = "/admin/kapso_connect/"
LISTS = {
    "customer": "view_customer",
    "setuplink": "view_setuplink",
    "connection": "view_connection",
    "timelineevent": "view_timelineevent",
    "webhookevent": "view_webhookevent",
}


def content(response: Any) -> str:
    assert response.status_code == 200, response
    text: str = response.getvalue().decode()
    return text


def rows(client: Client, model: str, query: str = "") -> list[dict[str, str]]:
    """Return the exported rows, by the names of the columns."""
    response = client.get(f"{ADMIN}{model}/export/{query}")
    assert "no-store" in response["Cache-Control"]
    text = content(response)
    assert text.startswith("\ufeff"), "Excel needs it"
    return list(csv.DictReader(StringIO(text.removeprefix("\ufeff"))))


def test_columns_are_those_of_the_list_in_plain_text(admin_client: Client) -> None:
    customer = make_customer(name="Ada & <Co>", email="ada@example.com", language="es")
    make_connection(
        customer,
        display_phone_number="+49 30 901820",
        status="disconnected",
        disconnected_at=timezone.now(),
        disconnect_reason="staff",
    )
    (row,) = rows(admin_client, "customer")
    assert row["Name"] == "Ada & <Co>"
    assert row["E-mail"] == "ada@example.com"
    assert row["WhatsApp"] == "Disconnected · +49 30 901820 · by a member of staff"
    assert row["Language"] == customer.get_language_display() != "es"
    assert row["Created"] == f"{timezone.localtime(customer.created_at):%Y-%m-%d %H:%M:%S}"


def test_every_list_is_exported(admin_client: Client) -> None:
    customer = make_customer(name="Ada", connect_key=new_connect_key())
    link = make_link(customer)
    number = make_connection(customer, setup_link=link, display_phone_number="+49 30 901820")
    TimelineEvent.objects.create(
        kind="setup_failed",
        source="sync",
        customer=customer,
        connection=number,
        data={"error_code": "link_expired"},
    )
    WebhookEvent.objects.create(
        idempotency_key="k", event="x.y", payload={"secret": "s"}, status="failed", last_error="No"
    )
    exported = {model: rows(admin_client, model)[0] for model in LISTS}
    assert exported["setuplink"]["Customer"] == "Ada"
    assert exported["setuplink"]["Status"] == "Active"
    assert exported["connection"]["Phone number"] == "'+49 30 901820"
    assert exported["timelineevent"]["Event"].startswith("Setup failed · ")
    assert (exported["webhookevent"]["Status"], exported["webhookevent"]["Error"]) == (
        "Failed",
        "No",
    )
    everything = str(exported)
    for secret in (link.url, customer.connect_key, "'s'"):
        assert secret not in everything
    assert "<" not in everything


def test_filters_and_search_and_order_of_the_list_apply_to_all_pages(
    admin_client: Client, monkeypatch: Any
) -> None:
    monkeypatch.setattr(export, "ROWS_PER_CHUNK", 50)
    Customer.objects.bulk_create(Customer(name=f"Ada {n:03}") for n in range(120))
    Customer.objects.bulk_create(
        Customer(name=f"Ada {n:03}", status="connected") for n in range(120, 130)
    )
    make_customer(name="Bob")
    query = "?q=Ada&whatsapp_status=not_invited&o=1"
    page = admin_client.get(f"{ADMIN}customer/{query}&p=2")
    (tool,) = [
        part
        for part in page.content.decode().split('href="')
        if part.startswith("/admin/") and "/export/" in part[:60]
    ]
    address = tool.partition('"')[0].replace("&amp;", "&")
    assert address == f"{ADMIN}customer/export/{query}"
    names = [row["Name"] for row in rows(admin_client, "customer", query)]
    assert names == [f"Ada {n:03}" for n in range(120)]


def test_bad_filters_lead_back_to_the_list(admin_client: Client) -> None:
    response = admin_client.get(f"{ADMIN}customer/export/?created_at__gte=nonsense")
    assert (response.status_code, response["Location"]) == (302, f"{ADMIN}customer/?e=1")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", " =", "\uff1d"])
def test_no_cell_is_taken_for_a_formula(admin_client: Client, start: str) -> None:
    make_customer(name=f"{start}1+1", email=f"{start.strip()}x@example.com")
    (row,) = rows(admin_client, "customer")
    assert row["Name"] == f"'{start.strip()}1+1"
    assert row["E-mail"] == f"'{start.strip()}x@example.com"


@pytest.mark.parametrize("before", ["a;", "a; ", 'a;"'])
def test_no_cell_is_taken_for_a_formula_where_semicolons_separate_cells(
    admin_client: Client, before: str
) -> None:
    make_customer(name=f"{before}=1+1;b")
    assert rows(admin_client, "customer")[0]["Name"] == f"{before}'=1+1;b"


def test_texts_are_kept(admin_client: Client) -> None:
    make_customer(name='Süß, "Ada"; 北京')
    assert rows(admin_client, "customer")[0]["Name"] == 'Süß, "Ada"; 北京'


@pytest.mark.parametrize("model", LISTS)
def test_it_needs_the_permission_to_view(staff: Callable[..., Client], model: str) -> None:
    others = [permission for name, permission in LISTS.items() if name != model]
    client = staff(*others)
    assert client.get(f"{ADMIN}{model}/export/").status_code == 403
    client.logout()
    assert client.get(f"{ADMIN}{model}/export/").status_code == 302


@pytest.mark.parametrize("model", LISTS)
def test_those_who_may_view_the_list_get_the_button(
    staff: Callable[..., Client], model: str
) -> None:
    client = staff(LISTS[model])
    page = client.get(f"{ADMIN}{model}/").content.decode()
    assert f'href="{ADMIN}{model}/export/"' in page
    assert "export" not in client.get(f"{ADMIN}{model}/?_popup=1").content.decode()
    assert client.get(f"{ADMIN}{model}/export/").status_code == 200


@pytest.mark.parametrize("model", LISTS)
def test_each_chunk_needs_the_same_few_queries(
    admin_client: Client, monkeypatch: Any, model: str
) -> None:
    for _n in range(30):
        customer = make_customer()
        link = make_link(customer)
        number = make_connection(customer, setup_link=link)
        TimelineEvent.objects.create(
            kind="connected", source="sync", customer=customer, connection=number
        )
        WebhookEvent.objects.create(idempotency_key="k", event="x", payload={})
    store_statuses()

    def count(rows_per_chunk: int) -> int:
        monkeypatch.setattr(export, "ROWS_PER_CHUNK", rows_per_chunk)
        with CaptureQueriesContext(connection) as queries:
            assert len(rows(admin_client, model)) == 30
        return len(queries)

    count(30)
    one, three = count(30), count(10)
    assert three - one <= 2 * 4, "the statuses of each chunk"
    assert one <= 14
