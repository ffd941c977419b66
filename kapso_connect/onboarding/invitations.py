"""Invite many customers at once: create their setup links, several at a time, and send them; or
remind them of the links that they have.

A batch is drafted and started once. Then any process may work on it: a worker, the progress page,
``kapso_sync`` or ``kapso_invite``, several of them at the same time. Each invitation is leased to
one process. If that one dies, another finds the invitation, and the link that may have been
created for it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models import Count, Exists, F, Min, OuterRef, Q
from django.urls import NoReverseMatch
from django.utils import timezone

from .. import db
from ..conf import get_conf
from ..db import atomic, retry_on_conflict, task
from ..exceptions import (
    CustomerErased,
    InvalidOptions,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoValidationError,
)
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoCustomer, KapsoSetupLink
from ..log import log_event
from ..models import (
    Connection,
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from ..retries import not_leased
from ..translation import gettext as _
from ..utils import as_instant, utc_now, validate_same_site_url
from . import emails, reminders, setup_links
from .customers import ask_for_registration, prepare_registration, record_registrations
from .mailer import Mailer, SendFailure, classify_error
from .messages import staff_message
from .other_invitations import InvitedMeanwhile, NobodyLeft, other_invitations
from .setup_links import LinkRequest

MAX_CONCURRENT_REQUESTS = 16
"""Requests to Kapso that one process has open at a time. Once a tenth of what Kapso allows in a
minute is left, the batch waits for the next one (see ``KapsoClient``)."""

INSERT_BATCH_SIZE = 1000

Email = Invitation.Email

UNSENT = (Email.NOT_SENT, Email.WAITING)
"""E-mails that no process has begun to send, or that the mail server did not accept yet."""

SAVED_FIELDS = [
    "setup_link",
    "status",
    "attempts",
    "last_error",
    "next_attempt_at",
    "leased_at",
    "leased_until",
]
"""What changes of an invitation while it is worked on."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

TASK_SECONDS = 60.0
"""How long one run of the task ``work_invitations`` takes at most; it then enqueues itself again,
since workers end tasks that take long."""

REQUEST_SECONDS = 4.0
"""How long one request works on a batch, if there are no task workers."""

BATCH_STOPPING_ERRORS = (
    KapsoCredentialsError,
    KapsoPlanError,
    ImproperlyConfigured,
    NoReverseMatch,
)
"""Errors that would happen for every other customer, too."""

PERMANENT_ERRORS = (
    KapsoValidationError,
    KapsoConflict,
    KapsoNotFound,
    InvalidOptions,
    CustomerErased,
)
"""Errors that would happen again however often the invitation is retried."""


def make_batch(
    customers: models.QuerySet[Customer] | Iterable[int],
    *,
    created_by: AbstractBaseUser | AnonymousUser | None = None,
    purpose: str = InvitationBatch.Purpose.INVITE,
) -> InvitationBatch:
    """Create a draft for ``customers``, a queryset or primary keys; make no request to Kapso."""
    if isinstance(customers, models.QuerySet):
        customers = customers.order_by().values_list("pk", flat=True)
    with atomic():
        batch = InvitationBatch.objects.create(
            created_by_id=created_by.pk if created_by is not None else None, purpose=purpose
        )
        rows = (Invitation(batch=batch, customer_id=pk) for pk in dict.fromkeys(customers))
        while chunk := list(islice(rows, INSERT_BATCH_SIZE)):
            Invitation.objects.bulk_create(chunk)
    return batch


def make_reminders(
    customers: models.QuerySet[Customer] | Iterable[int],
    *,
    created_by: AbstractBaseUser | AnonymousUser | None = None,
) -> InvitationBatch:
    """Create a draft that reminds ``customers``, a queryset or primary keys, of the links that they
    have. ``start`` begins to send the e-mails.

    Those who cannot be reminded, or need not be, are left out when it is started, or at the latest
    before their e-mail is sent: customers who are neither invited nor opened any more, have no
    e-mail address, or were e-mailed the link less than a day ago.
    """
    return make_batch(customers, created_by=created_by, purpose=InvitationBatch.Purpose.REMIND)


