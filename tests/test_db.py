from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from kapso_connect import db
from kapso_connect.db import atomic, on_commit, retry_on_conflict, sqlite_write_lock

pytestmark = pytest.mark.django_db(transaction=True)

sqlite_only = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="Only SQLite needs its writers to take turns."
)


class Races:
    """Work that loses some races before it is through."""

    def __init__(self, losses: int, error: type[Exception] = OperationalError) -> None:
        self.losses, self.error, self.runs = losses, error, 0

    def __call__(self) -> str:
        self.runs += 1
        assert connection.in_atomic_block
        if self.runs <= self.losses:
            raise self.error("lost")
        return "won"


@pytest.mark.parametrize("error", [OperationalError, IntegrityError])
def test_a_lost_race_is_run_again(error: type[Exception]) -> None:
    work = Races(2, error)
    assert retry_on_conflict(work) == "won"
    assert work.runs == 3


def test_any_other_error_is_not() -> None:
    work = Races(1, ValueError)
    with pytest.raises(ValueError, match="lost"):
        retry_on_conflict(work)
    assert work.runs == 1


def test_patience_ends(monkeypatch) -> None:
    monkeypatch.setattr(db, "CONFLICT_RETRY_SECONDS", 0.05)
    work = Races(1000)
    with pytest.raises(OperationalError):
        retry_on_conflict(work)
    assert 1 < work.runs < 10


def test_inside_the_callers_transaction_nothing_is_repeated() -> None:
    work = Races(1)
    with pytest.raises(OperationalError), transaction.atomic():
        retry_on_conflict(work)
    assert work.runs == 1


def is_free() -> bool:
    """True where another thread could have the turn at once."""
    free: list[bool] = []

    def look() -> None:
        lock = db._write_lock._lock
        free.append(lock.acquire(blocking=False))
        if free[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return free[0]


@sqlite_only
def test_the_turn_is_held_to_the_commit_and_no_longer() -> None:
    seen: dict[str, bool] = {}
    with atomic():
        seen["inside"] = is_free()
        on_commit(lambda: seen.setdefault("receivers", is_free()))
    assert seen == {"inside": False, "receivers": True}
    assert is_free()


@sqlite_only
def test_the_turn_is_given_back_by_what_fails() -> None:
    def fail() -> None:
        assert not is_free()
        raise ValueError("no")

    for within in (atomic, sqlite_write_lock):
        with pytest.raises(ValueError, match="no"):
            retry_on_conflict(fail, within=within)
        assert is_free()


@sqlite_only
def test_inside_a_transaction_no_turn_is_taken() -> None:
    # Whoever holds it may wait for the lock that the transaction has.
    with transaction.atomic(), atomic(), sqlite_write_lock():
        assert is_free()


@sqlite_only
def test_who_waits_too_long_goes_on_without(monkeypatch) -> None:
    monkeypatch.setattr(db, "CONFLICT_RETRY_SECONDS", 0.05)
    with sqlite_write_lock():
        started = time.monotonic()
        with sqlite_write_lock():
            assert 0.04 < time.monotonic() - started < 2
        assert not is_free()  # the first one's


@sqlite_only
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    with sqlite_write_lock():
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            os._exit(0 if db._write_lock._lock.acquire(blocking=False) else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_elsewhere_nobody_takes_turns(monkeypatch) -> None:
    monkeypatch.setattr(connection, "vendor", "postgresql")
    with sqlite_write_lock():
        assert is_free()


def test_views_are_kept_out_of_atomic_requests_on_every_database() -> None:
    def view(*args: Any) -> None:
        pass

    assert db.non_atomic(view)._non_atomic_requests == {"default"}
