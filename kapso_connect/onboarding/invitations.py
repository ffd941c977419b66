"""Invite many customers at once: create their setup links, several at a time, and send them.

A batch is drafted and started once. Then any process may work on it: a worker, the progress page,
``kapso_sync`` or ``kapso_invite``, several of them at the same time. Each invitation is leased to
one process. If that one dies, another finds the invitation, and the link that may have been
created for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models import Case, Count, Min, Q, Value, When
from django.urls import NoReverseMatch
from django.utils import timezone
from django.utils.translation import gettext as _

from .. import db
from ..db import atomic, retry_on_conflict, sqlite_write_lock, task
from ..exceptions import (
    InvalidOptions,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoValidationError,
)
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Customer, Invitation, InvitationBatch, SetupLink, TimelineEvent
from ..retries import due
from ..utils import validate_same_site_url
from . import emails, setup_links
from .messages import staff_message
from .steps import BulkWrite, Steps

MAX_CONCURRENT_REQUESTS = 16
"""Requests to Kapso that one process has open at a time. Kapso names no limit; after a 429 the
batch waits as long as it says."""

INSERT_BATCH_SIZE = 1000

TASK_SECONDS = 60.0
"""How long one run of the task ``work_invitations`` takes at most; it then enqueues itself again,
since workers end tasks that take long."""

BATCH_STOPPING_ERRORS = (
    KapsoCredentialsError,
    KapsoPlanError,
    ImproperlyConfigured,
    NoReverseMatch,
)
"""Errors that would happen for every other customer, too."""

PERMANENT_ERRORS = (KapsoValidationError, KapsoConflict, KapsoNotFound, InvalidOptions)
"""Errors that would happen again however often the invitation is retried."""


def make_batch(
    customers: models.QuerySet[Customer] | Iterable[int],
    *,
    created_by: AbstractBaseUser | AnonymousUser | None = None,
) -> InvitationBatch:
    """Create a draft for ``customers``, a queryset or primary keys; make no request to Kapso."""
    if isinstance(customers, models.QuerySet):
        pks = customers.order_by().values_list("pk", flat=True)
        customers = pks.iterator(chunk_size=INSERT_BATCH_SIZE)
    with atomic():
        batch = InvitationBatch.objects.create(
            created_by_id=created_by.pk if created_by is not None else None
        )
        rows = (Invitation(batch=batch, customer_id=pk) for pk in _without_duplicates(customers))
        while chunk := list(islice(rows, INSERT_BATCH_SIZE)):
            Invitation.objects.bulk_create(chunk)
    return batch


def _without_duplicates(pks: Iterable[int]) -> Iterator[int]:
    found: set[int] = set()
    for pk in pks:
        if pk not in found:
            found.add(pk)
            yield pk


def start(
    batch: InvitationBatch,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    send_email: bool = False,
) -> bool:
    """Start a draft: set the options of its links, and let them be created.

    ``options`` and ``next_url`` are those of ``onboarding.create_setup_link``; with ``send_email``
    each customer is sent the link. Return False if the batch was started before; nothing changes
    then. Raise InvalidOptions and ImproperlyConfigured before anything is started.
    """
    next_url = validate_same_site_url(next_url)
    setup_links.build_options(Customer(), options)

    def change() -> bool:
        drafts = InvitationBatch.objects.filter(pk=batch.pk, started_at=None)
        started = drafts.update(
            options=dict(options or {}),
            next_url=next_url,
            send_email=send_email,
            started_at=timezone.now(),
        )
        if started and is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)
        return bool(started)

    started = retry_on_conflict(change)
    batch.refresh_from_db()
    if started:
        log_event("batch.started", batch_id=batch.pk, actor_id=batch.created_by_id)
    return started


def resume(batch: InvitationBatch) -> None:
    """Continue a batch that stopped, and retry its failed invitations."""

    def change() -> None:
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped="")
        # Not the first attempt: a link that an earlier one may have created at Kapso is looked for.
        failed = batch.invitations.filter(status=Invitation.Status.FAILED)
        failed.update(status=Invitation.Status.PENDING, attempts=1, next_attempt_at=timezone.now())
        waiting = batch.invitations.filter(status=Invitation.Status.PENDING, leased_at=None)
        waiting.update(next_attempt_at=timezone.now())
        if is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)

    retry_on_conflict(change)
    batch.refresh_from_db()


@dataclass(frozen=True)
class Progress:
    """How many invitations of a batch are done. ``due_at`` is when the next of those ``left`` can
    be tried; None if all of them are in progress, or none is left."""

    total: int
    done: int
    failed: int
    left: int
    emails_sent: int
    emails_failed: int
    due_at: datetime | None


def progress(batch: InvitationBatch) -> Progress:
    """Return the progress of ``batch``, in one query."""
    status, email = Invitation.Status, Invitation.Email
    counts = batch.invitations.aggregate(
        total=Count("pk"),
        done=Count("pk", filter=Q(status=status.DONE)),
        failed=Count("pk", filter=Q(status=status.FAILED)),
        left=Count("pk", filter=Q(status=status.PENDING)),
        emails_sent=Count("pk", filter=Q(email_status=email.SENT)),
        emails_failed=Count("pk", filter=Q(email_status=email.FAILED)),
        due_at=Min("next_attempt_at", filter=Q(status=status.PENDING, leased_at=None)),
    )
    return Progress(**counts)


def due_at(batch_id: int) -> datetime | None:
    """Return when the next invitation of a batch can be tried; None for a batch that stopped, and
    if none is left."""
    left = Invitation.objects.filter(
        batch=batch_id, batch__stopped="", status=Invitation.Status.PENDING, leased_at=None
    )
    moment: datetime | None = left.aggregate(Min("next_attempt_at"))["next_attempt_at__min"]
    return moment


def batches_with_due_invitations() -> models.QuerySet[InvitationBatch]:
    """Return the batches that were started, did not stop, and have an invitation that is due."""
    left = Invitation.objects.filter(
        due(), batch=models.OuterRef("pk"), status=Invitation.Status.PENDING
    )
    return InvitationBatch.objects.filter(
        models.Exists(left), started_at__isnull=False, stopped=""
    ).order_by("pk")


def is_background() -> bool:
    """Return whether the site's TASKS backend runs tasks outside of the process that enqueues them.
    Elsewhere a batch would take too long: the task would run inside the request."""
    return not db.runs_immediately(work_invitations)


def work_all(*, seconds: float, on_progress: Callable[[], object] = lambda: None) -> None:
    """Work on what is due of every batch, for ``seconds`` in all."""
    deadline = time.monotonic() + seconds
    for batch_id in list(batches_with_due_invitations().values_list("pk", flat=True)):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        work(batch_id, seconds=left, on_progress=on_progress)


def work(
    batch_id: int,
    *,
    seconds: float | None = None,
    on_progress: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Work on what is due of a started batch, for ``seconds`` or to the end.

    Return whether something is left that could be done now. Any number of processes may work at the
    same time. Only this thread touches rows; other threads wait for Kapso and the mail server.
    ``on_progress`` is called for each invitation that ended. Once ``should_stop`` returns True,
    invitations in progress are finished and no others are begun.
    """
    batch = InvitationBatch.objects.select_related("created_by").filter(pk=batch_id).first()
    if batch is None or batch.started_at is None:
        return False
    deadline = None if seconds is None else time.monotonic() + seconds
    running: Running = {}
    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, thread_name_prefix="kapso-invite") as pool:
        while True:
            # Another process may have met an error that stops the batch.
            batch.refresh_from_db(fields=["stopped"])
            is_over = batch.stopped or should_stop() or is_past(deadline)
            leased = [] if is_over else _lease_due(batch, MAX_CONCURRENT_REQUESTS - len(running))
            begun = [(steps, partial(next, steps)) for steps in _begin(leased, batch)]
            ended = _advance(pool, running, begun)
            if not (running or leased):
                break
            # What was answered in the meantime is written together: one commit for all.
            answered = wait(running, return_when=FIRST_COMPLETED).done
            ended += _advance(
                pool, running, [_resume_with(running.pop(future), future) for future in answered]
            )
            _finish(ended)
            for _ended in ended:
                on_progress()
    return not batch.stopped and batches_with_due_invitations().filter(pk=batch.pk).exists()


