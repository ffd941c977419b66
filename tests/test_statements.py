from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from kapso_connect.statements import Lookup, Slot, Update, _insertion, insert
from kapso_connect.webhooks import inbox

from .factories import CREATED, DELETED, make_customer, make_link, payload_for, post

pytestmark = pytest.mark.django_db(transaction=True)


def a_delivery() -> WebhookEvent:
    return WebhookEvent(
        idempotency_key=str(uuid.uuid4()),
        event="x.y",
        payload={"ä": ["\U0001f600", None, 1.5, {"when": timezone.now()}]},
        status=WebhookEvent.Status.IGNORED,
        last_error="'; --",
    )


def a_connection() -> Connection:
    return Connection(
        phone_number_id=uuid.uuid4().hex,
        customer=make_customer(),
        status=Connection.Status.CONNECTED,
        connected_at=timezone.now(),
        restrictions=[{"type": "x"}],
    )


def an_event() -> TimelineEvent:
    return TimelineEvent(kind=TimelineEvent.Kind.CONNECTED, customer=make_customer(), data={})


ROWS = [a_delivery, a_connection, an_event]


def told(row: models.Model) -> dict[str, Any]:
    """What the database has of a row, but for its key and the times that fields make up."""
    kept = type(row)._default_manager.get(pk=row.pk)
    return {
        field.attname: getattr(kept, field.attname)
        for field in kept._meta.concrete_fields
        if field.name not in {"id", "created_at", "updated_at"}
    }


@pytest.mark.parametrize("make", ROWS)
def test_an_inserted_row_is_a_saved_one(make: Callable[[], models.Model]) -> None:
    inserted = make()
    saved = copy(inserted)
    saved._state = ModelState()
    insert(inserted)
    assert not inserted._state.adding
    assert inserted._state.db == "default"
    kept = told(inserted)
    inserted.delete()
    saved.save(force_insert=True)
    assert kept == told(saved)


def test_a_database_that_returns_no_columns_tells_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    # As MySQL, of which MariaDB and SQLite have this way, too.
    if database.vendor == "postgresql":
        pytest.skip("PostgreSQL has no other way than to return it.")
    monkeypatch.setattr(database.features, "can_return_columns_from_insert", False)
    _insertion.cache_clear()
    try:
        first, second = a_delivery(), a_delivery()
        insert(first)
        insert(second)
    finally:
        _insertion.cache_clear()
    assert WebhookEvent.objects.get(pk=second.pk).idempotency_key == second.idempotency_key
    assert first.pk < second.pk


def test_times_that_fields_make_up_are_made_up() -> None:
    connection = a_connection()
    before = timezone.now()
    insert(connection)
    assert before <= connection.created_at <= connection.updated_at <= timezone.now()


def test_an_inserted_row_is_changed_like_any_other() -> None:
    connection = a_connection()
    insert(connection)
    connection.verified_name = "Ada's Bakery"
    with CaptureQueriesContext(database) as captured:
        connection.save()
    assert [query["sql"].split()[0] for query in captured] == ["UPDATE"]
    assert Connection.objects.get().verified_name == "Ada's Bakery"


