from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    OperationalError,
    connection,
    transaction,
)
from django.test import TestCase

from kapso_connect import db
from kapso_connect.db import refuse_in_transaction, retry_on_conflict
from kapso_connect.exceptions import CalledInTransaction
from kapso_connect.models import Customer

from .clock import FakeMonotonicTime
from .factories import read_only_database

pytestmark = pytest.mark.django_db(transaction=True)


DEADLOCK = OperationalError(1213, "Deadlock found when trying to get lock")  # as MySQL says it


class Conflicting:
    """An operation that raises ``error`` a number of times before it succeeds."""

    def __init__(self, conflicts: int, error: Exception = DEADLOCK) -> None:
        self.conflicts, self.error, self.runs = conflicts, error, 0

    def __call__(self) -> str:
        self.runs += 1
        assert connection.in_atomic_block
        if self.runs <= self.conflicts:
            raise self.error
        return "done"


@pytest.mark.parametrize("error", [DEADLOCK, IntegrityError("unique")])
def test_an_operation_is_repeated_after_a_conflict(error: Exception) -> None:
    operation = Conflicting(2, error)
    assert retry_on_conflict(operation) == "done"
    assert operation.runs == 3


def test_an_operation_is_not_repeated_after_another_error() -> None:
    operation = Conflicting(1, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        retry_on_conflict(operation)
    assert operation.runs == 1


def test_conflicts_are_retried_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeMonotonicTime(monkeypatch)
    operation = Conflicting(1000)
    with pytest.raises(OperationalError):
        retry_on_conflict(operation)
    longest_pause = 0.75
    assert db.CONFLICT_RETRY_SECONDS < time.seconds < db.CONFLICT_RETRY_SECONDS + longest_pause
    # Pauses of 0.01, 0.02, … and then 0.5 seconds, each of which may be half as long or half as
    # long again.
    assert 10 < operation.runs < 25


def test_what_stays_refused_is_repeated_a_few_times() -> None:
    operation = Conflicting(1000, IntegrityError("NOT NULL"))
    with pytest.raises(IntegrityError):
        retry_on_conflict(operation)
    assert operation.runs == 1 + db.MAX_INTEGRITY_RETRIES


MEND_NOTHING = {
    "SQLite's disk is full": OperationalError("database or disk is full"),
    "SQLite is read-only": OperationalError("attempt to write a readonly database"),
    "table missing": OperationalError("no such table: kapso_connect_customer"),
    "column missing": OperationalError(1054, "Unknown column 'a' in 'field list'"),
    "MySQL is read-only": OperationalError(1290, "running with the --read-only option"),
    "MySQL's disk is full": OperationalError(1021, "Disk full"),
    "account": OperationalError(4151, "Access denied, this account is locked"),
    "too long": DataError("value too long for type character varying(64)"),
    "refused": OperationalError("connection refused"),
}


@pytest.mark.parametrize("error", MEND_NOTHING.values(), ids=MEND_NOTHING)
def test_what_repeating_cannot_mend_is_raised_at_once(error: Exception) -> None:
    operation = Conflicting(1000, error)
    with pytest.raises(type(error)):
        retry_on_conflict(operation)
    assert operation.runs == 1


@pytest.mark.parametrize(
    ("name", "repeated"),
    [
        ("SerializationFailure", True),
        ("DeadlockDetected", True),
        ("LockNotAvailable", True),
        ("QueryCanceled", False),
        ("DiskFull", False),
        ("AdminShutdown", False),
    ],
)
def test_errors_of_postgresql_are_told_apart_by_their_code(name: str, repeated: bool) -> None:
    errors = pytest.importorskip("psycopg.errors", reason="psycopg is not installed")
    error = OperationalError("any text")
    error.__cause__ = getattr(errors, name)("any text")
    operation = Conflicting(1, error)
    with nullcontext() if repeated else pytest.raises(OperationalError):
        retry_on_conflict(operation)
    assert operation.runs == 1 + repeated


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others lock rows, not the database")
def test_locked_database_is_waited_for() -> None:
    name = connection.settings_dict["NAME"]
    other = sqlite3.connect(name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    attempts: list[int] = []

    def insert() -> None:
        attempts.append(len(attempts))
        if len(attempts) == 3:
            other.execute("ROLLBACK")
        Customer.objects.create(name="A")

    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 0")
        retry_on_conflict(insert)
        cursor.execute("PRAGMA busy_timeout = 5000")
    other.close()
    assert (len(attempts), Customer.objects.count()) == (3, 1)


CONNECTION_ENDS = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mysql": ("SELECT CONNECTION_ID()", "KILL {}"),
}


def end_connection() -> None:
    """End this thread's connection at the server, as an administrator or a failover does."""
    own_id, end = CONNECTION_ENDS[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(own_id)
        (number,) = cursor.fetchone()
    other = connection.copy()
    with closing(other), other.cursor() as cursor:
        cursor.execute(end.format(number))


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no server to lose")
@pytest.mark.parametrize("losses", [1, 2])
def test_lost_connection_is_replaced_once(losses: int) -> None:
    attempts: list[int] = []

    def insert() -> None:
        attempts.append(len(attempts))
        if len(attempts) <= losses:
            end_connection()
        Customer.objects.create(name="A")

    Customer.objects.exists()
    with nullcontext() if losses == 1 else pytest.raises(Error):
        retry_on_conflict(insert)
    assert len(attempts) == 2
    assert Customer.objects.count() == (1 if losses == 1 else 0)


def test_text_that_cannot_be_stored_is_replaced_once() -> None:
    operation = Conflicting(1, DataError(1366, "Incorrect string value"))

    def insert(name: str) -> Customer:
        operation()
        return Customer.objects.create(name=name, email="ä@example.com")

    customer = retry_on_conflict(partial(insert, "A 🥐"))
    Customer.objects.create(name="🥐")
    customer.refresh_from_db()
    assert (customer.name, customer.email) == ("A \ufffd", "ä@example.com")
    assert Customer.objects.filter(name="🥐").exists(), "only that operation is changed"
    operation = Conflicting(1000, operation.error)
    with pytest.raises(DataError):
        retry_on_conflict(operation)
    assert operation.runs == 2


def test_read_only_database_is_noticed() -> None:
    db.check_writable()
    with read_only_database(), pytest.raises(DatabaseError):
        db.check_writable()


def test_nothing_is_repeated_inside_a_transaction_of_the_caller() -> None:
    operation = Conflicting(1)
    with pytest.raises(OperationalError), transaction.atomic():
        retry_on_conflict(operation)
    assert operation.runs == 1


def test_a_transaction_of_the_caller_is_refused() -> None:
    refuse_in_transaction()
    for context in (transaction.atomic(), transaction.atomic(durable=True)):
        with context, pytest.raises(CalledInTransaction, match="non_atomic_requests"):
            refuse_in_transaction()
    with transaction.atomic(), transaction.atomic(), pytest.raises(CalledInTransaction):
        refuse_in_transaction()
    refuse_in_transaction()


def test_after_the_commit_there_is_no_transaction() -> None:
    outcomes: list[str] = []

    def after_commit() -> None:
        refuse_in_transaction()
        outcomes.append("allowed")

    with transaction.atomic():
        transaction.on_commit(after_commit)
    assert outcomes == ["allowed"]


def test_without_autocommit_everything_is_a_transaction() -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(CalledInTransaction):
            refuse_in_transaction()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


class TransactionOfATestCase(TestCase):
    def test_it_does_not_count_and_costs_no_statement(self) -> None:
        with self.assertNumQueries(0):
            refuse_in_transaction()
        with transaction.atomic(), pytest.raises(CalledInTransaction):
            refuse_in_transaction()


def test_two_threads_that_insert_the_same_row_both_succeed() -> None:
    both_read = threading.Barrier(2)
    attempts: list[str] = []

    def get_or_insert() -> int:
        customer = Customer.objects.filter(external_customer_id="same").first()
        attempts.append("found" if customer else "missing")
        if len(attempts) <= 2:
            both_read.wait(timeout=10)
        if customer is None:
            customer = Customer.objects.create(name="A", external_customer_id="same")
        return customer.pk

    def work() -> None:
        try:
            keys.append(retry_on_conflict(get_or_insert))
        finally:
            connection.close()

    keys: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys == [Customer.objects.get().pk] * 2
    assert attempts[:2] == ["missing", "missing"]
    assert attempts[-1] == "found"


def test_non_atomic_views_are_exempt_on_every_database() -> None:
    def view(*args: Any) -> None:
        pass

    assert db.non_atomic(view)._non_atomic_requests == {"default"}