def is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _lease_due(batch: InvitationBatch, count: int) -> list[Invitation]:
    """Return up to ``count`` invitations that are due, each leased to this process."""

    def change() -> list[Invitation]:
        rows = batch.invitations.filter(due(), status=Invitation.Status.PENDING)
        return Invitation.lease_due(rows.prefetch_related("customer").order_by("pk")[:count])

    return retry_on_conflict(change) if count else []


InvitationSteps = Steps[Invitation | None]
Running = dict[Future[Any], InvitationSteps]
Resumption = tuple[InvitationSteps, Callable[[], Any]]
"""Steps that wait for a result, and the function that resumes them with it and returns what they
yield next."""


def _begin(leased: Collection[Invitation], batch: InvitationBatch) -> Iterator[InvitationSteps]:
    """Yield the steps of each invitation; queries that are the same for all are made once."""
    if not leased:
        return
    customers = [invitation.customer_id for invitation in leased]
    elsewhere = _in_progress_elsewhere(leased)
    created = _created_since(batch, customers)
    known_ids: dict[int, list[str]] = defaultdict(list)
    links = SetupLink.objects.filter(customer__in=customers)
    for customer_id, kapso_id in links.values_list("customer_id", "kapso_id"):
        known_ids[customer_id].append(kapso_id)
    for invitation in leased:
        customer_id = invitation.customer_id
        if customer_id in elsewhere:
            # Two batches invite the same customer: the later one will find the link of the other,
            # and what that one sent.
            _release_lease(invitation, timedelta(seconds=2))
        else:
            yield _invite(invitation, batch, created.get(customer_id), known_ids[customer_id])


