"""Transactions that are repeated after a conflict, and tasks that are enqueued after the commit."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import (
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    models,
    router,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
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
    "OUTAGE_ERRORS",
    "alias",
    "atomic",
    "bulk_insert",
    "check_writable",
    "enqueue_later_on_commit",
    "enqueue_on_commit",
    "is_conflict",
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

OUTAGE_ERRORS = (OperationalError, InterfaceError, InternalError)
"""What is raised while the database is away, accepts no writes, or has broken off the connection:
what failed so may succeed later. PostgreSQL raises an InternalError where writes are refused."""

CONFLICT_RETRY_SECONDS = 4.0
"""Seconds after which a conflict is not retried any more. Kapso waits 10 for the response."""

MAX_INTEGRITY_RETRIES = 5
"""A lost race is found by the next attempt. What is refused more often is wrong, not a race."""

CHARACTER_ERRORS = frozenset({1366, 3988})
"""MySQL: a text has a character that a column cannot store. With the character set utf8mb3 these
are emoji, and others beyond U+FFFF."""

POSTGRESQL_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available."""

MYSQL_CONFLICTS = frozenset({1020, 1205, 1213, 3572})
"""Record has changed since last read, lock wait timeout, deadlock, lock not available at once."""


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


def is_conflict(error: BaseException) -> bool:
    """Return True if the database refused something only because of what another process did at
    the same moment: it inserted the same row, or has rows locked. Repeating it then helps."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, OperationalError):
        return False
    driver_error = error.__cause__
    sqlstate = getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None)
    code = error.args[0] if error.args else None
    if sqlstate or isinstance(code, int):
        return sqlstate in POSTGRESQL_CONFLICTS or code in MYSQL_CONFLICTS
    # Before Python 3.11, errors of SQLite have no code.
    return "is locked" in str(error)


def retry_on_conflict(
    operation: Callable[[], ResultT],
    *,
    in_transaction: bool = True,
    seconds: float | None = None,
) -> ResultT:
    """Run ``operation`` in a transaction and return its result; repeat it after a conflict.

    Two processes may insert the same row (IntegrityError), lock each other out (deadlock) or find
    SQLite locked (OperationalError). The whole transaction is then run again, and finds the other
    process's row. ``operation`` must therefore be safe to repeat. If the connection was lost, it is
    run once more on a new one; if a text has characters that the tables cannot store, once more
    with U+FFFD in their place. Any other error would only happen again: it is raised at once.

    Inside a transaction of the caller nothing is repeated: that is up to the caller. Inside another
    ``operation`` there is not even a savepoint: an error rolls back all of it.
    An ``operation`` of a single statement needs no transaction.
    Raise the last error after ``seconds``, by default ``CONFLICT_RETRY_SECONDS``, or after
    ``MAX_INTEGRITY_RETRIES`` of an IntegrityError.
    """
    if _in_operation.get():
        return operation()
    database = connections[alias()]
    limit = CONFLICT_RETRY_SECONDS if seconds is None else seconds
    started = time.monotonic()
    pause = 0.01
    integrity_errors = 0
    was_lost = False
    replaces_characters = False
    while True:
        connection_before = database.connection
        try:
            with (
                atomic() if in_transaction else nullcontext(),
                # It ends before the commit: on_commit callbacks are not part of the operation.
                _operation(database, replaces_characters),
            ):
                return operation()
        except Error as error:
            if database.in_atomic_block:
                raise
            if is_conflict(error):
                integrity_errors += isinstance(error, IntegrityError)
                is_over = time.monotonic() - started > limit
                if is_over or integrity_errors > MAX_INTEGRITY_RETRIES:
                    raise
                # The jitter keeps two processes from colliding again.
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311
                pause = min(pause * 2, 0.5)
            elif not replaces_characters and _is_character_error(error):
                replaces_characters = True
            elif not was_lost and _was_lost(database, connection_before):
                database.close()
                was_lost = True
            else:
                raise


@contextmanager
def _operation(database: BaseDatabaseWrapper, replaces_characters: bool) -> Iterator[None]:
    token = _in_operation.set(True)
    try:
        with (
            database.execute_wrapper(_replace_characters) if replaces_characters else nullcontext()
        ):
            yield
    finally:
        _in_operation.reset(token)


def _is_character_error(error: Error) -> bool:
    return bool(error.args) and error.args[0] in CHARACTER_ERRORS


def _replace_characters(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """Execute a statement with U+FFFD in place of each character that utf8mb3 cannot store."""
    return execute(sql, _replaced(params), many, context)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[^\0-\uffff]", "\ufffd", value)
    if isinstance(value, (list, tuple)):
        return [_replaced(item) for item in value]
    return value


def _was_lost(database: BaseDatabaseWrapper, before: object) -> bool:
    """Return whether the connection that was open ``before`` has ended. Django may have opened
    another one since, at the end of a transaction."""
    return before is not None and (database.connection is not before or not database.is_usable())


def check_writable() -> None:
    """Raise a database error if the database accepts no writes: it is a standby, or read-only.

    It is a single statement, which changes no row.
    """
    try:
        Connection.objects.filter(pk=0).update(status="")
    except Error as error:
        if not is_conflict(error):
            raise


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