def start(
    batch: InvitationBatch,
    *,
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    send_email: bool = False,
    leave_out_connected: bool = False,
    leave_out_invited: bool = False,
    unless_invited_since: datetime | None = None,
) -> bool:
    """Start a draft: set the options of its links, and let them be created.

    ``options`` and ``next_url`` are those of ``onboarding.create_setup_link``; with ``send_email``
    each customer is sent the link. Reminders need none of these. Customers who are connected, or
    have a usable link, are removed from the batch if they are to be left out.

    Return False if the batch was started before; nothing changes then. Raise before anything is
    started: InvalidOptions and ImproperlyConfigured; NobodyLeft if all customers would be left out;
    InvitedMeanwhile if one of the others has been invited ``unless_invited_since``, by another
    batch or in another way.
    """
    next_url = validate_same_site_url(next_url)
    setup_links.build_options(Customer(), options)

    def change() -> bool:
        if unless_invited_since is not None:
            # Of two batches with the same customer, the second to start waits here for the first.
            list(
                Customer.objects.locked()
                .only("pk")
                .filter(pk__in=batch.invitations.values("customer"))
            )
        drafts = InvitationBatch.objects.filter(pk=batch.pk, started_at=None)
        started = drafts.update(
            options=dict(options or {}),
            next_url=next_url,
            send_email=send_email or batch.is_reminder,
            started_at=timezone.now(),
        )
        if not started:
            return False
        _remove_customers(batch, is_connected=leave_out_connected, is_invited=leave_out_invited)
        if unless_invited_since is not None and other_invitations(
            batch, unless_invited_since, limit=1
        ):
            raise InvitedMeanwhile
        if batch.is_reminder:
            _leave_out_at_start(batch)
        if is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)
        return True

    started = retry_on_conflict(change)
    batch.refresh_from_db()
    if started:
        log_event("batch.started", batch_id=batch.pk, actor_id=batch.created_by_id)
    return started


def _remove_customers(batch: InvitationBatch, *, is_connected: bool, is_invited: bool) -> None:
    """Remove the customers who are connected, or have a usable link, from ``batch``. Raise
    NobodyLeft if it has no others."""
    reasons = []
    if is_connected:
        reasons.append(Exists(Connection.objects.connected().filter(customer=OuterRef("customer"))))
    if is_invited:
        reasons.append(Exists(SetupLink.objects.usable().filter(customer=OuterRef("customer"))))
    invitations = Invitation.objects.filter(batch=batch)
    for reason in reasons:
        invitations.filter(reason).delete()
    if reasons and not invitations.exists():
        raise NobodyLeft


def _leave_out_at_start(batch: InvitationBatch) -> None:
    """Leave out of a batch of reminders those who cannot be reminded, so that the others need not
    wait for them."""
    invited = Customer.objects.filter(invitations__batch=batch)
    by_obstacle: dict[str, list[int]] = defaultdict(list)
    for pk, obstacle in reminders.with_obstacle(invited).values_list("pk", "obstacle"):
        by_obstacle[obstacle].append(pk)
    by_obstacle.pop("", None)
    for obstacle, pks in by_obstacle.items():
        for first in range(0, len(pks), INSERT_BATCH_SIZE):
            batch.invitations.filter(customer__in=pks[first : first + INSERT_BATCH_SIZE]).update(
                status=Invitation.Status.DONE,
                last_error=reminders.Obstacle(obstacle).label,
                next_attempt_at=None,
            )


def send_failed_emails_again(batch: InvitationBatch) -> None:
    """Send the e-mails of ``batch`` that failed again. No links are created, and an e-mail that may
    have been sent is not sent again."""

    def change() -> None:
        _retry_failed_emails(batch)
        if is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)

    retry_on_conflict(change)


def _retry_failed_emails(batch: InvitationBatch) -> None:
    # Not the first attempt: see ``resume``.
    Invitation.objects.filter(batch=batch).email_failed().update(
        status=Invitation.Status.PENDING,
        email_status=Email.NOT_SENT,
        email_error="",
        attempts=1,
        next_attempt_at=utc_now(),
    )


def resume(batch: InvitationBatch) -> None:
    """Continue a batch that stopped, and retry its failed invitations and e-mails.

    An e-mail that may have been sent is not sent again.
    """

    def change() -> None:
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped="")
        # Not the first attempt: a link that an earlier one may have created at Kapso is looked for.
        invitations = Invitation.objects.filter(batch=batch)
        invitations.failed().update(
            status=Invitation.Status.PENDING, attempts=1, next_attempt_at=utc_now()
        )
        _retry_failed_emails(batch)
        invitations.waiting().update(next_attempt_at=utc_now())
        if is_background():
            db.enqueue_on_commit(work_invitations, batch.pk)

    retry_on_conflict(change)
    batch.refresh_from_db()