def _in_progress_elsewhere(leased: Collection[Invitation]) -> set[int]:
    """Return the customers whom another batch is inviting at this moment."""
    others = Invitation.objects.filter(
        customer__in=[invitation.customer_id for invitation in leased],
        status=Invitation.Status.PENDING,
        leased_at__isnull=False,
        next_attempt_at__gt=timezone.now(),
    ).exclude(pk__in=[invitation.pk for invitation in leased])
    return set(others.values_list("customer_id", flat=True))


def _created_since(batch: InvitationBatch, customers: Collection[int]) -> dict[int, SetupLink]:
    """Return, by customer, the latest link if it was created after the batch was started and can
    be used or was used. Another member of staff may have created it, or a process that died before
    it could record it in the batch.
    """
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_CREATED,
        customer__in=customers,
        occurred_at__gte=batch.started_at,
        setup_link__is_latest=True,
        setup_link__status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.USED],
    ).select_related("setup_link__customer")
    links = [event.setup_link for event in events if event.setup_link is not None]
    return {
        link.customer_id: link
        for link in links
        if link.is_usable or link.status == SetupLink.Status.USED
    }


def _advance(
    pool: ThreadPoolExecutor, running: Running, resumptions: Iterable[Resumption]
) -> list[Invitation | None]:
    """Resume steps until each of them waits for a request or has ended; return the results of those
    that ended.

    Requests are submitted to ``pool`` and added to ``running``. Rows are written at once, those
    with the same write function together.
    """
    ended: list[Invitation | None] = []
    while resumptions:
        writes: dict[Any, list[tuple[InvitationSteps, Any]]] = defaultdict(list)
        for steps, resume_steps in resumptions:
            try:
                step = resume_steps()
            except StopIteration as end:
                ended.append(end.value)
            else:
                if isinstance(step, BulkWrite):
                    writes[step.write].append((steps, step.row))
                else:
                    running[pool.submit(_request, step)] = steps
        resumptions = [
            resumption for write, waiting in writes.items() for resumption in _write(write, waiting)
        ]
    return ended


def _request(step: Callable[[KapsoClient], Any]) -> Any:
    with KapsoClient.from_settings() as client:
        return step(client)


def _resume_with(steps: InvitationSteps, future: Future[Any]) -> Resumption:
    error = future.exception()
    return steps, partial(steps.throw, error) if error else partial(steps.send, future.result())


def _write(
    write: Callable[[Sequence[Any]], Sequence[Any]], waiting: Sequence[tuple[InvitationSteps, Any]]
) -> Iterator[Resumption]:
    try:
        written = write([row for _, row in waiting])
    except Exception as error:
        if len(waiting) == 1:
            yield waiting[0][0], partial(waiting[0][0].throw, error)
        else:
            # One row that cannot be written must not stop the others.
            for one in waiting:
                yield from _write(write, [one])
    else:
        for (steps, _), result in zip(waiting, written, strict=True):
            yield steps, partial(steps.send, result)


def _invite(
    invitation: Invitation, batch: InvitationBatch, link: SetupLink | None, known_ids: list[str]
) -> InvitationSteps:
    """Create the link of one invitation if it has none, and send it.

    Return the invitation if that is done; None if it is not, which is recorded already.
    """
    try:
        if link is not None:
            # Its connect key may be newer than the customer that was read with the invitation.
            invitation.customer = link.customer
        else:
            link = yield from setup_links.setup_link_steps(
                invitation.customer,
                options=batch.options,
                next_url=batch.next_url,
                created_by=batch.created_by,
                since=batch.started_at if invitation.attempts > 1 else None,
                known_ids=known_ids,
            )
        invitation.setup_link = link
        if batch.send_email:
            yield from _send_email(invitation, link, batch)
    except Customer.DoesNotExist:
        pass  # The customer was deleted, and the invitation with it.
    except BATCH_STOPPING_ERRORS as error:
        batch.stopped = staff_message(error)
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped=batch.stopped)
        log_event("batch.stopped", batch_id=batch.pk, error=str(error))
        _release_lease(invitation)
    except KapsoRateLimited as error:
        pause = timedelta(seconds=error.retry_after or 60)
        # It says nothing about this customer, so it does not count as an attempt.
        invitation.last_error = staff_message(error)
        _release_lease(invitation, pause)
        waiting = batch.invitations.filter(due(), status=Invitation.Status.PENDING, leased_at=None)
        waiting.update(next_attempt_at=timezone.now() + pause)
    except PERMANENT_ERRORS as error:
        log_event("invitation.failed", error=str(error), **_log_fields(invitation))
        _update(
            invitation,
            status=Invitation.Status.FAILED,
            last_error=staff_message(error)[:2000],
            next_attempt_at=None,
            leased_at=None,
        )
    except Exception as error:
        _schedule_retry(invitation, error)
    else:
        return invitation
    return None


