"""The background entry points. Where they run is the site's choice: its TASKS setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .observe import note
from .transactions import on_commit

if TYPE_CHECKING:
    from django_tasks import task
else:
    try:
        from django.tasks import task
    except ImportError:  # Django 5.2
        from django_tasks import task

SLICE = 60.0
"""Seconds after which a task that is not done enqueues the rest as another one."""


@task()
def deliver_event(event_id: int) -> None:
    """Send the signal of one ConnectionEvent, unless another process has."""
    from . import delivery

    delivery.deliver(event_id)


@task()
def process_webhook_event(webhook_event_id: int) -> None:
    """Act on one stored delivery that the request could not settle by itself."""
    from .webhooks import handlers

    handlers.process(webhook_event_id)


@task()
def work_invitations(batch_id: int) -> None:
    """Make the setup links of one batch, a slice at a time: workers end tasks that take long."""
    from . import invitations

    if not invitations.is_background():
        return
    if invitations.work(batch_id, seconds=SLICE):
        work_invitations.enqueue(batch_id)
    elif (later := invitations.due_at(batch_id)) and work_invitations.get_backend().supports_defer:
        work_invitations.using(run_after=later).enqueue(batch_id)


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
            note("task.not_enqueued", task=what.name, row_id=row_id, error=name, exc_info=True)

    on_commit(enqueue)
