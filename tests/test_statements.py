from __future__ import annotations

import uuid
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
from django.db import IntegrityError, models, transaction
from django.db import connection as database
from django.db.models.base import ModelState
from django.db.models.signals import post_save, pre_save
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.models import Connection, Customer, TimelineEvent, WebhookEvent
from kapso_connect.signals import whatsapp_connected
from kapso_connect.statements import Lookup, Slot, Update, _insert_statement, insert

from .factories import (
    CREATED,
    DELETED,
    after_first_query,
    make_customer,
    make_link,
    payload_for,
    post,
)

pytestmark = pytest.mark.django_db(transaction=True)


def new_delivery() -> WebhookEvent:
    return WebhookEvent(
        idempotency_key=str(uuid.uuid4()),
        event="x.y",
        payload={"ä": ["\U0001f600", None, 1.5, {"when": timezone.now()}]},
        status=WebhookEvent.Status.IGNORED,
        last_error="'; --",
    )


def new_connection() -> Connection:
    return Connection(
        phone_number_id=uuid.uuid4().hex,
        customer=make_customer(),
        status=Connection.Status.CONNECTED,
        connected_at=timezone.now(),
        restrictions=[{"type": "x"}],
    )


def new_event() -> TimelineEvent:
    return TimelineEvent(kind=TimelineEvent.Kind.CONNECTED, customer=make_customer(), data={})


ROWS = [new_delivery, new_connection, new_event]


def stored_values(row: models.Model) -> dict[str, Any]:
    """Return the row's values in the database, without its key and the times that fields set."""
    stored = type(row)._default_manager.get(pk=row.pk)
    return {
        field.attname: getattr(stored, field.attname)
        for field in stored._meta.concrete_fields
        if field.name not in {"id", "created_at", "updated_at"}
    }


@pytest.mark.parametrize("make", ROWS)
def test_an_inserted_row_equals_a_saved_one(make: Callable[[], models.Model]) -> None:
    inserted = make()
    saved = copy(inserted)
    saved._state = ModelState()
    insert(inserted)
    assert not inserted._state.adding
    assert inserted._state.db == "default"
    values = stored_values(inserted)
    inserted.delete()
    saved.save(force_insert=True)
    assert values == stored_values(saved)


def test_the_primary_key_is_set_where_inserts_return_no_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As MySQL, of which MariaDB and SQLite have this way, too.
    if database.vendor == "postgresql":
        pytest.skip("PostgreSQL has no other way than to return it.")
    monkeypatch.setattr(database.features, "can_return_columns_from_insert", False)
    _insert_statement.cache_clear()
    try:
        first, second = new_delivery(), new_delivery()
        insert(first)
        insert(second)
    finally:
        _insert_statement.cache_clear()
    assert WebhookEvent.objects.get(pk=second.pk).idempotency_key == second.idempotency_key
    assert first.pk < second.pk


def test_automatic_times_are_set() -> None:
    connection = new_connection()
    before = timezone.now()
    insert(connection)
    assert before <= connection.created_at <= connection.updated_at <= timezone.now()


def test_an_inserted_row_can_be_changed_and_saved() -> None:
    connection = new_connection()
    insert(connection)
    connection.verified_name = "Ada's Bakery"
    with CaptureQueriesContext(database) as captured:
        connection.save()
    assert [query["sql"].split()[0] for query in captured] == ["UPDATE"]
    assert Connection.objects.get().verified_name == "Ada's Bakery"


def test_a_duplicate_row_is_refused() -> None:
    row = new_delivery()
    insert(row)
    twin = new_delivery()
    twin.idempotency_key = row.idempotency_key
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(twin)
    assert WebhookEvent.objects.count() == 1


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_the_save_signals_of_models_are_sent(signal: Any) -> None:
    saved = []

    def remember(sender: Any, instance: models.Model, **kwargs: Any) -> None:
        saved.append(sender)

    signal.connect(remember)
    try:
        post(payload_for(make_customer(), "1"))
    finally:
        signal.disconnect(remember)
    assert [model for model in saved if model is not Customer] == [
        WebhookEvent,
        Connection,
        TimelineEvent,
    ]


def test_a_statement_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(key: Slot) -> Any:
        built.append(key)
        return WebhookEvent.objects.filter(idempotency_key=key).order_by().values_list("pk")

    lookup = Lookup(build, key=models.CharField())
    row = new_delivery()
    insert(row)
    assert lookup.first(key=row.idempotency_key) == (row.pk,)
    assert lookup.first(key="'; DROP TABLE x; --") is None
    assert lookup.first(key="%s") is None
    assert len(built) == 1


def test_an_update_returns_the_number_of_rows() -> None:
    def build(pk: Slot, payload: Slot) -> Any:
        return WebhookEvent.objects.filter(pk=pk).order_by(), {"payload": payload, "attempts": 7}

    update = Update(build, pk=models.BigAutoField(), payload=models.JSONField())
    row, other = new_delivery(), new_delivery()
    insert(row)
    insert(other)
    assert update.execute(pk=row.pk, payload={"new": "100 %s"}) == 1
    assert update.execute(pk=row.pk + 1000, payload={}) == 0
    row.refresh_from_db()
    other.refresh_from_db()
    assert (row.payload, row.attempts) == ({"new": "100 %s"}, 7)
    assert other.attempts == 0