def _send_email(invitation: Invitation, link: SetupLink, batch: InvitationBatch) -> Steps[None]:
    """Send the link once: not again if it was, or may have been, sent since the batch was
    started, and not to a customer who has used it."""
    email = Invitation.Email
    if invitation.email_status in {email.SENT, email.FAILED}:
        return
    if _was_sent_since(batch, link, invitation.customer.email):
        _update(invitation, email_status=email.SENT)
        return
    if invitation.email_status == email.SENDING:
        _update(
            invitation,
            email_status=email.FAILED,
            email_error=_(
                "It is not known whether the e-mail was sent. Ask the customer, or send it again."
            ),
        )
        return
    if link.status == SetupLink.Status.USED:
        return
    try:
        message = emails.invitation_message(invitation.customer, link)
        _update(invitation, email_status=email.SENDING)
        yield lambda client: message.send()
    except Exception as error:
        # The class alone: mail servers repeat the customer's e-mail address in their messages.
        log_event("email.failed", customer_id=invitation.customer_id, error=type(error).__name__)
        _update(invitation, email_status=email.FAILED, email_error=emails.send_error_message(error))
    else:
        setup_links.record_sent(link, "email", actor=batch.created_by, to=invitation.customer.email)
        _update(invitation, email_status=email.SENT, email_error="")


def _was_sent_since(batch: InvitationBatch, link: SetupLink, to: str) -> bool:
    return link.events.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_SENT,
        occurred_at__gte=batch.started_at,
        data__channel="email",
        data__to=to,
    ).exists()


def _finish(ended: Iterable[Invitation | None]) -> None:
    """Record that those invitations are done whose steps returned them."""
    done = [invitation for invitation in ended if invitation is not None]
    if not done:
        return
    link_of = Case(
        *(When(pk=invitation.pk, then=Value(invitation.setup_link_id)) for invitation in done)
    )
    retry_on_conflict(
        partial(
            Invitation.objects.filter(pk__in=[invitation.pk for invitation in done]).update,
            setup_link_id=link_of,
            status=Invitation.Status.DONE,
            last_error="",
            next_attempt_at=None,
            leased_at=None,
        ),
        within=sqlite_write_lock,
    )
    for invitation in done:
        log_event(
            "invitation.done", setup_link_id=invitation.setup_link_id, **_log_fields(invitation)
        )


def _schedule_retry(invitation: Invitation, error: Exception) -> None:
    invitation.schedule_retry(staff_message(error)[:2000])
    has_failed = invitation.next_attempt_at is None
    fields = {"error": type(error).__name__, **_log_fields(invitation)}
    if has_failed:
        log_event("invitation.failed", exc_info=error, **fields)
    else:
        log_event(
            "invitation.retry_scheduled", attempts=invitation.attempts, exc_info=error, **fields
        )
    _update(
        invitation,
        status=Invitation.Status.FAILED if has_failed else Invitation.Status.PENDING,
        last_error=invitation.last_error,
        next_attempt_at=invitation.next_attempt_at,
        leased_at=None,
    )


def _release_lease(invitation: Invitation, pause: timedelta = timedelta()) -> None:
    """Make a leased invitation available again, after ``pause``; it does not count as an
    attempt."""
    _update(
        invitation,
        attempts=max(invitation.attempts - 1, 0),
        last_error=invitation.last_error,
        next_attempt_at=timezone.now() + pause,
        leased_at=None,
    )


def _update(invitation: Invitation, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(invitation, name, value)
    rows = Invitation.objects.filter(pk=invitation.pk)
    retry_on_conflict(partial(rows.update, **changes), within=sqlite_write_lock)


def _log_fields(invitation: Invitation) -> dict[str, Any]:
    return {
        "invitation_id": invitation.pk,
        "batch_id": invitation.batch_id,
        "customer_id": invitation.customer_id,
    }


@task()
def work_invitations(batch_id: int) -> None:
    """Work on one batch for ``TASK_SECONDS``, and enqueue the rest as another task."""
    if not is_background():
        return
    if work(batch_id, seconds=TASK_SECONDS):
        work_invitations.enqueue(batch_id)
    elif (later := due_at(batch_id)) and work_invitations.get_backend().supports_defer:
        work_invitations.using(run_after=later).enqueue(batch_id)
