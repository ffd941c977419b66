"""What the tests share: rows, signed deliveries, task queues, and a recorder of signals."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.db import connection, connections, transaction
from django.db.models import Model
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import Client, override_settings
from django.utils import timezone

from kapso_connect import signals
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding.status import update_status
from kapso_connect.pages import questions
from kapso_connect.testing import Sandbox, webhook_headers

try:
    from django.tasks.backends.dummy import DummyBackend
except ImportError:  # Django 5.2
    from django_tasks.backends.dummy import DummyBackend

SECRET = "test-webhook-secret"
WEBHOOK = "/whatsapp/webhook/"
CREATED = "whatsapp.phone_number.created"
DELETED = "whatsapp.phone_number.deleted"

_numbers = itertools.count(100_000_000_000_001)


def new_number_id() -> str:
    return str(next(_numbers))


def make_user(name: str = "staff", *permissions: str, **fields: Any) -> Any:
    """A member of staff with these permissions, by codename; with "superuser", all of them."""
    model = get_user_model()
    if "superuser" in permissions:
        return model.objects.create_superuser(name, password="x")
    user = model.objects.create_user(name, **{"is_staff": True, **fields})
    found = Permission.objects.filter(codename__in=permissions)
    assert len(found) == len(permissions)
    user.user_permissions.set(found)
    return user


def new_customer(**fields: Any) -> Customer:
    """A customer that is not saved yet. The factories called ``make_…`` save theirs."""
    return Customer(**{"name": "Bäckerei Süß", "kapso_id": str(uuid.uuid4()), **fields})


def new_link(customer: Customer, **fields: Any) -> SetupLink:
    return SetupLink(
        **{
            "customer": customer,
            "kapso_id": str(uuid.uuid4()),
            "url": "https://setup.example/secret-token",
            "created_at": timezone.now(),
            **fields,
        }
    )


def new_connection(customer: Customer, **fields: Any) -> Connection:
    return Connection(
        **{
            "customer": customer,
            "phone_number_id": new_number_id(),
            "status": Connection.Status.CONNECTED,
            "connected_at": timezone.now(),
            **fields,
        }
    )


def make_customer(**fields: Any) -> Customer:
    customer = new_customer(**fields)
    customer.save(force_insert=True)
    return customer


def make_link(
    customer: Customer | None = None, *, is_latest: bool = True, **fields: Any
) -> SetupLink:
    link = new_link(customer or make_customer(), **fields)
    link.save(force_insert=True)
    if is_latest:
        link.customer.latest_setup_link = link
        link.customer.save(update_fields=["latest_setup_link"])
    store_statuses(link.customer)
    return link


def make_connection(customer: Customer | None = None, **fields: Any) -> Connection:
    connection = new_connection(customer or make_customer(), **fields)
    connection.save(force_insert=True)
    store_statuses(connection.customer, is_connected=connection.is_connected)
    return connection


def store_statuses(*customers: Customer, is_connected: bool = False) -> None:
    """Store the statuses of ``customers``, or of all, that follow from rows written by a test.

    With ``is_connected``, each of them has a connected number.
    """
    rows = Customer.objects.locked()
    if customers:
        rows = rows.filter(pk__in=[customer.pk for customer in customers])
    with transaction.atomic():
        stored = {row.pk: row for row in rows}
        update_status(*stored.values(), is_connected=is_connected)
    for customer in customers:
        row = stored[customer.pk]
        customer.status, customer.status_changed_at = row.status, row.status_changed_at


def allow_questions() -> None:
    """End the pauses in which the success page does not ask Kapso again."""
    SetupLink.objects.update(next_question_at=None)
    cache.delete(questions.SLOW_KEY)


def remote_customer(sandbox: Sandbox, name: str = "Bäckerei Süß") -> Customer:
    """Create a customer that the site and the sandbox both know."""
    external_id = str(uuid.uuid4())
    sandbox.add_number(external_customer_id=external_id)  # creates the customer, too
    kapso_id = next(
        row["id"]
        for row in sandbox.state()["customers"]
        if row["external_customer_id"] == external_id
    )
    return make_customer(name=name, kapso_id=kapso_id, external_customer_id=external_id)


class BrokenBackend(DummyBackend):
    """A task queue that is not available."""

    def enqueue(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("broker is down")


@contextmanager
def _task_backend(backend: type) -> Iterator[None]:
    path = f"{backend.__module__}.{backend.__qualname__}"
    with override_settings(TASKS={"default": {"BACKEND": path}}):
        yield


def queue_without_worker() -> AbstractContextManager[None]:
    """Enqueue tasks where no worker runs them."""
    return _task_backend(DummyBackend)


def broken_queue() -> AbstractContextManager[None]:
    """Let every attempt to enqueue a task fail."""
    return _task_backend(BrokenBackend)


@contextmanager
def after_first_query(action: Callable[[], object]) -> Iterator[None]:
    """Run ``action`` right after the first query, as another process would.

    It runs in another thread, which has a database connection of its own.
    """
    results = []

    def act() -> None:
        try:
            action()
        finally:
            connections.close_all()

    def execute(execute: Any, *args: Any) -> Any:
        result = execute(*args)
        if not results:
            results.append(result)
            with ThreadPoolExecutor(1) as executor:
                executor.submit(act).result()
        return result

    with connection.execute_wrapper(execute):
        yield
    assert results, "no query was made"


@contextmanager
def failing_queries(
    error: type[Exception] | Exception, verb: str, model: type[Model], column: str = ""
) -> Iterator[None]:
    """Raise ``error`` for each query that is an INSERT, UPDATE, … (``verb``) of a table."""

    def execute(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith(verb) and model._meta.db_table in sql and column in sql:
            raise error
        return execute(sql, *args)

    with connection.execute_wrapper(execute):
        yield


READ_ONLY = {
    "sqlite": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
    "postgresql": (
        "SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off",
    ),
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION TRANSACTION READ WRITE"),
}


@contextmanager
def read_only_database() -> Iterator[None]:
    """Let the database refuse all writes of this thread's connection, as a standby does."""
    refuse, accept = READ_ONLY[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(refuse)
        try:
            yield
        finally:
            cursor.execute(accept)


def payload_for(customer: Customer, phone_number_id: str, **more: Any) -> dict[str, Any]:
    return {
        "phone_number_id": phone_number_id,
        "project": {"id": str(uuid.uuid4())},
        "customer": {"id": customer.kapso_id, "external_id": customer.external_customer_id},
        **more,
    }


def post(
    payload: Any,
    *,
    event: str = CREATED,
    key: str | None = None,
    secret: str = SECRET,
    client: Client | None = None,
    **headers: str,
) -> HttpResponse:
    """Deliver ``payload`` as Kapso would, signed. Bytes are sent unchanged."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = webhook_headers(body, secret, event=event, idempotency_key=key)
    return (client or Client()).post(
        WEBHOOK, body, content_type="application/json", headers={**signed, **headers}
    )


ALL_SIGNALS = {name: signal for name, signal in vars(signals).items() if isinstance(signal, Signal)}


class SentSignals(list[tuple[str, dict[str, Any]]]):
    """The signals that were sent, in order: their names and arguments."""

    def names(self) -> list[str]:
        return [name for name, _ in self]

    def only(self, name: str) -> dict[str, Any]:
        """Return the arguments of the only signal with this name."""
        (arguments,) = [arguments for sent, arguments in self if sent == name]
        return arguments


@contextmanager
def listening(*names: str) -> Iterator[SentSignals]:
    """Record the signals with these names; without names, all but webhook_received."""
    sent = SentSignals()
    chosen = names or [name for name in ALL_SIGNALS if name != "webhook_received"]
    receivers = {}
    for name in chosen:

        def receiver(sent_name: str = name, **arguments: Any) -> None:
            sent.append((sent_name, arguments))

        receivers[name] = receiver
        ALL_SIGNALS[name].connect(receiver)
    try:
        yield sent
    finally:
        for name, receiver in receivers.items():
            ALL_SIGNALS[name].disconnect(receiver)