def give_up(batch: InvitationBatch) -> int:
    """Give up what is left of a batch that stopped, and return how many invitations that are. Those
    whose link exists already are done, and their e-mail failed.

    ``resume`` takes it back. What another process is working on is not given up: if something of it
    is left, the batch stays stopped.
    """

    def change() -> int:
        stopped = InvitationBatch.objects.exclude(stopped="").filter(pk=batch.pk)
        reason = stopped.values_list("stopped", flat=True).first()
        if reason is None:
            return 0
        reason = reason[:2000]
        status, waiting = Invitation.Status, Invitation.objects.filter(batch=batch).waiting()
        changes: list[tuple[models.QuerySet[Invitation], dict[str, Any]]] = [
            (
                waiting.filter(email_status=Email.SENDING),
                {
                    "status": status.DONE,
                    "email_status": Email.UNKNOWN,
                    "email_error": emails.unknown_outcome_message(),
                },
            ),
            (waiting.filter(setup_link=None), {"status": status.FAILED, "last_error": reason}),
            (
                waiting.filter(email_status__in=UNSENT),
                {"status": status.DONE, "email_status": Email.FAILED, "email_error": reason},
            ),
            (waiting, {"status": status.DONE}),
        ]
        count = sum(rows.update(next_attempt_at=None, **fields) for rows, fields in changes)
        if not Invitation.objects.filter(batch=batch).pending().exists():
            stopped.update(stopped="")
        return count

    count = retry_on_conflict(change)
    batch.refresh_from_db()
    if count:
        log_event("batch.given_up", batch_id=batch.pk, invitations=count)
    return count


@dataclass(frozen=True)
class Progress:
    """How many invitations of a batch are done, which includes the e-mail if one is sent.

    ``due_at`` is when the next of those ``left`` can be tried; None if all of them are in progress,
    or none is left. Of ``emails_unknown`` it is not known whether they were sent; ``no_address``
    are the customers who had no e-mail address, which is no failure; ``emails_waiting`` and
    ``in_progress`` are part of ``left``. ``left_out`` are part of ``done``: those whom a batch that
    sends e-mails sent none.
    """

    total: int
    done: int
    failed: int
    left: int
    emails_sent: int
    emails_failed: int
    emails_unknown: int
    emails_waiting: int
    no_address: int
    left_out: int
    in_progress: int
    due_at: datetime | None

    @property
    def ended(self) -> int:
        return self.done + self.failed

    @property
    def is_waiting(self) -> bool:
        """True if what is left can only be tried later."""
        is_later = self.due_at is not None and self.due_at > utc_now()
        return bool(self.left and not self.in_progress and is_later)

    @property
    def has_problems(self) -> bool:
        """True if a link or an e-mail failed, or an e-mail may not have been sent."""
        return bool(self.failed or self.emails_failed or self.emails_unknown)


def progress(batch: InvitationBatch) -> Progress:
    """Return the progress of ``batch``, in one query."""
    return Progress(**batch.invitations.aggregate(**_progress_counts()))


def find_state(batch: InvitationBatch, progress: Progress) -> InvitationBatch.State:
    """Return the state of a started batch with this ``progress``."""
    if not progress.left:
        return InvitationBatch.State.FINISHED
    if batch.stopped:
        return InvitationBatch.State.STOPPED
    if progress.is_waiting:
        return InvitationBatch.State.WAITING
    return InvitationBatch.State.RUNNING


def progress_of_many(batches: Iterable[InvitationBatch]) -> dict[int, Progress]:
    """Return the progress of each of ``batches`` by its primary key, in one query."""
    none: dict[str, Any] = dict.fromkeys(_progress_counts(), 0) | {"due_at": None}
    found = {batch.pk: Progress(**none) for batch in batches}
    rows: Any = Invitation.objects.filter(batch__in=list(found)).order_by().values("batch")
    for counts in rows.annotate(**_progress_counts()):
        pk = counts.pop("batch")
        found[pk] = Progress(**counts)
    return found


