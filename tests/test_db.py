from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import TestCase

from kapso_connect import db
from kapso_connect.db import refuse_in_transaction, retry_on_conflict
from kapso_connect.exceptions import CalledInTransaction
from kapso_connect.models import Customer

pytestmark = pytest.mark.django_db(transaction=True)


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
