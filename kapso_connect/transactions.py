"""Transactions that survive a race: one place that knows how databases say "try again"."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import IntegrityError, OperationalError, connections, router, transaction

from .models import Connection

T = TypeVar("T")
V = TypeVar("V", bound=Callable[..., Any])

PATIENCE = 4.0
"""Seconds after which a race is not tried again. Kapso waits 10 for its answer."""


def alias() -> str:
    """Return the database that holds this package's tables."""
    return router.db_for_write(Connection)


def atomic() -> transaction.Atomic:
    return transaction.atomic(using=alias())


def on_commit(do: Callable[[], Any]) -> None:
    transaction.on_commit(do, using=alias())


def outside_transactions(view: V) -> V:
    """Mark a view as exempt from ATOMIC_REQUESTS on every database: it talks to Kapso's API, or
    commits before it answers."""
    for database in connections:
        view = transaction.non_atomic_requests(using=database)(view)
    return view


def retrying(do: Callable[[], T]) -> T:
    """Run ``do`` in a transaction and return what it returns; run it again when it lost a race.

    Two processes may insert the same row (IntegrityError), lock each other out (deadlock) or find
    SQLite locked (OperationalError). All of these vanish when the whole transaction runs again,
    because it then finds the other's row. ``do`` must therefore be safe to repeat. Inside a
    transaction of the caller's nothing is repeated: that is the caller's to do.
    Raises the last error after ``PATIENCE`` seconds.
    """
    database = connections[alias()]
    started = time.monotonic()
    pause = 0.01
    while True:
        try:
            with atomic():
                return do()
        except (IntegrityError, OperationalError):
            if database.in_atomic_block or time.monotonic() - started > PATIENCE:
                raise
            database.close_if_unusable_or_obsolete()
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  (spreads the racers)
        pause = min(pause * 2, 0.5)