def _progress_counts() -> dict[str, Any]:
    """Return an aggregate for each field of ``Progress``."""
    status = Invitation.Status
    return {
        "total": Count("pk"),
        "done": Count("pk", filter=Q(status=status.DONE)),
        "failed": Count("pk", filter=Q(status=status.FAILED)),
        "left": Count("pk", filter=Q(status=status.PENDING)),
        "emails_sent": Count("pk", filter=Q(email_status=Email.SENT)),
        "emails_failed": Count("pk", filter=Q(email_status=Email.FAILED)),
        "emails_unknown": Count("pk", filter=Q(email_status=Email.UNKNOWN)),
        "emails_waiting": Count("pk", filter=Q(email_status=Email.WAITING)),
        "no_address": Count("pk", filter=Q(email_status=Email.NO_ADDRESS)),
        "left_out": Count("pk", filter=Q(status=status.DONE, email_status=Email.NOT_SENT)),
        "in_progress": Count("pk", filter=Q(status=status.PENDING, leased_until__gt=utc_now())),
        "due_at": Min("next_attempt_at", filter=Q(not_leased(), status=status.PENDING)),
    }


def batches_with_due_invitations() -> models.QuerySet[InvitationBatch]:
    """Return the batches that were started, did not stop, and have an invitation that is due."""
    left = Invitation.objects.pending().due().filter(batch=models.OuterRef("pk"))
    return InvitationBatch.objects.filter(
        models.Exists(left), started_at__isnull=False, stopped=""
    ).order_by("pk")


def is_background() -> bool:
    """Return whether the site's TASKS backend runs tasks outside of the process that enqueues them.
    Elsewhere a batch would take too long: the task would run inside the request."""
    return not db.runs_immediately(work_invitations)


def work_all(
    *,
    seconds: float,
    on_progress: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Work on what is due of every batch, for ``seconds`` in all, as ``work`` does."""
    deadline = time.monotonic() + seconds
    for batch_id in list(batches_with_due_invitations().values_list("pk", flat=True)):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        work(batch_id, seconds=left, on_progress=on_progress, should_stop=should_stop)


def work(
    batch_id: int,
    *,
    seconds: float | None = None,
    budget: float = math.inf,
    on_progress: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Work on what is due of a started batch, for ``seconds`` or to the end. What is in progress
    then is finished, but no request to Kapso lasts longer than ``budget`` seconds from now.

    Return whether something is left that could be done now. Any number of processes may work at the
    same time. Only this thread touches rows and sends e-mails; other threads wait for Kapso.
    ``on_progress`` is called for each invitation that ended. Once ``should_stop`` returns True,
    links in progress are finished, and no other links or e-mails are begun. Raise
    CalledInTransaction inside a transaction.
    """
    db.refuse_in_transaction()
    batch = InvitationBatch.objects.select_related("created_by").filter(pk=batch_id).first()
    if batch is None or batch.started_at is None:
        return False
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    budget_end = time.monotonic() + budget

    def new_client() -> KapsoClient:
        left = budget_end - time.monotonic()
        return KapsoClient.from_settings(budget=min(get_conf().api_budget, left), paced=True)

    def is_over() -> bool:
        return should_stop() or time.monotonic() >= deadline

    def lease_wave() -> list[Invitation]:
        """Return the invitations of the next wave, each leased to this process."""
        # Another process may have met an error that stops the batch.
        batch.refresh_from_db(fields=["stopped"])
        if batch.stopped or is_over():
            return []
        rows = (
            Invitation.objects.pending()
            .filter(batch=batch)
            .prefetch_related("customer", "setup_link")
        )
        return retry_on_conflict(lambda: rows.order_by("pk").lease_due(MAX_CONCURRENT_REQUESTS))

    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, thread_name_prefix="kapso-invite") as pool:
        asked = _ask(batch, lease_wave(), pool, new_client)
        while asked is not None:
            # While this wave's links are recorded, Kapso is asked for those of the next one.
            following = _ask(batch, lease_wave(), pool, new_client)
            for _done in range(_record(batch, asked, is_over)):
                on_progress()
            asked = following
    return not batch.stopped and batches_with_due_invitations().filter(pk=batch.pk).exists()


def work_in_request(batch: InvitationBatch) -> None:
    """Work on ``batch`` for ``REQUEST_SECONDS``. Raise as ``work`` does."""
    work(batch.pk, seconds=REQUEST_SECONDS, budget=get_conf().api_budget)


def work_unless_background(batch: InvitationBatch) -> None:
    """Work on ``batch`` for ``REQUEST_SECONDS``, if the site has no task workers that do."""
    if not is_background():
        work_in_request(batch)


