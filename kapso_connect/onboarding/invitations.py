"""Setup links for many customers at once, made in the background, several at a time.

A batch is drafted, started once, and worked off by whoever comes: a worker, the progress page,
``kapso_sync`` or ``kapso_invite``, several of them at once if need be. Each invitation is taken by
lease, so one that a process died of is found again; the link it may have made is found, too.
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
from .steps import Steps, Writing

AT_ONCE = 16
"""Requests to Kapso that are under way at a time. Kapso names no limit for them; a 429 makes the
batch wait as long as it says."""

CHUNK = 1000

BATCH_STOPPING_ERRORS = (
    KapsoCredentialsError,
    KapsoPlanError,
    ImproperlyConfigured,
    NoReverseMatch,
)
"""Errors the next customer would meet as well."""

PERMANENT_ERRORS = (KapsoValidationError, KapsoConflict, KapsoNotFound, InvalidOptions)
"""Errors that trying again would not mend."""


@dataclass(frozen=True)
class Progress:
    """How far a batch is. ``due_at`` is when the next of those ``left`` can be tried, None where
    all are under way or none is left."""

    total: int
    done: int
    failed: int
    left: int
    emails_sent: int
    emails_failed: int
    due_at: datetime | None

    @property
    def is_finished(self) -> bool:
        return not self.left


def make_batch(
    customers: models.QuerySet[Customer] | Iterable[int],
    *,
    created_by: AbstractBaseUser | AnonymousUser | None = None,
) -> InvitationBatch:
    """Draft a batch for ``customers``, a queryset or primary keys; nothing is asked of Kapso."""
    if isinstance(customers, models.QuerySet):
        customers = customers.order_by().values_list("pk", flat=True).iterator(chunk_size=CHUNK)
    with atomic():
        batch = InvitationBatch.objects.create(
            created_by_id=created_by.pk if created_by is not None else None
        )
        rows = (Invitation(batch=batch, customer_id=pk) for pk in _once(customers))
        while chunk := list(islice(rows, CHUNK)):
            Invitation.objects.bulk_create(chunk)
    return batch


def _once(pks: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for pk in pks:
        if pk not in seen:
            seen.add(pk)
            yield pk


def start(
    batch: InvitationBatch,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    send_email: bool = False,
) -> bool:
    """Confirm what the links of a draft shall be like, and have them made.

    False where the batch was started before: nothing changes then. ``options`` and ``next_url`` are
    those of ``onboarding.create_setup_link``; with ``send_email`` each customer is sent the link.

    Raises InvalidOptions and ImproperlyConfigured before anything is started.
    """
    next_url = validate_same_site_url(next_url)
    setup_links.link_options(Customer(), options)

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
    """Go on with a started batch that stopped, and try those again that failed."""

    def change() -> None:
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped="")
        # Not the first attempt: what that may have made at Kapso is looked for.
        failed = batch.invitations.filter(status=Invitation.Status.FAILED)
        failed.update(status=Invitation.Status.PENDING, attempts=1, next_attempt_at=timezone.now())
        waiting = batch.invitations.filter(status=Invitation.Status.PENDING, leased_at=None)
        waiting.update(next_attempt_at=timezone.now())
        if is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)

    retry_on_conflict(change)
    batch.refresh_from_db()


def progress(batch: InvitationBatch) -> Progress:
    """Return how far ``batch`` is, in one query."""
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
    """Return when the next invitation of a batch that did not stop can be tried; None for never."""
    left = Invitation.objects.filter(
        batch=batch_id, batch__stopped="", status=Invitation.Status.PENDING, leased_at=None
    )
    moment: datetime | None = left.aggregate(Min("next_attempt_at"))["next_attempt_at__min"]
    return moment


def is_background() -> bool:
    """True where the site's TASKS backend does the work elsewhere; False where it would be done in
    the request that asks for it, which a batch is too long for."""
    return type(work_invitations.get_backend()).__name__ != "ImmediateBackend"


def unfinished() -> models.QuerySet[InvitationBatch]:
    """The batches that were started, did not stop, and have something due."""
    left = Invitation.objects.filter(
        due(), batch=models.OuterRef("pk"), status=Invitation.Status.PENDING
    )
    return InvitationBatch.objects.filter(
        models.Exists(left), started_at__isnull=False, stopped=""
    ).order_by("pk")


# Working


def work(
    batch_id: int,
    *,
    seconds: float | None = None,
    tell: Callable[[], object] = lambda: None,
    shall_end: Callable[[], bool] = lambda: False,
) -> bool:
    """Work off what of a started batch is due, for ``seconds`` or to the end.

    True where something is left that could be done now. Any number of processes may work at once.
    Only this thread touches rows; Kapso and the mail server are waited for in others. ``tell`` is
    called whenever an invitation is settled. Once ``shall_end`` says so, what is under way is ended
    in order and nothing more is begun.
    """
    batch = InvitationBatch.objects.select_related("created_by").filter(pk=batch_id).first()
    if batch is None or batch.started_at is None:
        return False
    deadline = None if seconds is None else time.monotonic() + seconds
    running: Running = {}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kapso-invite") as pool:
        while True:
            # Another process may have met what stops it.
            batch.refresh_from_db(fields=["stopped"])
            is_over = batch.stopped or shall_end() or is_late(deadline)
            taken = [] if is_over else _take_due(batch, AT_ONCE - len(running))
            begun = [(steps, partial(next, steps)) for steps in _begin(taken, batch)]
            ended = _advance(pool, running, begun)
            if not (running or taken):
                break
            # Those that were answered meanwhile are written together: one commit for all.
            answered = wait(running, return_when=FIRST_COMPLETED).done
            ended += _advance(
                pool, running, [_answer(running.pop(future), future) for future in answered]
            )
            _settle(ended)
            for _ended in ended:
                tell()
    return not batch.stopped and unfinished().filter(pk=batch.pk).exists()


def work_all(*, seconds: float, tell: Callable[[], object] = lambda: None) -> None:
    """Work off what is due of every batch, for ``seconds`` in all."""
    deadline = time.monotonic() + seconds
    for batch_id in list(unfinished().values_list("pk", flat=True)):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        work(batch_id, seconds=left, tell=tell)


InvitationSteps = Steps[Invitation | None]
Running = dict[Future[Any], InvitationSteps]
Move = tuple[InvitationSteps, Callable[[], Any]]
"""Some steps, and what takes the next of them."""


def _answer(steps: InvitationSteps, answered: Future[Any]) -> Move:
    error = answered.exception()
    return steps, partial(steps.throw, error) if error else partial(steps.send, answered.result())


def _advance(
    pool: ThreadPoolExecutor, running: Running, moves: Iterable[Move]
) -> list[Invitation | None]:
    """Make the ``moves``, and those that lead to; return what has ended.

    What is to be asked is ``running`` then, and what was to be written is written, all of a kind
    together.
    """
    ended: list[Invitation | None] = []
    while moves:
        writing: dict[Any, list[tuple[InvitationSteps, Any]]] = defaultdict(list)
        for steps, move in moves:
            try:
                wanted = move()
            except StopIteration as end:
                ended.append(end.value)
            else:
                if isinstance(wanted, Writing):
                    writing[wanted.write].append((steps, wanted.rows))
                else:
                    running[pool.submit(_ask, wanted)] = steps
        moves = [move for write, waiting in writing.items() for move in _write(write, waiting)]
    return ended


def _write(
    write: Callable[[Sequence[Any]], Sequence[Any]], waiting: Sequence[tuple[InvitationSteps, Any]]
) -> Iterator[Move]:
    try:
        written = write([rows for _, rows in waiting])
    except Exception as error:
        if len(waiting) == 1:
            yield waiting[0][0], partial(waiting[0][0].throw, error)
        else:
            # What cannot be written must not keep the others.
            for one in waiting:
                yield from _write(write, [one])
    else:
        for (steps, _), result in zip(waiting, written, strict=True):
            yield steps, partial(steps.send, result)


def _ask(ask: Callable[[KapsoClient], Any]) -> Any:
    with KapsoClient.from_settings() as client:
        return ask(client)


def is_late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _take_due(batch: InvitationBatch, count: int) -> list[Invitation]:
    """Return up to ``count`` invitations that are due, each taken by lease."""

    def change() -> list[Invitation]:
        rows = batch.invitations.filter(due(), status=Invitation.Status.PENDING)
        return Invitation.lease_due(rows.prefetch_related("customer").order_by("pk")[:count])

    return retry_on_conflict(change) if count else []


def _begin(taken: Collection[Invitation], batch: InvitationBatch) -> Iterator[InvitationSteps]:
    """Yield the steps of each of the ``taken``, after a look at what others do or did for all."""
    if not taken:
        return
    elsewhere = _under_way_elsewhere(taken)
    made = _made_since(batch, taken)
    known: dict[int, list[str]] = defaultdict(list)
    links = SetupLink.objects.filter(customer__in=[invitation.customer_id for invitation in taken])
    for customer_id, kapso_id in links.values_list("customer_id", "kapso_id"):
        known[customer_id].append(kapso_id)
    for invitation in taken:
        if invitation.customer_id in elsewhere:
            # Two batches meet at one customer: whoever comes later finds the other's link, and
            # what the other sent.
            _free(invitation, timedelta(seconds=2))
        else:
            customer_id = invitation.customer_id
            yield _inviting(invitation, batch, made.get(customer_id), known[customer_id])


def _inviting(
    invitation: Invitation, batch: InvitationBatch, link: SetupLink | None, known: list[str]
) -> InvitationSteps:
    """Make the link of one invitation where it has none, and send it.

    Returns the invitation where that is done and to be settled; otherwise what came of it is
    recorded.
    """
    try:
        if link is not None:
            # With the address, which the customer may not have had when the page was read.
            invitation.customer = link.customer
        else:
            link = yield from setup_links.setup_link_steps(
                invitation.customer,
                options=batch.options,
                next_url=batch.next_url,
                created_by=batch.created_by,
                since=batch.started_at if invitation.attempts > 1 else None,
                known=known,
            )
        invitation.setup_link = link
        if batch.send_email:
            yield from _sending(invitation, link, batch)
    except Customer.DoesNotExist:
        pass  # deleted meanwhile, and the invitation with it
    except BATCH_STOPPING_ERRORS as error:
        batch.stopped = staff_message(error)
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped=batch.stopped)
        log_event("batch.stopped", batch_id=batch.pk, error=str(error))
        _free(invitation)
    except KapsoRateLimited as error:
        pause = timedelta(seconds=error.retry_after or 60)
        # Nobody's fault, so none of the attempts that a customer has.
        invitation.last_error = staff_message(error)
        _free(invitation, pause)
        waiting = batch.invitations.filter(due(), status=Invitation.Status.PENDING, leased_at=None)
        waiting.update(next_attempt_at=timezone.now() + pause)
    except PERMANENT_ERRORS as error:
        log_event("invitation.failed", error=str(error), **_told(invitation))
        _note(
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


def _settle(ended: Iterable[Invitation | None]) -> None:
    """Record that those invitations are done which were not settled otherwise."""
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
        log_event("invitation.done", setup_link_id=invitation.setup_link_id, **_told(invitation))


def _told(invitation: Invitation) -> dict[str, Any]:
    return {
        "invitation_id": invitation.pk,
        "batch_id": invitation.batch_id,
        "customer_id": invitation.customer_id,
    }


def _made_since(batch: InvitationBatch, taken: Iterable[Invitation]) -> dict[int, SetupLink]:
    """Return, by customer, the links made since the batch was started, whoever made them (another
    member of staff, or a process that died before it could note it here), that work or were used.
    """
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_CREATED,
        customer__in=[invitation.customer_id for invitation in taken],
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


def _under_way_elsewhere(taken: Collection[Invitation]) -> set[int]:
    """Return the customers whom another batch invites at this moment."""
    others = Invitation.objects.filter(
        customer__in=[invitation.customer_id for invitation in taken],
        status=Invitation.Status.PENDING,
        leased_at__isnull=False,
        next_attempt_at__gt=timezone.now(),
    ).exclude(pk__in=[invitation.pk for invitation in taken])
    return set(others.values_list("customer_id", flat=True))


def _sending(invitation: Invitation, link: SetupLink, batch: InvitationBatch) -> Steps[None]:
    """Send the link once: what was sent since the batch was started, or may have been, is not sent
    again, and nobody needs one that they have used."""
    email = Invitation.Email
    if invitation.email_status in {email.SENT, email.FAILED}:
        return
    if _was_sent_since(batch, link, invitation.customer.email):
        _note(invitation, email_status=email.SENT)
        return
    if invitation.email_status == email.SENDING:
        _note(
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
        _note(invitation, email_status=email.SENDING)
        yield lambda client: message.send()
    except Exception as error:
        # Its name alone: mail servers repeat the address.
        log_event("email.failed", customer_id=invitation.customer_id, error=type(error).__name__)
        _note(invitation, email_status=email.FAILED, email_error=emails.why_not_sent(error))
    else:
        setup_links.record_sent(link, "email", actor=batch.created_by, to=invitation.customer.email)
        _note(invitation, email_status=email.SENT, email_error="")


def _was_sent_since(batch: InvitationBatch, link: SetupLink, to: str) -> bool:
    return link.events.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_SENT,
        occurred_at__gte=batch.started_at,
        data__channel="email",
        data__to=to,
    ).exists()


def _note(invitation: Invitation, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(invitation, name, value)
    rows = Invitation.objects.filter(pk=invitation.pk)
    retry_on_conflict(partial(rows.update, **changes), within=sqlite_write_lock)


def _schedule_retry(invitation: Invitation, error: Exception) -> None:
    invitation.schedule_retry(staff_message(error)[:2000])
    is_over = invitation.next_attempt_at is None
    told = {"error": type(error).__name__, **_told(invitation)}
    if is_over:
        log_event("invitation.failed", exc_info=error, **told)
    else:
        log_event(
            "invitation.retry_scheduled", attempts=invitation.attempts, exc_info=error, **told
        )
    _note(
        invitation,
        status=Invitation.Status.FAILED if is_over else Invitation.Status.PENDING,
        last_error=invitation.last_error,
        next_attempt_at=invitation.next_attempt_at,
        leased_at=None,
    )


def _free(invitation: Invitation, pause: timedelta = timedelta()) -> None:
    """Give back what was taken, as if it had not been."""
    _note(
        invitation,
        attempts=max(invitation.attempts - 1, 0),
        last_error=invitation.last_error,
        next_attempt_at=timezone.now() + pause,
        leased_at=None,
    )


SLICE = 60.0
"""Seconds after which a task that is not done enqueues the rest as another one."""


@task()
def work_invitations(batch_id: int) -> None:
    """Make the setup links of one batch, a slice at a time: workers end tasks that take long."""
    if not is_background():
        return
    if work(batch_id, seconds=SLICE):
        work_invitations.enqueue(batch_id)
    elif (later := due_at(batch_id)) and work_invitations.get_backend().supports_defer:
        work_invitations.using(run_after=later).enqueue(batch_id)