# How many queries a webhook needs, including BEGIN and COMMIT


@pytest.mark.parametrize("others", [0, 50])
def test_a_new_number_needs_at_most_six_queries(
    others: int, django_assert_max_num_queries: Any
) -> None:
    for _ in range(others):
        make_customer()
    customer = make_customer()
    body = payload_for(customer, "1")
    with django_assert_max_num_queries(6):
        assert post(body).status_code == 200
    assert Connection.objects.get().customer == customer


def test_completing_its_setup_link_needs_one_more(django_assert_max_num_queries: Any) -> None:
    link = make_link()
    body = payload_for(link.customer, "1")
    with django_assert_max_num_queries(7):
        post(body)
    link.refresh_from_db()
    assert link.setup_status == "completed"
    assert Connection.objects.get().setup_link == link


@pytest.mark.parametrize("invited", [True, False])
def test_receivers_get_all_rows_for_two_more(
    invited: bool, django_assert_max_num_queries: Any
) -> None:
    link = make_link(next_url="/welcome/") if invited else None
    customer = link.customer if link else make_customer()
    body = payload_for(customer, "1")
    received: list[Any] = []

    def receive(connection: Connection, customer: Customer, setup_link: Any, **kwargs: Any) -> None:
        with CaptureQueriesContext(database) as captured:
            received.extend((connection.customer.name, customer.email, setup_link, connection))
            received.append(connection.setup_link)
        assert not captured.captured_queries

    whatsapp_connected.connect(receive)
    try:
        with django_assert_max_num_queries(9 if invited else 8):
            post(body)
    finally:
        whatsapp_connected.disconnect(receive)
    name, email, setup_link, connection, link_of_connection = received
    assert (name, email, setup_link) == (customer.name, customer.email, link)
    assert link_of_connection == link
    if setup_link:
        # With its current values, and of the types that its fields have.
        link.refresh_from_db()
        assert {
            field.attname: getattr(setup_link, field.attname)
            for field in setup_link._meta.concrete_fields
        } == {field.attname: getattr(link, field.attname) for field in link._meta.concrete_fields}
    assert connection.customer == customer


def test_a_duplicate_needs_one_query(django_assert_max_num_queries: Any) -> None:
    body = payload_for(make_customer(), "1")
    post(body, key="same")
    with django_assert_max_num_queries(1):
        assert post(body, key="same").json() == {"received": 0, "duplicates": 1}
    with django_assert_max_num_queries(1):
        assert post(body, event="x.y", key="same").json()["duplicates"] == 1


def test_an_event_that_is_ignored_needs_at_most_four_queries(
    django_assert_max_num_queries: Any,
) -> None:
    with django_assert_max_num_queries(4):
        post({}, event="x.y")
    assert WebhookEvent.objects.get().status == "ignored"


def test_a_number_that_is_connected_already_needs_at_most_six_queries(
    django_assert_max_num_queries: Any,
) -> None:
    customer = make_customer()
    post(payload_for(customer, "1"))
    with django_assert_max_num_queries(6):
        post(payload_for(customer, "1"))
    assert Connection.objects.count() == TimelineEvent.objects.count() == 1


def test_a_disconnected_number_needs_at_most_nine_queries(
    django_assert_max_num_queries: Any,
) -> None:
    customer = make_customer()
    post(payload_for(customer, "1"))
    with django_assert_max_num_queries(9):
        post(payload_for(customer, "1"), event=DELETED)
    assert not Connection.objects.get().is_connected


# What another process changes after the lookup that precedes the transaction


def test_a_number_that_another_delivery_connects_meanwhile_is_connected_once() -> None:
    customer = make_customer()
    body = payload_for(customer, "1")
    with after_first_query(lambda: post(body, key="other")):
        assert post(body, key="this").json() == {"received": 1, "duplicates": 0}
    assert WebhookEvent.objects.filter(status="processed").count() == 2
    assert TimelineEvent.objects.get().kind == "connected"


def test_a_link_that_is_completed_meanwhile_is_not_completed_again() -> None:
    link = make_link()
    with after_first_query(lambda: post(payload_for(link.customer, "1"))):
        post(payload_for(link.customer, "2"))
    connections = {c.phone_number_id: c.setup_link for c in Connection.objects.all()}
    assert connections == {"1": link, "2": None}


def test_a_customer_that_is_deleted_meanwhile_is_created_again() -> None:
    customer = make_customer()
    body = payload_for(customer, "1")
    with after_first_query(lambda: Customer.objects.all().delete()):
        assert post(body, event=CREATED).status_code == 200
    assert Connection.objects.get().customer.kapso_id == customer.kapso_id


def test_the_same_delivery_that_is_stored_meanwhile_is_a_duplicate() -> None:
    body = payload_for(make_customer(), "1")
    with after_first_query(lambda: post(body, key="same")):
        assert post(body, key="same").json() == {"received": 0, "duplicates": 1}
    assert WebhookEvent.objects.count() == 1