@dataclass(frozen=True)
class Wave:
    """Invitations that are worked on together: those with a link, and those for whose link Kapso is
    being asked. The remaining ones failed, or wait for another attempt. Their leases were acquired
    together, at ``leased_at``."""

    invitations: list[Invitation]
    leased_at: datetime
    links: dict[Invitation, SetupLink]
    requests: dict[Invitation, LinkRequest]
    answers: dict[Invitation, Future[KapsoSetupLink]]
    new_client: Callable[[], KapsoClient]


def _ask(
    batch: InvitationBatch,
    invitations: list[Invitation],
    pool: ThreadPoolExecutor,
    new_client: Callable[[], KapsoClient],
) -> Wave | None:
    """Prepare the links of ``invitations``, and ask Kapso for them in the threads of ``pool``.
    Return None if there are no invitations."""
    if not invitations:
        return None
    leased_at = cast(datetime, invitations[0].leased_at)
    if batch.is_reminder:
        return Wave(invitations, leased_at, _links_to_remind_of(invitations), {}, {}, new_client)
    links, requests = _prepare(batch, invitations)
    _register(batch, requests, pool, new_client)
    answers = {
        invitation: _submit(pool, new_client, setup_links.ask, request)
        for invitation, request in requests.items()
    }
    return Wave(invitations, leased_at, links, requests, answers, new_client)


def _prepare(
    batch: InvitationBatch, invitations: Collection[Invitation]
) -> tuple[dict[Invitation, SetupLink], dict[Invitation, LinkRequest]]:
    """Return the links that exist already, and what Kapso is to be asked for. Queries that are the
    same for all invitations are made once."""
    customers = [invitation.customer_id for invitation in invitations]
    elsewhere = _in_progress_elsewhere(invitations)
    created = _created_since(batch, customers)
    known_ids: dict[int, list[str]] = defaultdict(list)
    known = SetupLink.objects.filter(customer__in=customers)
    for customer_id, kapso_id in known.values_list("customer_id", "kapso_id"):
        known_ids[customer_id].append(kapso_id)
    links: dict[Invitation, SetupLink] = {}
    requests: dict[Invitation, LinkRequest] = {}
    for invitation in invitations:
        customer_id = invitation.customer_id
        if customer_id in elsewhere:
            # Two batches invite the same customer: the later one will find the link of the other,
            # and what that one sent.
            _release(invitation, timedelta(seconds=2))
        elif invitation.setup_link:
            # Its link was recorded by an earlier attempt, and only the e-mail is left.
            links[invitation] = created.get(customer_id) or invitation.setup_link
        elif customer_id in created:
            links[invitation] = created[customer_id]
            # Its connect key may be newer than the customer that was read with the invitation.
            invitation.customer = created[customer_id].customer
        else:
            try:
                prepare_registration(invitation.customer)
                requests[invitation] = setup_links.prepare(
                    invitation.customer,
                    options=batch.options,
                    next_url=batch.next_url,
                    created_by=batch.created_by,
                    since=batch.started_at if invitation.attempts > 1 else None,
                    known_ids=known_ids[customer_id],
                )
            except Exception as error:
                _handle_error(batch, invitation, error)
    return links, requests


def _links_to_remind_of(invitations: Collection[Invitation]) -> dict[Invitation, SetupLink]:
    """Return the links of those who can be reminded now, and leave the others out."""
    elsewhere = _in_progress_elsewhere(invitations)
    rows = Customer.objects.filter(pk__in=[invitation.customer_id for invitation in invitations])
    annotated = reminders.with_obstacle(rows.select_related("latest_setup_link"))
    customers = {customer.pk: customer for customer in annotated}
    links: dict[Invitation, SetupLink] = {}
    for invitation in invitations:
        customer = customers.get(invitation.customer_id)
        if customer is None:
            continue  # deleted, and the invitation with it
        if customer.pk in elsewhere:
            _release(invitation, timedelta(seconds=2))
        elif invitation.email_status not in UNSENT:
            # An earlier attempt died after it had begun to send the e-mail.
            if invitation.email_status == Email.SENDING:
                _save_email(invitation, Email.UNKNOWN, emails.unknown_outcome_message())
            invitation.status = Invitation.Status.DONE
            invitation.finish()
        elif customer.obstacle:
            _leave_out(invitation, customer.obstacle)
        else:
            invitation.customer = customer
            links[invitation] = customer.latest_setup_link
            links[invitation].customer = customer
    return links