def test_a_row_that_is_there_is_refused() -> None:
    row = a_delivery()
    insert(row)
    twin = a_delivery()
    twin.idempotency_key = row.idempotency_key
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(twin)
    assert WebhookEvent.objects.count() == 1


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_a_site_that_listens_to_models_hears_of_every_row(signal: Any) -> None:
    heard = []

    def listen(sender: Any, instance: models.Model, **kwargs: Any) -> None:
        heard.append(sender)

    signal.connect(listen)
    try:
        post(payload_for(make_customer(), "1"))
    finally:
        signal.disconnect(listen)
    assert [row for row in heard if row is not Customer] == [
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
    row = a_delivery()
    insert(row)
    assert lookup.first(key=row.idempotency_key) == (row.pk,)
    assert lookup.first(key="'; DROP TABLE x; --") is None
    assert lookup.first(key="%s") is None
    assert len(built) == 1


def test_an_update_says_how_many_rows_there_were() -> None:
    def build(pk: Slot, payload: Slot) -> Any:
        return WebhookEvent.objects.filter(pk=pk).order_by(), {"payload": payload, "attempts": 7}

    update = Update(build, pk=models.BigAutoField(), payload=models.JSONField())
    row, other = a_delivery(), a_delivery()
    insert(row)
    insert(other)
    assert update.execute(pk=row.pk, payload={"new": "100 %s"}) == 1
    assert update.execute(pk=row.pk + 1000, payload={}) == 0
    row.refresh_from_db()
    other.refresh_from_db()
    assert (row.payload, row.attempts) == ({"new": "100 %s"}, 7)
    assert other.attempts == 0


# What a webhook costs; docs/benchmarks.md says what each statement is for.


@contextmanager
def statements(expected: str) -> Iterator[None]:
    with CaptureQueriesContext(database) as captured:
        yield
    done = " ".join(query["sql"].split()[0] for query in captured)
    assert done == expected, [query["sql"] for query in captured]


@pytest.mark.parametrize("others", [0, 50])
def test_a_new_number_costs_six_statements(others: int) -> None:
    for _ in range(others):
        make_customer()
    customer = make_customer()
    body = payload_for(customer, "1")
    with statements("SELECT BEGIN INSERT INSERT INSERT COMMIT"):
        assert post(body).status_code == 200
    assert Connection.objects.get().customer == customer


def test_the_link_that_led_to_it_costs_one_more() -> None:
    link = make_link()
    body = payload_for(link.customer, "1")
    with statements("SELECT BEGIN INSERT UPDATE INSERT INSERT COMMIT"):
        post(body)
    link.refresh_from_db()
    assert link.setup_status == "completed"
    assert Connection.objects.get().setup_link == link


@pytest.mark.parametrize("invited", [True, False])
def test_receivers_have_all_rows_for_one_look_and_one_word(invited: bool) -> None:
    link = make_link(next_url="/welcome/") if invited else None
    customer = link.customer if link else make_customer()
    body = payload_for(customer, "1")
    seen: list[Any] = []

    def look(connection: Connection, customer: Customer, setup_link: Any, **kwargs: Any) -> None:
        with CaptureQueriesContext(database) as captured:
            seen.extend((connection.customer.name, customer.email, setup_link, connection))
            seen.append(connection.setup_link)
        assert not captured.captured_queries

    whatsapp_connected.connect(look)
    try:
        done = "INSERT UPDATE INSERT INSERT" if invited else "INSERT INSERT INSERT"
        with statements(f"SELECT BEGIN {done} COMMIT SELECT UPDATE"):
            post(body)
    finally:
        whatsapp_connected.disconnect(look)
    name, email, setup_link, connection, its_link = seen
    assert (name, email, setup_link) == (customer.name, customer.email, link)
    assert its_link == link
    if setup_link:
        # As it is now, and of the types that its fields have.
        link.refresh_from_db()
        assert {
            field.attname: getattr(setup_link, field.attname)
            for field in setup_link._meta.concrete_fields
        } == {field.attname: getattr(link, field.attname) for field in link._meta.concrete_fields}
    assert connection.customer == customer


def test_a_duplicate_costs_one() -> None:
    body = payload_for(make_customer(), "1")
    post(body, key="same")
    with statements("SELECT"):
        assert post(body, key="same").json() == {"received": 0, "duplicates": 1}
    with statements("SELECT"):
        assert post(body, event="x.y", key="same").json()["duplicates"] == 1


def test_an_event_that_means_nothing_here_costs_four() -> None:
    with statements("SELECT BEGIN INSERT COMMIT"):
        post({}, event="x.y")


def test_a_number_that_is_known_is_looked_at_with_its_row_locked() -> None:
    customer = make_customer()
    post(payload_for(customer, "1"))
    with CaptureQueriesContext(database) as captured:
        post(payload_for(customer, "1"))
    assert not [q for q in captured if "SAVEPOINT" in q["sql"]]
    assert Connection.objects.count() == TimelineEvent.objects.count() == 1


def test_a_number_that_goes_costs_no_savepoint() -> None:
    customer = make_customer()
    post(payload_for(customer, "1"))
    with CaptureQueriesContext(database) as captured:
        post(payload_for(customer, "1"), event=DELETED)
    assert not Connection.objects.get().is_connected
    assert not [q for q in captured if "SAVEPOINT" in q["sql"]]


# What was seen before the transaction may be over in it.


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen between the look and the transaction."""
    from kapso_connect.webhooks import handlers

    def let(happen: Callable[[], object]) -> None:
        real = inbox.look

        def look(message: Any) -> Any:
            seen = real(message)
            monkeypatch.setattr(handlers, "look", real)
            happen()
            return seen

        monkeypatch.setattr(handlers, "look", look)

    return let


def test_a_number_that_another_channel_connects_meanwhile_is_connected_once(meanwhile: Any) -> None:
    customer = make_customer()
    body = payload_for(customer, "1")
    meanwhile(lambda: post(body, key="other"))
    assert post(body, key="this").json() == {"received": 1, "duplicates": 0}
    assert WebhookEvent.objects.filter(status="processed").count() == 2
    assert TimelineEvent.objects.get().kind == "connected"


def test_a_link_that_is_completed_meanwhile_is_not_completed_again(meanwhile: Any) -> None:
    link = make_link()
    meanwhile(lambda: post(payload_for(link.customer, "1")))
    post(payload_for(link.customer, "2"))
    connections = {c.phone_number_id: c.setup_link for c in Connection.objects.all()}
    assert connections == {"1": link, "2": None}


def test_a_customer_that_is_gone_meanwhile_is_made_anew(meanwhile: Any) -> None:
    customer = make_customer()
    body = payload_for(customer, "1")
    meanwhile(lambda: Customer.objects.all().delete())
    assert post(body, event=CREATED).status_code == 200
    assert Connection.objects.get().customer.kapso_id == customer.kapso_id


def test_the_same_delivery_that_is_stored_meanwhile_is_a_duplicate(meanwhile: Any) -> None:
    body = payload_for(make_customer(), "1")
    meanwhile(lambda: post(body, key="same"))
    assert post(body, key="same").json() == {"received": 0, "duplicates": 1}
    assert WebhookEvent.objects.count() == 1
