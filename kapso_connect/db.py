"""Transactions that are repeated after a conflict, and tasks that are enqueued after the commit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import IntegrityError, OperationalError, connections, models, router, transaction
from django.db.models.signals import post_save, pre_save

from .exceptions import CalledInTransaction
from .log import log_event
from .models import Connection
from .utils import as_stored

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
    "bulk_insert",
    "enqueue_later_on_commit",
    "enqueue_on_commit",
    "non_atomic",
    "on_commit",
    "refuse_in_transaction",
    "retry_on_conflict",
    "runs_immediately",
    "task",
]

ResultT = TypeVar("ResultT")
ModelT = TypeVar("ModelT", bound=models.Model)
ViewT = TypeVar("ViewT", bound=Callable[..., Any])

CONFLICT_RETRY_SECONDS = 4.0
"""Seconds after which a conflict is not retried any more. Kapso waits 10 for the response."""


DEFER_MARGIN = timedelta(seconds=1)
"""How long after a row is due its task runs: the worker's clock may be behind."""


def alias() -> str:
    """Return the alias of the database that holds this package's tables."""
    return router.db_for_write(Connection)


def atomic() -> transaction.Atomic:
    """Return a transaction, or a savepoint inside one, on the database of this package's tables."""
    return transaction.atomic(using=alias())


def on_commit(callback: Callable[[], Any]) -> None:
    """Call ``callback`` after the commit on the database of this package's tables."""
    transaction.on_commit(callback, using=alias())


def non_atomic(view: ViewT) -> ViewT:
    """Exempt a view from ATOMIC_REQUESTS on every database.

    For views that call Kapso's API, or that commit before they answer.
    """
    for database in connections:
        view = transaction.non_atomic_requests(using=database)(view)
    return view


def refuse_in_transaction() -> None:
    """Raise CalledInTransaction if the caller has a transaction open. For functions that ask Kapso.

    The transactions in which Django's TestCase runs a test do not count.
    """
    database = connections[alias()]
    try:
        if database.in_atomic_block:
            # Makes no statement; raises unless the transaction is that of a TestCase.
            with transaction.atomic(using=alias(), savepoint=False, durable=True):
                return
        elif database.get_autocommit():
            return
    except RuntimeError:
        pass
    raise CalledInTransaction(
        "This function asks Kapso, and was called inside a transaction. It was refused before "
        "anything was asked: a rollback here would take nothing back at Kapso. Call it before or "
        "after the transaction (django.db.transaction.on_commit). In a view with ATOMIC_REQUESTS, "
        "use the decorator django.db.transaction.non_atomic_requests."
    )


def retry_on_conflict(operation: Callable[[], ResultT], *, in_transaction: bool = True) -> ResultT:
    """Run ``operation`` in a transaction and return its result; repeat it after a conflict.

    Two processes may insert the same row (IntegrityError), lock each other out (deadlock) or find
    SQLite locked (OperationalError). The whole transaction is then run again, and finds the other
    process's row. ``operation`` must therefore be safe to repeat.

    Inside a transaction of the caller nothing is repeated: that is up to the caller. Inside another
    ``operation`` there is not even a savepoint: an error rolls back all of it.
    An ``operation`` of a single statement needs no transaction.
    Raise the last error after ``CONFLICT_RETRY_SECONDS``.
    """
    if _in_operation.get():
        return operation()
    database = connections[alias()]
    started = time.monotonic()
    pause = 0.01
    while True:
        try:
            with atomic() if in_transaction else nullcontext():
                # Reset before the commit: on_commit callbacks are not part of the operation.
                token = _in_operation.set(True)
                try:
                    return operation()
                finally:
                    _in_operation.reset(token)
        except (IntegrityError, OperationalError):
            elapsed = time.monotonic() - started
            if database.in_atomic_block or elapsed > CONFLICT_RETRY_SECONDS:
                raise
            database.close_if_unusable_or_obsolete()
        # The jitter keeps two processes from colliding again.
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311
        pause = min(pause * 2, 0.5)


_in_operation: ContextVar[bool] = ContextVar("kapso_connect_in_operation", default=False)
"""True while ``retry_on_conflict`` runs an operation: nested ones are part of its transaction."""


def bulk_insert(rows: Sequence[ModelT]) -> None:
    """Insert ``rows`` of one model with as few statements as possible, and set their keys.

    Where the database returns no keys (MySQL), or the site has receivers of ``pre_save`` or
    ``post_save``, they are saved one by one.
    """
    if not rows:
        return
    model = type(rows[0])
    returns_keys = connections[alias()].features.can_return_rows_from_bulk_insert
    has_receivers = pre_save.has_listeners(model) or post_save.has_listeners(model)
    if len(rows) > 1 and returns_keys and not has_receivers:
        model._default_manager.bulk_create(rows)
    else:
        for row in rows:
            row.save(force_insert=True)


def enqueue_on_commit(
    task: Any, row_id: int, *, run_immediately: Callable[[], object] | None = None
) -> None:
    """Enqueue ``task`` for a row once the row is committed.

    ``run_immediately`` does the task's work on the object in memory, and is called instead of
    enqueuing. A failure of the queue is logged, never raised: the row stays due, and
    ``kapso_sync`` works on it.
    """
    _on_commit(run_immediately or partial(task.enqueue, row_id), task, row_id)


def enqueue_later_on_commit(task: Any, row_id: int, due_at: datetime | None) -> None:
    """Enqueue ``task`` for a row once the row is committed, to be run when the row is due.

    Do nothing without ``due_at``, or if the site's TASKS backend cannot defer tasks:
    ``kapso_sync`` works on the row then, as after a failure of the queue.
    """

    def enqueue() -> None:
        if due_at is not None and task.get_backend().supports_defer:
            task.using(run_after=as_stored(due_at + DEFER_MARGIN)).enqueue(row_id)

    _on_commit(enqueue, task, row_id)


def _on_commit(enqueue: Callable[[], object], task: Any, row_id: int) -> None:
    def callback() -> None:
        try:
            enqueue()
        except Exception as error:
            name = type(error).__name__
            log_event("task.not_enqueued", task=task.name, row_id=row_id, error=name, exc_info=True)

    on_commit(callback)


def runs_immediately(task: Any) -> bool:
    """Return True if the site's TASKS backend runs ``task`` in the process that enqueues it."""
    return type(task.get_backend()).__name__ == "ImmediateBackend"