def _leave_out(invitation: Invitation, obstacle: str) -> None:
    """Set that a customer is not reminded, and why. Saves only the e-mail's status."""
    if invitation.email_status != Email.NOT_SENT:
        _save_email(invitation, Email.NOT_SENT)
    invitation.status = Invitation.Status.DONE
    invitation.last_error = str(reminders.Obstacle(obstacle).label)
    invitation.finish()


def _in_progress_elsewhere(invitations: Collection[Invitation]) -> set[int]:
    """Return the customers whom another batch is inviting at this moment."""
    others = Invitation.objects.pending().filter(
        customer__in=[invitation.customer_id for invitation in invitations],
        leased_until__gt=utc_now(),
    )
    others = others.exclude(pk__in=[invitation.pk for invitation in invitations])
    return set(others.values_list("customer_id", flat=True))


def _created_since(batch: InvitationBatch, customers: Collection[int]) -> dict[int, SetupLink]:
    """Return, by customer, the latest link if it was created after the batch was started and can
    be used or was used. Another member of staff may have created it, or a process that died before
    it could record it in the batch.
    """
    created = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_CREATED,
        setup_link=F("setup_link__customer__latest_setup_link"),
        setup_link__customer__in=customers,
    ).select_related("setup_link__customer")
    links = [event.setup_link for event in created if _is_since_start(batch, event.occurred_at)]
    return {
        link.customer_id: link
        for link in links
        if link and (link.is_usable or link.status == SetupLink.Status.USED)
    }


def _is_since_start(batch: InvitationBatch, moment: datetime) -> bool:
    return as_instant(moment) >= as_instant(cast(datetime, batch.started_at))


def _register(
    batch: InvitationBatch,
    requests: dict[Invitation, LinkRequest],
    pool: ThreadPoolExecutor,
    new_client: Callable[[], KapsoClient],
) -> None:
    """Register the new customers with Kapso, and remove from ``requests`` what failed."""
    futures = {
        invitation: _submit(pool, new_client, ask_for_registration, request.customer)
        for invitation, request in requests.items()
        if not request.customer.kapso_id
    }
    registered: dict[Customer, KapsoCustomer] = {}
    errors: dict[Customer, Exception] = {}
    for invitation, future in futures.items():
        try:
            registered[invitation.customer] = future.result()
        except Exception as error:
            errors[invitation.customer] = error
    errors |= record_registrations(registered)
    for invitation in futures:
        if invitation.customer in errors:
            del requests[invitation]
            _handle_error(batch, invitation, errors[invitation.customer])


def _submit(
    pool: ThreadPoolExecutor,
    new_client: Callable[[], KapsoClient],
    ask: Callable[[ItemT, KapsoClient], ResultT],
    item: ItemT,
) -> Future[ResultT]:
    """Let a thread of ``pool`` call ``ask`` with ``item`` and a client of its own. What it logs has
    the id of the request that works on the batch, if one does."""
    return pool.submit(copy_context().run, lambda: ask(item, new_client()))


def _record(batch: InvitationBatch, wave: Wave, is_over: Callable[[], bool]) -> int:
    """Record the links of a wave, send them, and record what became of each invitation. Return how
    many ended. No e-mail is begun once ``is_over`` returns True."""
    answers: dict[Invitation, KapsoSetupLink] = {}
    for invitation, future in wave.answers.items():
        try:
            answers[invitation] = future.result()
        except Exception as error:
            _handle_error(batch, invitation, error, wave)
    _record_links(batch, wave, _keep_leased(wave, answers))
    for invitation, link in wave.links.items():
        invitation.setup_link = link
        invitation.status = Invitation.Status.DONE
        invitation.last_error = ""
        invitation.finish()
    if batch.send_email:
        _keep_leased(wave, answers)
        _send_emails(batch, wave.links, is_over)
    retry_on_conflict(lambda: Invitation.objects.bulk_update(wave.invitations, SAVED_FIELDS))
    for invitation, link in wave.links.items():
        if invitation.status == Invitation.Status.DONE:
            log_event("invitation.done", setup_link_id=link.pk, **_log_fields(invitation))
    return sum(row.status != Invitation.Status.PENDING for row in wave.invitations)


