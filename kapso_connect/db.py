"""Transactions that survive a race, and tasks that wait for the commit."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import IntegrityError, OperationalError, connections, router, transaction

from .log import log_event
from .models import Connection

if TYPE_CHECKING:
    from django_tasks import task
else:
    try:
        from django.tasks import task
    except ImportError:  # Django 5.2
        from django_tasks import task

__all__ = [
    "alias",
    "atomic",
    "enqueue_on_commit",
    "non_atomic",
    "on_commit",
    "retry_on_conflict",
    "runs_here",
    "sqlite_write_lock",
    "task",
]

T = TypeVar("T")
V = TypeVar("V", bound=Callable[..., Any])

PATIENCE = 4.0
"""Seconds after which a race is not tried again. Kapso waits 10 for its answer."""


def alias() -> str:
    """Return the database that holds this package's tables."""
    return router.db_for_write(Connection)


class _WriteLock:
    """Lets the threads of this process write to SQLite one after the other.

    SQLite has one writer at a time, and those who wait look again after naps of up to 0.1 s: fifty
    threads starve one another until some give up with "database is locked".
    """

    def __init__(self) -> None:
        self._reset()
        # A process forked while a thread had the turn would wait for it in vain.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()

    def take(self) -> Callable[[], None]:
        """Wait for the turn, not for ever; return what gives it back, once."""
        lock = self._lock
        taken = [lock] if lock.acquire(timeout=PATIENCE) else []

        def give_back() -> None:
            while taken:
                taken.pop().release()

        return give_back


_write_lock = _WriteLock()


@contextmanager
def sqlite_write_lock() -> Iterator[Callable[[], None]]:
    """Hold the turn to write, on SQLite and outside a transaction; elsewhere do nothing.

    Yields what gives the turn back before the end.
    """
    database = connections[alias()]
    needed = database.vendor == "sqlite" and not database.in_atomic_block
    give_back = _write_lock.take() if needed else lambda: None
    try:
        yield give_back
    finally:
        give_back()


@contextmanager
def atomic() -> Iterator[None]:
    """A transaction, or a savepoint inside one, on the database of this package's tables."""
    with sqlite_write_lock() as give_back, transaction.atomic(using=alias()):
        # Receivers run after the commit, may take long, and may write, too.
        on_commit(give_back)
        yield


def on_commit(do: Callable[[], Any]) -> None:
    transaction.on_commit(do, using=alias())


def non_atomic(view: V) -> V:
    """Mark a view as exempt from ATOMIC_REQUESTS on every database: it talks to Kapso's API, or
    commits before it answers."""
    for database in connections:
        view = transaction.non_atomic_requests(using=database)(view)
    return view


_is_part: ContextVar[bool] = ContextVar("kapso_connect_is_part", default=False)
"""True while ``retrying`` does what it was given: what that calls is part of the transaction."""


def retry_on_conflict(
    do: Callable[[], T], *, within: Callable[[], AbstractContextManager[object]] = atomic
) -> T:
    """Run ``do`` in a transaction and return what it returns; run it again when it lost a race.

    Two processes may insert the same row (IntegrityError), lock each other out (deadlock) or find
    SQLite locked (OperationalError). All of these vanish when the whole transaction runs again,
    because it then finds the other's row. ``do`` must therefore be safe to repeat. Inside a
    transaction of the caller's nothing is repeated: that is the caller's to do. Inside of another
    ``do`` there is not even a savepoint: an error takes all of it back.
    A single statement needs no transaction: ``within=turn``. Raises the last error after
    ``PATIENCE`` seconds.
    """
    if _is_part.get():
        return do()
    database = connections[alias()]
    started = time.monotonic()
    pause = 0.01
    while True:
        try:
            with within():
                # Reset before the commit: what runs after it is none of this.
                part = _is_part.set(True)
                try:
                    return do()
                finally:
                    _is_part.reset(part)
        except (IntegrityError, OperationalError):
            if database.in_atomic_block or time.monotonic() - started > PATIENCE:
                raise
            database.close_if_unusable_or_obsolete()
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  (spreads the racers)  # nosec B311
        pause = min(pause * 2, 0.5)


def runs_here(what: Any) -> bool:
    """True where the site's TASKS backend runs ``what`` in the process that enqueues it."""
    return type(what.get_backend()).__name__ == "ImmediateBackend"


def enqueue_on_commit(what: Any, row_id: int, *, here: Callable[[], object] | None = None) -> None:
    """Enqueue ``what`` for a row once the row is committed.

    ``here`` does the same with the row that is at hand, in place of a task that runs in this
    process. A queue that is away costs nobody their answer: the row stays due and ``kapso_sync``
    takes it.
    """

    def enqueue() -> None:
        try:
            if here is not None:
                here()
            else:
                what.enqueue(row_id)
        except Exception as error:
            name = type(error).__name__
            log_event("task.not_enqueued", task=what.name, row_id=row_id, error=name, exc_info=True)

    on_commit(enqueue)
