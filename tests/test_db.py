from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from kapso_connect import db
from kapso_connect.db import atomic, on_commit, retry_on_conflict, sqlite_write_lock
from kapso_connect.models import Customer

pytestmark = pytest.mark.django_db(transaction=True)

sqlite_only = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="Only writers to SQLite need a lock."
)


class Conflicting:
    """An operation that raises ``error`` a number of times before it succeeds."""

    def __init__(self, conflicts: int, error: type[Exception] = OperationalError) -> None:
        self.conflicts, self.error, self.runs = conflicts, error, 0

    def __call__(self) -> str:
        self.runs += 1
        assert connection.in_atomic_block
        if self.runs <= self.conflicts:
            raise self.error("conflict")
        return "done"


@pytest.mark.parametrize("error", [OperationalError, IntegrityError])
def test_an_operation_is_repeated_after_a_conflict(error: type[Exception]) -> None:
    operation = Conflicting(2, error)
    assert retry_on_conflict(operation) == "done"
    assert operation.runs == 3


def test_an_operation_is_not_repeated_after_another_error() -> None:
    operation = Conflicting(1, ValueError)
    with pytest.raises(ValueError, match="conflict"):
        retry_on_conflict(operation)
    assert operation.runs == 1


def test_conflicts_are_retried_for_a_limited_time(monkeypatch) -> None:
    monkeypatch.setattr(db, "CONFLICT_RETRY_SECONDS", 0.05)
    operation = Conflicting(1000)
    with pytest.raises(OperationalError):
        retry_on_conflict(operation)
    assert 1 < operation.runs < 10


def test_nothing_is_repeated_inside_a_transaction_of_the_caller() -> None:
    operation = Conflicting(1)
    with pytest.raises(OperationalError), transaction.atomic():
        retry_on_conflict(operation)
    assert operation.runs == 1


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
            keys.append(retry_on_conflict(get_or_insert, within=transaction.atomic))
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


def wait_for_lock() -> float:
    """Return the seconds after which another thread enters ``sqlite_write_lock``."""
    waits: list[float] = []

    def enter() -> None:
        started = time.monotonic()
        with sqlite_write_lock():
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return waits[0]


@pytest.fixture
def timeout(monkeypatch) -> float:
    """The seconds that a thread waits for the lock."""
    monkeypatch.setattr(db, "CONFLICT_RETRY_SECONDS", 0.3)
    return 0.3


@sqlite_only
def test_other_threads_wait_for_the_commit_but_not_for_receivers(timeout: float) -> None:
    waits: list[float] = []
    with atomic():
        waits.append(wait_for_lock())
        on_commit(lambda: waits.append(wait_for_lock()))
    waits.append(wait_for_lock())
    assert [wait < timeout for wait in waits] == [False, True, True]


@sqlite_only
@pytest.mark.parametrize("within", [atomic, sqlite_write_lock])
def test_an_error_releases_the_lock(timeout: float, within: Any) -> None:
    def fail() -> None:
        assert wait_for_lock() >= timeout
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        retry_on_conflict(fail, within=within)
    assert wait_for_lock() < timeout


@sqlite_only
def test_inside_a_transaction_the_lock_is_not_acquired(timeout: float) -> None:
    # Its owner may wait for the database lock that the transaction holds.
    with transaction.atomic(), atomic(), sqlite_write_lock():
        assert wait_for_lock() < timeout


@sqlite_only
def test_a_thread_does_not_wait_forever(timeout: float) -> None:
    with sqlite_write_lock():
        assert timeout <= wait_for_lock() < 2
        # It did not release the lock, which is not its own.
        assert wait_for_lock() >= timeout


@sqlite_only
def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent(timeout: float) -> None:
    with sqlite_write_lock():
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            os._exit(0 if wait_for_lock() < timeout else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_other_databases_need_no_lock(timeout: float, monkeypatch) -> None:
    monkeypatch.setattr(connection, "vendor", "postgresql")
    with sqlite_write_lock():
        assert wait_for_lock() < timeout


def test_non_atomic_views_are_exempt_on_every_database() -> None:
    def view(*args: Any) -> None:
        pass

    assert db.non_atomic(view)._non_atomic_requests == {"default"}