def _keep_leased(
    wave: Wave, answers: Mapping[Invitation, KapsoSetupLink]
) -> dict[Invitation, KapsoSetupLink]:
    """Renew the leases of a wave, and leave out of it what other processes have taken over because
    Kapso or the mail server was slow. Return the answers to the remaining invitations."""
    rows = Invitation.objects.filter(pk__in=[invitation.pk for invitation in wave.invitations])
    held = retry_on_conflict(partial(rows.renew_leases, wave.leased_at))
    for invitation in list(wave.invitations):
        if invitation.pk not in held:
            wave.invitations.remove(invitation)
            wave.links.pop(invitation, None)
    return {invitation: link for invitation, link in answers.items() if invitation.pk in held}


def _record_links(
    batch: InvitationBatch, wave: Wave, answers: Mapping[Invitation, KapsoSetupLink]
) -> None:
    try:
        recorded = setup_links.record([(wave.requests[i], answers[i]) for i in answers])
    except Exception as error:
        if len(answers) == 1:
            _handle_error(batch, next(iter(answers)), error)
        else:
            # One row that cannot be written must not stop the others.
            for invitation, answer in answers.items():
                _record_links(batch, wave, {invitation: answer})
        return
    for invitation, link in zip(answers, recorded, strict=True):
        if link is not None:  # None: the customer was deleted, and the invitation with it
            wave.links[invitation] = link


def _handle_error(
    batch: InvitationBatch, invitation: Invitation, error: Exception, wave: Wave | None = None
) -> None:
    """Set what becomes of an invitation whose link could not be created. Does not save it."""
    if isinstance(error, Customer.DoesNotExist):
        return  # The customer was deleted, and the invitation with it.
    if isinstance(error, KapsoNotFound) and wave is not None:
        # The customer was deleted at Kapso: it is registered again.
        try:
            client = wave.new_client()
            wave.links[invitation] = setup_links.create(wave.requests[invitation], client)
        except Exception as second_error:
            _handle_error(batch, invitation, second_error)
    elif isinstance(error, BATCH_STOPPING_ERRORS):
        batch.stopped = staff_message(error)
        InvitationBatch.objects.filter(pk=batch.pk).update(stopped=batch.stopped)
        log_event("batch.stopped", batch_id=batch.pk, error=str(error))
        _release(invitation)
    elif isinstance(error, KapsoRateLimited):
        pause = timedelta(seconds=error.retry_after or 60)
        # It says nothing about this customer, so it does not count as an attempt.
        invitation.last_error = staff_message(error)[:2000]
        _release(invitation, pause)
        waiting = Invitation.objects.waiting().filter(batch=batch)
        waiting.due().update(next_attempt_at=utc_now() + pause)
    elif isinstance(error, PERMANENT_ERRORS):
        log_event("invitation.failed", error=str(error), **_log_fields(invitation))
        invitation.status = Invitation.Status.FAILED
        invitation.last_error = staff_message(error)[:2000]
        invitation.finish()
    else:
        _schedule_retry(invitation, error)


def _schedule_retry(invitation: Invitation, error: Exception) -> None:
    invitation.schedule_retry(staff_message(error)[:2000])
    fields = {"error": type(error).__name__, **_log_fields(invitation)}
    if invitation.next_attempt_at is None:
        invitation.status = Invitation.Status.FAILED
        log_event("invitation.failed", exc_info=error, **fields)
    else:
        log_event(
            "invitation.retry_scheduled", attempts=invitation.attempts, exc_info=error, **fields
        )


def _release(invitation: Invitation, pause: timedelta = timedelta()) -> None:
    """Make a leased invitation available again, after ``pause``; it does not count as an attempt.
    Does not save it."""
    invitation.attempts = max(invitation.attempts - 1, 0)
    invitation.finish()
    invitation.next_attempt_at = utc_now() + pause


def _send_emails(
    batch: InvitationBatch, links: Mapping[Invitation, SetupLink], is_over: Callable[[], bool]
) -> None:
    """Send each link once, one after the other over one connection: not again if it was, or may
    have been, sent since the batch was started, and not to a customer who has used it.

    Saves what became of each e-mail, and not the invitations. One whose e-mail has to be sent later
    is pending again.
    """
    sent = _sent_since(batch, links.values())
    with Mailer() as mailer:
        for invitation, link in links.items():
            # Read anew: another process may have worked on those whose lease has ended.
            stored = Invitation.objects.filter(pk=invitation.pk)
            invitation.email_status = stored.values_list("email_status", flat=True).first() or ""
            if invitation.email_status in UNSENT and (link.pk, invitation.customer.email) in sent:
                _save_email(invitation, Email.SENT)
            elif invitation.email_status == Email.SENDING:
                _save_email(invitation, Email.UNKNOWN, emails.unknown_outcome_message())
            elif invitation.email_status not in UNSENT or link.status == SetupLink.Status.USED:
                continue
            elif not invitation.customer.email:
                _save_email(invitation, Email.NO_ADDRESS, _("The customer has no e-mail address."))
            elif mailer.outage and classify_error(mailer.outage) is SendFailure.PERMANENT:
                _email_failed(invitation, mailer.outage)
            elif mailer.outage:
                _put_off(invitation, mailer.outage)
            elif is_over():
                invitation.status = Invitation.Status.PENDING
                _release(invitation)
            else:
                _send_email(batch, invitation, link, mailer)


def _send_email(
    batch: InvitationBatch, invitation: Invitation, link: SetupLink, mailer: Mailer
) -> None:
    """Send one e-mail, unless another process has begun to."""
    make_message = emails.reminder_message if batch.is_reminder else emails.invitation_message
    try:
        message = make_message(invitation.customer, link)
    except Exception as error:
        _email_failed(invitation, error)
        return
    unsent = Invitation.objects.filter(pk=invitation.pk, email_status__in=UNSENT)
    if not retry_on_conflict(partial(unsent.update, email_status=Email.SENDING)):
        return
    invitation.email_status = Email.SENDING
    if batch.is_reminder and not reminders.claim(link):
        # Meanwhile the customer has gone on, or was reminded by somebody else.
        now = reminders.with_obstacle(Customer.objects.filter(pk=invitation.customer_id))
        obstacle = now.values_list("obstacle", flat=True).first()
        _leave_out(invitation, obstacle or reminders.Obstacle.RECENT)
        return
    try:
        mailer.send(message)
    except Exception as error:
        if batch.is_reminder and classify_error(error) is not SendFailure.UNKNOWN:
            reminders.take_back(link)
        if classify_error(error) is SendFailure.TEMPORARY:
            _put_off(invitation, error)
        else:
            _email_failed(invitation, error)
        return

    def change() -> None:
        to = invitation.customer.email
        about = emails.REMINDER if batch.is_reminder else ""
        setup_links.record_sent(link, "email", actor=batch.created_by, to=to, message=about)
        _save_email(invitation, Email.SENT)

    retry_on_conflict(change)


def _put_off(invitation: Invitation, error: Exception) -> None:
    """Have an e-mail that was not sent because of ``error`` sent later, up to ``RETRY_LIMIT``
    attempts."""
    invitation.schedule_retry("")
    if invitation.next_attempt_at is None:
        _email_failed(invitation, error, Email.FAILED)
        return
    invitation.status = Invitation.Status.PENDING
    log_event(
        "email.retry_scheduled", customer_id=invitation.customer_id, error=type(error).__name__
    )
    _save_email(invitation, Email.WAITING, emails.send_later_message(error))


def _email_failed(invitation: Invitation, error: Exception, status: str = "") -> None:
    # The class alone: mail servers repeat the customer's e-mail address in their messages.
    log_event("email.failed", customer_id=invitation.customer_id, error=type(error).__name__)
    if not status:
        is_unknown = classify_error(error) is SendFailure.UNKNOWN
        status = Email.UNKNOWN if is_unknown else Email.FAILED
    _save_email(invitation, status, emails.send_error_message(error))


def _save_email(invitation: Invitation, status: str, error: str = "") -> None:
    rows = Invitation.objects.filter(pk=invitation.pk)
    if status != Email.SENT:
        # Another process may have sent it meanwhile.
        rows = rows.filter(email_status=invitation.email_status)
    retry_on_conflict(partial(rows.update, email_status=status, email_error=error))
    invitation.email_status = status
    invitation.email_error = error


def _sent_since(batch: InvitationBatch, links: Iterable[SetupLink]) -> set[tuple[int, str]]:
    """Return to which addresses the ``links`` were e-mailed since the batch was started."""
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_LINK_SENT,
        setup_link__in=links,
    )
    return {
        (pk, data.get("to", ""))
        for pk, data, sent_at in events.values_list("setup_link_id", "data", "occurred_at")
        if data.get("channel") == "email" and _is_since_start(batch, sent_at)
    }


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
        db.enqueue_on_commit(work_invitations, batch_id)
    elif batch := InvitationBatch.objects.filter(pk=batch_id, stopped="").first():
        db.enqueue_later_on_commit(work_invitations, batch_id, progress(batch).due_at)
